"""The record reader: records and explanations as serialized answers, through the caches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from services.records import explanations
from services.records.batches import Batch, BatchItem
from services.records.caching.replies import ReplyCache
from services.records.components import Component, View
from services.records.datasets import DatasetRegistry
from services.records.explanations import Explanation, Failure, Sources
from services.records.loading import Record, token_pair_record, token_record
from services.records.reply_sizes import reply_too_large
from services.records.sequences import TokenPairSequences, TokenSequences
from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder
from shared.errors import DataLoss, InvalidArgument, NeuropilError, NotFound
from shared.formats.decoding import SimulationResults

REPLY_FORMAT = 1
"""Version of what is kept in the caches; another version is another key."""

EXPLANATIONS_TTL_SECONDS = 60.0
"""Explanations change while the service runs, and another process may have changed them."""

EXPLANATIONS_MEMORY_TTL_SECONDS = 5.0
"""A replica that writes drops them from the shared cache; the memory of others is not told."""

SerializeResults = Callable[[SimulationResults, Folder, str, int], list[bytes]]
"""Serialized messages of a folder's results, from a file called so, none of more bytes."""


@dataclass(frozen=True, slots=True)
class Encoders:
    """How answers are serialized. Serialized lists of explanations and failures may be joined."""

    token_record: Callable[[Record[TokenSequences]], bytes]
    token_pair_record: Callable[[Record[TokenPairSequences]], bytes]
    explanations: Callable[[list[Explanation]], bytes]
    failures: Callable[[list[Failure]], bytes]


class RecordReader:
    """Answers from the first of several datasets that has a component."""

    def __init__(
        self,
        registry: DatasetRegistry,
        blobs: Blobs,
        cache: ReplyCache,
        encoders: Encoders,
        *,
        ttl_seconds: float,
        max_reply_bytes: int,
    ) -> None:
        self.registry = registry
        self.blobs = blobs
        self._cache = cache
        self._encoders = encoders
        self._ttl_seconds = ttl_seconds
        self._max_reply_bytes = max_reply_bytes

    async def token_record(
        self, component: Component, datasets: Sequence[str], view: View
    ) -> bytes:
        """The serialized record by token.

        NotFound where no dataset has it, or none is known; InvalidArgument where the derived
        scalar type, or the file, is by token pair or a dataset may not be read; DataLoss where the
        first dataset that has it is corrupt.
        """
        if component.by_token_pair:
            raise InvalidArgument(
                f"{component.derived_scalar_type} is by token pair, not by token.",
                field="component.derived_scalar_type",
            )
        return await self._record(component, datasets, view)

    async def token_pair_record(
        self, component: Component, datasets: Sequence[str], view: View
    ) -> bytes:
        """The serialized record by token pair; raises as `token_record` does."""
        if not component.by_token_pair:
            raise InvalidArgument(
                f"{component.derived_scalar_type} is by token, not by token pair.",
                field="component.derived_scalar_type",
            )
        return await self._record(component, datasets, view)

    def kept_record(self, key: str) -> bytes | None:
        """The serialized record that `first_key` names, where it is in memory."""
        found = self._cache.peek(key)
        return found if isinstance(found, bytes) else None

    def first_key(self, component: Component, datasets: Sequence[str], view: View) -> str:
        """Under which key the caches keep the record of the dataset that is tried first.

        Raises as `token_record` does for what is wrong with the datasets.
        """
        folders = self.registry.record_folders(datasets, component.derived_scalar_type).folders
        return _record_key(component, folders[0], view)

    def batch(
        self, components: Sequence[Component], datasets: Sequence[str], view: View, max_items: int
    ) -> AsyncGenerator[list[BatchItem], None]:
        """The records of many components, in their order, each failure in its place.

        Up to `max_items` come together, as `Batch.groups` says. Raises as `token_record` does where
        the datasets are wrong for every component.
        """
        first_folders = self._first_folders(components, datasets)

        def key_of(component: Component) -> str | None:
            folder = first_folders.get(component.derived_scalar_type)
            return None if folder is None else _record_key(component, folder, view)

        async def read(component: Component, not_shared: set[str]) -> bytes:
            return await self._record(component, datasets, view, not_shared)

        return Batch(
            components,
            key_of,
            self._cache,
            read,
            ttl_seconds=self._ttl_seconds,
            max_reply_bytes=self._max_reply_bytes,
        ).groups(max_items)

    def _first_folders(
        self, components: Sequence[Component], datasets: Sequence[str]
    ) -> dict[str, Folder]:
        """The folder that is tried first, by derived scalar type, for those that the names fit."""
        folders: dict[str, Folder] = {}
        failure: NeuropilError | None = None
        for name in {component.derived_scalar_type for component in components}:
            try:
                folders[name] = self.registry.record_folders(datasets, name).folders[0]
            except NeuropilError as error:
                failure = error
        if failure is not None and not folders:
            raise failure
        return folders

    async def explanations(
        self,
        component: Component,
        *,
        explanation_datasets: list[str],
        neuron_dataset: str | None,
    ) -> bytes:
        """The serialized explanations in the order of the datasets, and the failures.

        Raises as `find_sources` does, and what failed where no dataset that has the component
        could be read.
        """
        sources = await explanations.find_sources(
            self.registry,
            self.blobs,
            component,
            explanation_datasets=explanation_datasets,
            neuron_dataset=neuron_dataset,
        )
        return await self._read_all(component, sources)

    async def simulation_results(
        self, component: Component, explanation_dataset: str, serialize: SerializeResults
    ) -> list[bytes]:
        """A component's full scored simulations, as `serialize` makes them of its file.

        NotFound where there are none.
        """
        folder = self.registry.explanation_folder(explanation_dataset)

        def serialized(data: bytes) -> list[bytes]:
            results = explanations.decode(data, component, folder)
            source = folder.file_name(component.explanation_file)
            return serialize(results, folder, source, self._max_reply_bytes)

        # What is sent takes as much as the file; what the file is parsed to, many times as much.
        messages = await self.blobs.load(folder, component.explanation_file, serialized)
        if messages is None:
            raise NotFound(
                f"No explanations of {component} in {folder.name}.",
                metadata={"datasets": folder.name},
            )
        return messages

    async def forget_explanations(self, component: Component, folder: Folder) -> None:
        """Drop the explanations of a component that were changed, as the folder is usually called.

        That is as the request and the configuration do. Answers under another spelling of its path
        grow old by themselves.
        """
        names = {folder.name, folder.name.rstrip("/"), f"{folder.path}/", folder.path}
        called = {Folder(folder.path, name, "") for name in names}
        for listed in explanations.listed_as(self.registry, folder):
            called.add(Folder(listed.path, listed.name, ""))
        for each in called:
            await self._cache.forget(_explanations_key(component, each))

    async def close(self) -> None:
        """End what runs, and close the caches."""
        await self._cache.close()

    async def _record(
        self,
        component: Component,
        datasets: Sequence[str],
        view: View,
        not_shared: frozenset[str] | set[str] = frozenset(),
    ) -> bytes:
        resolution = self.registry.record_folders(datasets, component.derived_scalar_type)
        for folder in resolution.folders:
            key = _record_key(component, folder, view)
            reply = await self._cache.get(
                key,
                partial(self._load_record, component, folder, view),
                ttl_seconds=self._ttl_seconds,
                not_shared=key in not_shared,
            )
            if reply is not None:
                # One from the shared cache may have been made where more could be sent.
                source = folder.file_name(component.record_file)
                return self._sendable(reply, f"The record {source}")
        tried = [folder.name for folder in resolution.folders]
        unknown = f"; {', '.join(resolution.unknown)} not known" if resolution.unknown else ""
        raise NotFound(
            f"No record of {component} in {', '.join(tried)}{unknown}.",
            reason="RECORD_NOT_FOUND",
            metadata={"datasets": ", ".join([*tried, *resolution.unknown])},
        )

    async def _load_record(self, component: Component, folder: Folder, view: View) -> bytes | None:
        source = folder.file_name(component.record_file)

        def serialized(data: bytes) -> bytes:
            if component.by_token_pair:
                pairs = token_pair_record(data, folder.name, component, view, source)
                reply = self._encoders.token_pair_record(pairs)
            else:
                tokens = token_record(data, folder.name, component, view, source)
                reply = self._encoders.token_record(tokens)
            return self._sendable(reply, f"The record {source}")

        return await self.blobs.load(folder, component.record_file, serialized)

    def _sendable(self, reply: bytes, what: str) -> bytes:
        if len(reply) > self._max_reply_bytes:
            raise reply_too_large(what, len(reply), self._max_reply_bytes)
        return reply

    async def _read_all(self, component: Component, sources: Sources) -> bytes:
        read = await asyncio.gather(
            *(self._explanations(component, folder) for folder in sources.folders),
            return_exceptions=True,
        )
        replies: list[tuple[Folder, bytes]] = []
        failures: list[Failure] = []
        first: NeuropilError | None = None
        for folder, outcome in zip(sources.folders, read, strict=True):
            if isinstance(outcome, InvalidArgument):
                raise outcome
            if isinstance(outcome, NeuropilError):
                failures.append(Failure.of(outcome, folder.name))
                # A corrupt file stays so; what is only unavailable may be better next time.
                if first is None or isinstance(outcome, DataLoss):
                    first = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
            elif outcome is not None:
                replies.append((folder, outcome))
        told = [self._encoders.failures(failures + sources.failures)]
        size = len(told[0]) + sum(len(reply) for _, reply in replies)
        while replies and size > self._max_reply_bytes:
            # The datasets that come first stay; of the others the answer says that they are left.
            folder, reply = replies.pop()
            left = reply_too_large(f"All up to {folder.name}", size, self._max_reply_bytes)
            first = first or left
            told.append(self._encoders.failures([Failure.of(left, folder.name)]))
            size += len(told[-1]) - len(reply)
        if first is not None and not replies:
            raise first
        if size > self._max_reply_bytes:
            raise reply_too_large("What failed", size, self._max_reply_bytes)
        return b"".join([*(reply for _, reply in replies), *told])

    async def _explanations(self, component: Component, folder: Folder) -> bytes | None:
        def serialized(data: bytes) -> bytes:
            results = explanations.decode(data, component, folder)
            reply = self._encoders.explanations(explanations.explanations_of(results, folder))
            return self._sendable(reply, what)

        what = f"The explanations in {folder.file_name(component.explanation_file)}"
        reply = await self._cache.get(
            _explanations_key(component, folder),
            partial(self.blobs.load, folder, component.explanation_file, serialized),
            ttl_seconds=min(EXPLANATIONS_TTL_SECONDS, self._ttl_seconds),
            memory_ttl_seconds=EXPLANATIONS_MEMORY_TTL_SECONDS,
        )
        # One from the shared cache may have been made where more could be sent.
        return None if reply is None else self._sendable(reply, what)


def _record_key(component: Component, folder: Folder, view: View) -> str:
    options = f"{'q' * view.quantile_samples}{'m' * view.moments}"
    return _key(f"record-{options}:{component.derived_scalar_type}", component, folder)


def _explanations_key(component: Component, folder: Folder) -> str:
    return _key("explanations", component, folder)


def _key(kind: str, component: Component, folder: Folder) -> str:
    # The folder's path belongs to it as well as its name: what a name means may be configured anew.
    return (
        f"neuropil:{REPLY_FORMAT}:{kind}:{component.layer_index}:{component.component_index}:"
        f"{folder.path}:{folder.name}"
    )
