"""Storing explanations beside those of other writers, in local folders."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from services.records.components import Component
from services.records.explanations import decode
from services.records.storage.blobs import local_path
from services.records.storage.folders import Folder
from shared.errors import FailedPrecondition, Unimplemented
from shared.formats.encoding import encode, merge_explanations, write_atomically
from shared.formats.records import NeuronId
from shared.formats.simulations import NeuronSimulationResults, ScoredExplanation


class ExplanationWriter:
    """Adds explanations to explanation files, one writer of a layer at a time.

    The layer's folder is locked, so that writers in other processes wait too; a reader sees the
    file as it was or as it is.
    """

    def __init__(self) -> None:
        # Waiting for another process's lock takes a thread: they are kept apart from the readers'.
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="write")

    async def put(self, component: Component, folder: Folder, scored: ScoredExplanation) -> bool:
        """Store an explanation; whether one of the same text was replaced.

        Unimplemented for a blob store, FailedPrecondition where the folder can't be written to or
        holds explanations of an attention head's token pairs, DataLoss where the file that is
        there can't be read: it is left as it is.
        """
        if folder.remote:
            raise Unimplemented(
                f"{folder.name} is on a blob store; explanations are stored in local folders only.",
                field="explanation_dataset",
            )
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, _put, component, folder, scored
        )

    def close(self) -> None:
        """End the threads; writes under way are finished."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _put(component: Component, folder: Folder, scored: ScoredExplanation) -> bool:
    # Checked before the layer's folder is made, and resolved: links inside may lead elsewhere.
    path = Path(local_path(folder, component.explanation_file))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            existing = _existing(path, component, folder)
            added = NeuronSimulationResults(
                NeuronId(component.component_index, component.layer_index), [scored]
            )
            write_atomically(path, encode(merge_explanations(existing, added)) + b"\n")
    except OSError as error:
        raise FailedPrecondition(
            f"{folder.name} can't be written to: {error.strerror}.",
            field="explanation_dataset",
            reason="NOT_WRITABLE",
        ) from error
    before = existing.scored_explanations if existing else []
    return any(each.explanation == scored.explanation for each in before)


def _existing(path: Path, component: Component, folder: Folder) -> NeuronSimulationResults | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    results = decode(data, component, folder)
    if not isinstance(results, NeuronSimulationResults):
        raise FailedPrecondition(
            f"{folder.file_name(component.explanation_file)} holds explanations of token pairs.",
            field="component",
        )
    return results


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
