"""What a bulk run has done: every outcome, what it cost, and what was put to the record reader."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec
import structlog

from services.simulation.bulk.events import ItemFailure
from services.simulation.bulk.segments import SegmentedLog, newer_version
from services.simulation.finishing import finished
from services.simulation.simulators.interface import SimulationCost
from services.simulation.state.store import Lease, LeaseHeld, StateStore
from shared.errors import Aborted, FailedPrecondition

FORMAT = 1
"""Of runs; one of a newer release is not gone on with."""
LEASE_PATIENCE_SECONDS = 2.0
"""How long a run waits for one of the same key to end, as one does whose caller has just gone."""

_log = structlog.get_logger(__name__)


class _Header(msgspec.Struct):
    """`run.json`, for people too."""

    format: int
    key: str
    fingerprint: str
    items: int
    begun: str = ""


class Entry(msgspec.Struct, omit_defaults=True):
    """The end of an item: a result, a failure, or, with neither, that it was given up."""

    position: int
    fingerprint: bytes
    calls: int = 0
    prompt_tokens_computed: int = 0
    prompt_tokens_reused: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    result: bytes | None = None
    failure: ItemFailure | None = None
    is_final: bool = True
    """Whether the item is not tried again by a later run of the key."""
    id: bytes = b""
    """By which the same entry is known again where it is read twice."""

    @property
    def cost(self) -> SimulationCost:
        """What the item cost."""
        return SimulationCost(
            self.calls,
            self.prompt_tokens_computed,
            self.prompt_tokens_reused,
            self.completion_tokens,
            self.seconds,
        )

    @classmethod
    def of(
        cls,
        position: int,
        fingerprint: bytes,
        cost: SimulationCost,
        *,
        result: bytes | None = None,
        failure: ItemFailure | None = None,
        is_final: bool = True,
    ) -> Entry:
        """An entry of a cost."""
        return cls(
            position,
            fingerprint,
            cost.calls,
            cost.prompt_tokens_computed,
            cost.prompt_tokens_reused,
            cost.completion_tokens,
            cost.seconds,
            result,
            failure,
            is_final,
            secrets.token_bytes(8),
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode
_decode_position = msgspec.msgpack.Decoder(int).decode


class Journal:
    """The journal of one key; `opened` gives it to one owner at a time."""

    def __init__(
        self,
        fingerprints: Sequence[bytes],
        entries: SegmentedLog,
        puts: SegmentedLog | None,
    ) -> None:
        self._fingerprints = fingerprints
        self._entries = entries
        self._puts = puts
        self._done = bytearray(len(fingerprints))
        self._stored = bytearray(len(fingerprints))
        self.spent = SimulationCost()
        """By all runs of the key."""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, store: StateStore, key: str, fingerprints: Sequence[bytes], put_target: str
    ) -> AsyncIterator[Journal]:
        """The journal of a key for these items, held by nobody else inside the block.

        Results that were put to another target count as not put.

        Raises:
            Aborted: RUN_IN_PROGRESS, a run of the key runs.
            FailedPrecondition: RESUME_KEY_USED, the key's run had other items;
                RUN_OF_NEWER_VERSION.
            NeuropilError: what the store raises.
        """
        folder = run_folder(key)
        try:
            async with store.lease(
                f"{folder}/lease", patience_seconds=LEASE_PATIENCE_SECONDS
            ) as lease:
                await _check_header(store, folder, key, fingerprints)

                def check() -> None:
                    _check_lease(lease)

                entries = await SegmentedLog.open(store, f"{folder}/entries", check)
                puts = None
                if put_target:
                    name = hashlib.sha256(put_target.encode()).hexdigest()[:16]
                    puts = await SegmentedLog.open(store, f"{folder}/puts-{name}", check)
                journal = cls(fingerprints, entries, puts)
                await journal._read_puts()
                try:
                    yield journal
                finally:
                    # The lease must not be given up while something is still written.
                    await finished(_closed(entries, puts))
        except LeaseHeld:
            raise _in_progress("a run of this key runs already") from None

    async def kept(self) -> AsyncGenerator[Entry, None]:
        """The outcomes that are final, one by one; `spent` and `is_done` are known at the end."""
        seen: set[bytes] = set()
        async for record in self._entries.read():
            try:
                entry = _decode(record)
            except msgspec.DecodeError as error:
                _log.warning("entry_is_not_readable", cause=str(error))
                continue
            if not self._is_of_this_run(entry):
                _log.warning("entry_of_other_requests", position=entry.position)
                continue
            if entry.id in seen:
                continue
            if entry.id:
                seen.add(entry.id)
            self.spent += entry.cost
            if entry.is_final and not self._done[entry.position]:
                self._done[entry.position] = True
                yield entry

    def is_done(self, position: int) -> bool:
        """Whether an item has a final outcome."""
        return bool(self._done[position])

    def is_stored(self, position: int) -> bool:
        """Whether the item's result was put to this run's target."""
        return bool(self._stored[position])

    async def keep(self, entry: Entry) -> None:
        """Add an entry; it outlives a crash once this returns."""
        await self._entries.append(_encode(entry))
        self.spent += entry.cost
        if entry.is_final:
            self._done[entry.position] = True

    async def mark_stored(self, position: int) -> None:
        """Say that an item's result was put to the target."""
        if self._puts is None:
            return
        await self._puts.append(_encode(position))
        self._stored[position] = True

    async def _read_puts(self) -> None:
        if self._puts is None:
            return
        async for record in self._puts.read():
            try:
                position = _decode_position(record)
            except msgspec.DecodeError as error:
                # It is put once more, which replaces it by itself.
                _log.warning("mark_is_not_readable", cause=str(error))
                continue
            if 0 <= position < len(self._stored):
                self._stored[position] = True

    def _is_of_this_run(self, entry: Entry) -> bool:
        position = entry.position
        return (
            0 <= position < len(self._fingerprints)
            and self._fingerprints[position] == entry.fingerprint
        )


def _check_lease(lease: Lease) -> None:
    if lease.lost:
        raise _in_progress("another replica took this run over, as this one was not heard of")


async def _closed(*logs: SegmentedLog | None) -> None:
    for log in logs:
        if log is not None:
            await log.close()


def run_folder(key: str) -> str:
    """Where the run of a key is, whatever characters the key has."""
    return f"runs/{hashlib.sha256(key.encode()).hexdigest()[:40]}"


async def _check_header(
    store: StateStore, folder: str, key: str, fingerprints: Sequence[bytes]
) -> None:
    digest = hashlib.sha256()
    for fingerprint in fingerprints:
        digest.update(len(fingerprint).to_bytes(4, "little") + fingerprint)
    content = await store.get(f"{folder}/run.json")
    header = _header_of(content)
    if header is None:
        if content is not None:
            # Entries have the fingerprints of their items: none is taken for another's.
            _log.warning("run_header_is_not_readable", folder=folder)
        begun = datetime.now(UTC).isoformat(timespec="seconds")
        header = _Header(FORMAT, key, digest.hexdigest(), len(fingerprints), begun)
        await store.put(f"{folder}/run.json", msgspec.json.format(msgspec.json.encode(header)))
    if header.format > FORMAT:
        raise newer_version()
    if header.fingerprint != digest.hexdigest():
        raise FailedPrecondition(
            f"this key is that of a run of {header.items} other requests, begun {header.begun}; "
            "send the same requests in the same order, or use another key",
            field="resume_key",
            reason="RESUME_KEY_USED",
            metadata={"items": str(header.items)},
        )


def _header_of(content: bytes | None) -> _Header | None:
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=_Header)
    except msgspec.DecodeError:
        return None


def _in_progress(why: str) -> Aborted:
    return Aborted(
        f"{why}; wait until it has ended, or use another key",
        field="resume_key",
        reason="RUN_IN_PROGRESS",
        retry_after_seconds=LEASE_PATIENCE_SECONDS,
    )
