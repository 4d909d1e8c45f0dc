"""Gives explanations their vectors, in the background."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

import structlog

from services.records.search.documents import Document
from services.records.search.embedder import MAX_CHARACTERS, Embedder, EmbeddingFailed
from services.records.search.index import ExplanationIndex
from services.records.search.metrics import NOT_EMBEDDED_EXPLANATIONS
from shared.errors import Unavailable

MAX_ATTEMPTS = 3
"""How often a text that the model fails at is tried, on its own."""

AGAIN_SECONDS = 3600.0
"""How long after that it is tried once more."""

_AT_ONCE = 32
# A query waits for the batch that is with the model: a second at most.
_CHARACTERS_AT_ONCE = 6 * MAX_CHARACTERS
_IDLE_SECONDS = 0.5
_AFTER_FAILURE_SECONDS = 5.0

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


class PendingVectors:
    """Embeds what the index has no vectors of, the newest first.

    Where the model fails at a batch, its texts are tried one by one, after all others. A text that
    it fails at on its own is found by words only; one that changes is another text.
    """

    def __init__(
        self,
        index: ExplanationIndex,
        embedder: Embedder,
        executor: Executor,
        *,
        again_seconds: float = AGAIN_SECONDS,
    ) -> None:
        """`executor` is the one thread that changes the index."""
        self._index = index
        self._embedder = embedder
        self._executor = executor
        self._again_seconds = again_seconds
        self._again_at = 0.0
        self._attempts: dict[int, int] = {}
        self._disk_failed = False

    async def run(self) -> None:
        """Go on until cancelled; failures are logged."""
        while True:
            try:
                if not await self._embed_some():
                    await asyncio.sleep(_IDLE_SECONDS)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_seconds or _AFTER_FAILURE_SECONDS)
            except sqlite3.Error as error:
                # The vectors are searched, and embedded again after the next start.
                if not self._disk_failed:
                    _log.warning("vectors_not_kept", error=str(error))
                self._disk_failed = True
            except Exception:  # noqa: BLE001
                _log.exception("embedding_failed")
                await asyncio.sleep(_AFTER_FAILURE_SECONDS)
            else:
                self._disk_failed = False

    async def _embed_some(self) -> bool:
        """Whether there was anything to embed."""
        if self._again_at and time.monotonic() >= self._again_at:
            self._again_at = 0.0
            for number in await self._run(self._index.take_up_again):
                self._attempts[number] = MAX_ATTEMPTS - 1
        documents = await self._run(self._index.pending, _AT_ONCE, _CHARACTERS_AT_ONCE)
        if not documents:
            # Forgets those that are gone, too.
            self._attempts.clear()
            NOT_EMBEDDED_EXPLANATIONS.set(self._index.num_set_aside())
            return False
        batch = [document for document in documents if document.id not in self._attempts]
        if not batch:
            batch = [min(documents, key=lambda document: self._attempts[document.id])]
        # Those of like length together: the model pads them to the longest.
        batch.sort(key=lambda document: len(document.text))
        try:
            vectors = await self._embedder.embed(
                [document.text for document in batch], for_query=False
            )
        except EmbeddingFailed:
            await self._failed(batch)
            raise
        for document in batch:
            self._attempts.pop(document.id, None)
        await self._run(self._index.embed, batch, vectors)
        return True

    async def _failed(self, batch: list[Document]) -> None:
        if len(batch) > 1:
            self._attempts.update((document.id, 0) for document in batch)
            return
        (document,) = batch
        attempts = self._attempts[document.id] = self._attempts.get(document.id, 0) + 1
        if attempts < MAX_ATTEMPTS:
            return
        del self._attempts[document.id]
        await self._run(self._index.set_aside, document)
        self._again_at = self._again_at or time.monotonic() + self._again_seconds
        NOT_EMBEDDED_EXPLANATIONS.set(self._index.num_set_aside())
        _log.warning(
            "explanation_not_embedded",
            layer_index=document.file.layer_index,
            component_index=document.file.component_index,
            position=document.ordinal,
            attempts=attempts,
            again_after_seconds=self._again_seconds,
            detail="the sentence model fails at it; it is found by words only",
        )

    async def _run(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
