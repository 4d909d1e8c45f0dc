"""A local model as every language model is asked: choices and texts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from services.simulation.language_models.interface import (
    Choice,
    Generation,
    GenerationOptions,
    Prompt,
)
from services.simulation.language_models.local.worker import DeviceWorker
from services.simulation.model_loading import LoadAttempts
from shared.errors import Unavailable

if TYPE_CHECKING:
    from services.simulation.language_models.local.model import LocalModel

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_LAST_PASS_SECONDS = 30.0

DEFAULT_CACHE_MEGABYTES = 512
DEFAULT_BATCH_TOKENS = 2048


class LocalLanguageModel:
    """A model of a local folder, in one thread that serves its callers in turn.

    Nothing is loaded before `start` or the first call; torch isn't imported before either.
    """

    def __init__(
        self,
        path: str,
        device: str = "auto",
        dtype: str = "float32",
        *,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        cache_megabytes: int = DEFAULT_CACHE_MEGABYTES,
    ) -> None:
        self.path = path
        self._device = device
        self._dtype = dtype
        self._batch_tokens = batch_tokens
        self._cache_bytes = cache_megabytes * 1024 * 1024
        self._worker = DeviceWorker(f"language-model-{path}")
        self._model: LocalModel | None = None
        self._attempts = LoadAttempts()

    @property
    def version(self) -> str:
        """The folder's name, and a hash of what is in it once it is loaded."""
        name = self.path.rstrip("/").rsplit("/", 1)[-1]
        return f"{name}@{self._model.fingerprint[:12]}" if self._model else name

    @property
    def state(self) -> str:
        """`loading`, `ready` or `failed: why`."""
        if self._model is not None:
            return "ready"
        failure = self._attempts.failure
        return f"failed: {failure}" if failure else "loading"

    @property
    def model(self) -> LocalModel | None:
        """The model once it is loaded; only work that `run` runs may compute with it."""
        return self._model

    def start(self) -> None:
        """Begin to load; a call that comes earlier waits for it."""
        self._worker.submit(self._load_steps).add_done_callback(self._report)

    async def close(self) -> None:
        """Stop after the running forward pass."""
        await asyncio.to_thread(self._worker.close, _LAST_PASS_SECONDS)

    async def run(self, work: Callable[[LocalModel], Generator[None, None, T]]) -> T:
        """What the generator that `work` makes of the model returns.

        It runs in the model's thread; where it yields, other callers' work takes its turn. It ends
        there if the caller is cancelled.

        Raises:
            Unavailable: the model can't be loaded, or is closed.
        """
        return await self._worker.run(lambda: self._steps(work))

    def submit(self, work: Callable[[LocalModel], Generator[None, None, T]]) -> Future[T]:
        """As `run`, without waiting for it."""
        return self._worker.submit(lambda: self._steps(work))

    async def choose(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[Choice]:
        """For each prompt, how probable the choices are as what comes next; see `choosing`."""
        from services.simulation.language_models.local import choosing

        began = time.perf_counter()
        return await self.run(lambda model: choosing.choose_steps(model, prompts, choices, began))

    async def generate(
        self, prompts: Sequence[Prompt], options: GenerationOptions
    ) -> list[Generation]:
        """A text for each prompt; a JSON schema is not enforced."""
        from services.simulation.language_models.local import writing

        return await self.run(lambda model: writing.write_steps(model, prompts, options))

    def _steps(
        self, work: Callable[[LocalModel], Generator[None, None, T]]
    ) -> Generator[None, None, T]:
        model = yield from self._load_steps()
        return (yield from work(model))

    def _load_steps(self) -> Generator[None, None, LocalModel]:
        if self._model is None:
            self._model = self._attempts.attempt(self._load)
        yield
        return self._model

    def _load(self) -> LocalModel:
        try:
            from services.simulation.language_models.local.model import LocalModel

            return LocalModel.load(
                self.path,
                self._device,
                self._dtype,
                batch_tokens=self._batch_tokens,
                cache_bytes=self._cache_bytes,
            )
        except Unavailable:
            raise
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise Unavailable(
                f"the model in {self.path} can't be loaded: {why}"[:600],
                reason="MODEL_NOT_LOADED",
                metadata={"path": self.path},
            ) from error

    def _report(self, loading: Future[Any]) -> None:
        if not loading.cancelled() and loading.exception() is not None:
            # Later calls try again, and answer UNAVAILABLE if that fails too.
            _log.error("language_model_not_loaded", path=self.path, error=str(loading.exception()))
