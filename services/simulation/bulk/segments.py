"""A log of records on a state store: what was appended outlives a crash of the process.

A blob store can't append, and a folder of 100,000 files is slow to list. So each commit is one new
segment, which holds all records that came while the commit before it was under way, and small
segments are merged to larger ones. A merge is written before what it replaces is deleted: after a
crash in between both are there, and records come twice. They come twice or late also from an owner
that was taken for dead; its name is a part of the names of its segments, so that nobody writes over
another's. Who reads has to know records again.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct

import structlog

from services.simulation.state.store import StateStore
from shared.errors import FailedPrecondition, NeuropilError, Unavailable

FANOUT = 32
"""So many segments of one level become one of the next."""
MERGED_BYTES = 4 * 2**20
"""A merge makes no larger segment."""

_MAGIC = b"NPLOG"
_VERSION = 1
_HEAD = Struct("<5sB")
_FRAME = Struct("<II")
# Before owners were named there were segments without one.
_NAME = re.compile(r"(\d{10})-(\d{10})(?:-([0-9a-f]{8}))?-(\d)\.seg")
_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 3.0)
_READ_AT_ONCE = 8

_log = structlog.get_logger(__name__)


class _Damaged(Exception):
    """A segment, or its end, can't be read."""


@dataclass(frozen=True, slots=True)
class _Segment:
    first: int
    last: int
    owner: str
    level: int

    @property
    def name(self) -> str:
        owner = f"-{self.owner}" if self.owner else ""
        return f"{self.first:010d}-{self.last:010d}{owner}-{self.level}.seg"

    @classmethod
    def of(cls, name: str) -> _Segment | None:
        match = _NAME.fullmatch(name.rpartition("/")[2])
        if match is None:
            return None
        first, last, owner, level = match.groups()
        return cls(int(first), int(last), owner or "", int(level))


class SegmentedLog:
    """Records in a folder of the store; there must be one writer at a time."""

    def __init__(
        self,
        store: StateStore,
        folder: str,
        found: Sequence[_Segment],
        check: Callable[[], None],
    ) -> None:
        self._store = store
        self._folder = folder
        self._check = check
        self._owner = secrets.token_hex(4)
        # Those within others were merged, or another owner's, and stay as they are.
        self._segments: list[_Segment] = []
        for segment in found:
            if not self._segments or segment.first > self._segments[-1].last:
                self._segments.append(segment)
        self._sizes: dict[_Segment, int] = {}
        self._pending: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._merger: asyncio.Task[None] | None = None
        # One without an owner isn't another's: within others, it was merged.
        self._unread = [each for each in found if each.owner or each in self._segments]
        self._broken: Exception | None = None
        self._is_closing = False

    @classmethod
    async def open(
        cls, store: StateStore, folder: str, check: Callable[[], None] = lambda: None
    ) -> SegmentedLog:
        """The log in a folder, with what it has; what the store raises.

        `check` is called before anything is written, and raises where it must not be any more.
        """
        found = [segment for name in await store.list(folder) if (segment := _Segment.of(name))]
        found.sort(key=lambda segment: (segment.first, -segment.last, segment.owner))
        return cls(store, folder, found, check)

    async def read(self) -> AsyncIterator[bytes]:
        """The records that it had when it was opened, in the order of their commits; some twice.

        A segment that is damaged gives those before the damage, and a warning in the log.

        Raises:
            FailedPrecondition: RUN_OF_NEWER_VERSION for a segment of a newer release.
        """
        for start in range(0, len(self._unread), _READ_AT_ONCE):
            some = self._unread[start : start + _READ_AT_ONCE]
            contents = await asyncio.gather(*(self._store.get(self._path(each)) for each in some))
            for segment, content in zip(some, contents, strict=True):
                if content is None:
                    _log.warning("segment_is_gone", name=segment.name)
                    continue
                self._sizes[segment] = len(content)
                for record in _records(content, segment.name):
                    yield record

    async def append(self, record: bytes) -> None:
        """Add a record; it is kept once this returns.

        Raises:
            NeuropilError: what the store raises; where it is Unavailable, after several tries.
                Nothing is tried any more after that.
            Exception: a defect of the store.
        """
        if self._broken is not None:
            raise self._broken
        done = asyncio.get_running_loop().create_future()
        self._pending.append((record, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await done

    async def close(self) -> None:
        """Wait until all is written that was appended, also by callers that don't wait for it.

        A merge that has begun to be written is brought to its end; none is begun any more.
        """
        self._is_closing = True
        for task in (self._writer, self._merger):
            if task is not None:
                await asyncio.wait([task])

    async def _write(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            last = self._segments[-1].last if self._segments else 0
            segment = _Segment(last + 1, last + 1, self._owner, 0)
            content = _encoded([record for record, _ in batch])
            try:
                await self._put(self._path(segment), content)
            except Exception as error:  # noqa: BLE001 - else all who wait would wait for ever
                if not isinstance(error, NeuropilError):
                    _log.exception("segment_not_written", name=segment.name)
                self._broken = error
                for _, done in (*batch, *self._pending):
                    if not done.done():
                        done.set_exception(error)
                        # Nobody may wait for it any more.
                        done.exception()
                self._pending = []
                return
            self._segments.append(segment)
            self._sizes[segment] = len(content)
            for _, done in batch:
                if not done.done():
                    done.set_result(None)
            if not self._is_closing and (self._merger is None or self._merger.done()):
                self._merger = asyncio.create_task(self._merge())

    async def _put(self, path: str, content: bytes) -> None:
        for pause in _RETRY_SECONDS:
            self._check()
            with suppress(Unavailable):
                await self._store.put(path, content)
                return
            await asyncio.sleep(pause)
        self._check()
        await self._store.put(path, content)

    async def _merge(self) -> None:
        """Merge as long as there are enough small segments; a failure is only put off."""
        try:
            while not self._is_closing and (some := self._mergeable()):
                contents = await asyncio.gather(
                    *(self._store.get(self._path(each)) for each in some)
                )
                if self._is_closing:
                    return
                records: list[bytes] = []
                for segment, content in zip(some, contents, strict=True):
                    whole = None if content is None else _all_records(content, segment.name)
                    if whole is None:
                        # A merge of what is left would stand for all of them.
                        _log.warning("segments_not_merged", cause=f"{segment.name} isn't whole")
                        self._sizes[segment] = MERGED_BYTES + 1
                        break
                    records += whole
                else:
                    await self._replace(some, records)
        except NeuropilError as error:
            _log.warning("segments_not_merged", cause=error.message)
        except Exception:  # noqa: BLE001 - a defect of the store; nothing is lost
            _log.exception("segments_not_merged")

    async def _replace(self, some: Sequence[_Segment], records: Sequence[bytes]) -> None:
        merged = _Segment(some[0].first, some[-1].last, self._owner, some[0].level + 1)
        content = _encoded(records)
        self._check()
        await self._store.put(self._path(merged), content)
        at = self._segments.index(some[0])
        self._segments[at : at + len(some)] = [merged]
        self._sizes[merged] = len(content)
        for segment in some:
            self._sizes.pop(segment, None)
        self._check()
        outcomes = await asyncio.gather(
            *(self._store.delete(self._path(each)) for each in some), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    def _mergeable(self) -> list[_Segment]:
        """The latest neighbours of one level, if they are enough and not too large together."""
        for level in range(max((each.level for each in self._segments), default=0) + 1):
            run: list[_Segment] = []
            for segment in reversed(self._segments):
                if segment.level > level:
                    break
                if segment.level == level:
                    run.append(segment)
                if len(run) == FANOUT:
                    run.reverse()
                    sizes = [self._sizes.get(each, MERGED_BYTES) for each in run]
                    if sum(sizes) <= MERGED_BYTES and _are_neighbours(run):
                        return run
                    break
        return []

    def _path(self, segment: _Segment) -> str:
        return f"{self._folder}/{segment.name}"


def _are_neighbours(segments: Sequence[_Segment]) -> bool:
    return all(after.first == before.last + 1 for before, after in pairwise(segments))


def _encoded(records: Sequence[bytes]) -> bytes:
    parts = [_HEAD.pack(_MAGIC, _VERSION)]
    for record in records:
        parts += [_FRAME.pack(len(record), zlib.crc32(record)), record]
    return b"".join(parts)


def _records(content: bytes, name: str) -> Iterator[bytes]:
    """The records up to where the segment is damaged, if it is."""
    with suppress(_Damaged):
        yield from _checked_records(content, name)


def _all_records(content: bytes, name: str) -> list[bytes] | None:
    """All records; None where the segment is damaged."""
    try:
        return list(_checked_records(content, name))
    except _Damaged:
        return None


def _checked_records(content: bytes, name: str) -> Iterator[bytes]:
    if len(content) < _HEAD.size or content[: len(_MAGIC)] != _MAGIC:
        _log.warning("segment_is_damaged", name=name, at=0)
        raise _Damaged
    version = content[len(_MAGIC)]
    if version > _VERSION:
        raise newer_version()
    at = _HEAD.size
    while at < len(content):
        if at + _FRAME.size <= len(content):
            length, checksum = _FRAME.unpack_from(content, at)
            record = content[at + _FRAME.size : at + _FRAME.size + length]
            if len(record) == length and zlib.crc32(record) == checksum:
                yield record
                at += _FRAME.size + length
                continue
        _log.warning("segment_is_damaged", name=name, at=at)
        raise _Damaged


def newer_version() -> FailedPrecondition:
    """The error for a run that this release can't read."""
    return FailedPrecondition(
        "the run of this key was kept by a newer release; go on with that one, or use another key",
        field="resume_key",
        reason="RUN_OF_NEWER_VERSION",
    )
