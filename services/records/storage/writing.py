"""Storing explanations beside those of other writers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.records.components import Component
from services.records.explanations import decode
from services.records.storage.blobs import Blobs
from services.records.storage.failures import too_large
from services.records.storage.folders import Folder
from shared.errors import FailedPrecondition
from shared.formats.decoding import SimulationResults
from shared.formats.encoding import encode, merge_explanations
from shared.formats.records import NeuronId
from shared.formats.simulations import (
    AttentionSimulationResults,
    NeuronSimulationResults,
    ScoredAttentionExplanation,
    ScoredExplanation,
)

Scored = ScoredExplanation | ScoredAttentionExplanation

SECONDS_TO_CLOSE = 5.0
"""How long writes that nobody waits for any more may take at the end."""


class ExplanationWriter:
    """Adds explanations to explanation files, local or on a blob store; a reader sees a file as it
    was or as it is.

    A write that has begun is finished although its caller goes: nobody could tell whether it
    happened. `changed` is told of every file that was or may have been written, before `put` ends.
    """

    def __init__(
        self, blobs: Blobs, changed: Callable[[Component, Folder], Awaitable[None]]
    ) -> None:
        self._blobs = blobs
        self._changed = changed
        self._under_way: set[asyncio.Task[bool]] = set()

    async def put(self, component: Component, folder: Folder, scored: Scored) -> bool:
        """Store an explanation; whether one of the same text was replaced.

        FailedPrecondition where the folder can't be written to or the file holds explanations of
        the other kind, DataLoss where the file that is there can't be read (it is left as it is),
        ResourceExhausted where the file would become too large to be read, Unavailable where the
        storage fails or other writers are faster again and again.
        """
        task = asyncio.create_task(self._put(component, folder, scored))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=SECONDS_TO_CLOSE)

    async def _put(self, component: Component, folder: Folder, scored: Scored) -> bool:
        merging = _Merging(component, folder, scored, self._blobs.store.max_bytes)
        try:
            await self._blobs.update(folder, component.explanation_file, merging)
        finally:
            # A write that failed may have happened all the same.
            await self._changed(component, folder)
        return merging.replaced

    def _ended(self, task: asyncio.Task[bool]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Its caller may have gone.
            task.exception()


class _Merging:
    """Makes the new content of a file from the old one, as often as the file changed meanwhile."""

    def __init__(
        self, component: Component, folder: Folder, scored: Scored, max_bytes: int
    ) -> None:
        self._component = component
        self._folder = folder
        self._scored = scored
        self._max_bytes = max_bytes
        self._begun = False
        self.replaced = False

    def __call__(self, content: bytes | None) -> bytes:
        existing = None if content is None else decode(content, self._component, self._folder)
        before = None
        for each in existing.scored_explanations if existing else []:
            if each.explanation == self._scored.explanation:
                before = each
        # What this writer itself stored in an attempt whose answer was lost replaced nothing.
        if not (self._begun and before is not None and encode(before) == encode(self._scored)):
            self.replaced = before is not None
        self._begun = True
        merged = encode(self._merged(existing)) + b"\n"
        if len(merged) > self._max_bytes:
            name = self._folder.file_name(self._component.explanation_file)
            raise too_large(name, len(merged), self._max_bytes, "written")
        return merged

    def _merged(self, existing: SimulationResults | None) -> SimulationResults:
        identity = NeuronId(self._component.component_index, self._component.layer_index)
        if isinstance(self._scored, ScoredExplanation):
            if isinstance(existing, AttentionSimulationResults):
                raise self._of_the_other_kind("token pairs")
            added = NeuronSimulationResults(identity, [self._scored])
            return merge_explanations(existing, added)
        if isinstance(existing, NeuronSimulationResults):
            raise self._of_the_other_kind("tokens")
        pairs = AttentionSimulationResults(identity, [self._scored])
        return merge_explanations(existing, pairs)

    def _of_the_other_kind(self, kind: str) -> FailedPrecondition:
        name = self._folder.file_name(self._component.explanation_file)
        return FailedPrecondition(f"{name} holds explanations of {kind}.", field="component")
