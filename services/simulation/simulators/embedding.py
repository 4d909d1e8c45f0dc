"""The embedding simulator: how close each word is in meaning to the explanation, and what it says.

It runs anywhere, offline, in a fraction of a second. It knows words and their topics. It does not
reason: it doesn't understand negation, grammar ("verbs in the past tense"), positions, counting,
or what comes next in a text, and it reads the first 256 word pieces of an explanation. Its
distributions are made from one number a token, by `services.simulation.simulators.evidence`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib import resources
from threading import Event
from typing import ClassVar

import structlog

from services.simulation.model_loading import LoadAttempts
from services.simulation.simulators.cues import Cues
from services.simulation.simulators.evidence import (
    distributions,
    facets,
    token_activity,
    word_scores,
)
from services.simulation.simulators.interface import (
    OneByOne,
    SimulatedSequence,
    SimulationCost,
    check_request,
)
from services.simulation.simulators.sentence_encoder import EncodingCost, SentenceEncoder
from services.simulation.simulators.words import WordSequence, readable, reading
from shared.errors import Unavailable

_log = structlog.get_logger(__name__)

_FORMULA_VERSION = "2"
_TOKENS_AT_ONCE = 2048


class EmbeddingSimulator(OneByOne):
    """Sentence embeddings of the explanation and of each word, alone and in its sequence."""

    kind: ClassVar[str] = "embedding"
    has_exact_probabilities: ClassVar[bool] = False
    language_model: ClassVar[None] = None
    capabilities: ClassVar[tuple[str, ...]] = ()
    description: ClassVar[str] = (
        "Compares each word in meaning with the explanation by sentence embeddings, and matches "
        "what it quotes; knows topics and spellings, not grammar, negation or position."
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = f"{SentenceEncoder.version()}, formula {_FORMULA_VERSION}"
        self.prompt_version = ""
        self.state = "loading"
        # One thread: the model fills all cores by itself, and its caches need no lock.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"simulator-{name}")
        self._encoder: SentenceEncoder | None = None
        self._attempts = LoadAttempts()
        self._common = tuple(
            resources.files("services.simulation.simulators")
            .joinpath("background_words.txt")
            .read_text(encoding="utf-8")
            .split()
        )

    def start(self) -> None:
        """Load the model in the background; a call that comes earlier waits for it."""
        self._worker.submit(self._loaded).add_done_callback(self._report_loading)

    async def close(self) -> None:
        """Stop after the running call of the model."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """One result a sequence, in order; see `Simulator.simulate`."""
        check_request(explanation, sequences)
        stop = Event()
        loop = asyncio.get_running_loop()
        try:
            for batch in _batches(sequences):
                work = partial(self._simulate, explanation, batch, stop.is_set)
                for result in await loop.run_in_executor(self._worker, work):
                    yield result
        finally:
            # Reached on cancellation too: the thread then stops between two calls of the model.
            stop.set()

    def _loaded(self) -> SentenceEncoder:
        if self._encoder is None:
            try:
                self._encoder = self._attempts.attempt(self._load)
            except Unavailable as error:
                self.state = f"failed: {error.message}"
                raise
            self.state = "ready"
        return self._encoder

    def _load(self) -> SentenceEncoder:
        try:
            return SentenceEncoder.load()
        # Broken weights raise errors of many classes.
        except Exception as error:
            raise Unavailable(
                f"the sentence model can't be loaded: {error}", reason="MODEL_NOT_LOADED"
            ) from error

    def _report_loading(self, loading: Future[SentenceEncoder]) -> None:
        if loading.cancelled():
            return
        error = loading.exception()
        if error is None:
            _log.info("simulator_loaded", simulator=self.name, device=loading.result().device)
        else:
            # Later calls try again, and answer UNAVAILABLE if that fails too.
            _log.error("simulator_not_loaded", simulator=self.name, error=str(error))

    def _simulate(
        self, explanation: str, batch: Sequence[Sequence[str]], stopped: Callable[[], bool]
    ) -> list[SimulatedSequence]:
        encoder = self._loaded()
        began = time.perf_counter()
        cost = EncodingCost()
        explanation = readable(explanation)
        cues = Cues.from_explanation(explanation)
        facet_vectors = encoder.texts(facets(explanation), cost, stopped)
        common = encoder.texts(self._common, cost, stopped)
        word_sequences = [WordSequence.from_tokens(tokens) for tokens in batch]
        contexts = encoder.words_in_context([s.words for s in word_sequences], cost, stopped)
        readings = [[reading(word) for word in s.words] for s in word_sequences]
        vocabulary = list(dict.fromkeys(word for words in readings for word in words))
        scores = word_scores(encoder.texts(vocabulary, cost, stopped), facet_vectors, common)
        number = {word: position for position, word in enumerate(vocabulary)}
        results = []
        for tokens, sequence, context, words in zip(
            batch, word_sequences, contexts, readings, strict=True
        ):
            activity = token_activity(
                sequence,
                scores[[number[word] for word in words]],
                (context @ facet_vectors[0]).astype("float64"),
                cues,
            )
            results.append(SimulatedSequence(tokens, distributions(activity)))
        return _with_costs(results, cost, time.perf_counter() - began)


def _batches(sequences: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    batches: list[list[Sequence[str]]] = []
    filled = _TOKENS_AT_ONCE
    for tokens in sequences:
        if filled + len(tokens) > _TOKENS_AT_ONCE:
            batches.append([])
            filled = 0
        batches[-1].append(tokens)
        filled += len(tokens)
    return batches


def _with_costs(
    results: list[SimulatedSequence], cost: EncodingCost, seconds: float
) -> list[SimulatedSequence]:
    """Seconds by tokens; calls and word pieces, which sequences share, with the first one."""
    total = sum(len(result.tokens) for result in results)
    return [
        SimulatedSequence(
            result.tokens,
            result.probabilities,
            result.issues,
            SimulationCost(
                calls=0 if position else cost.calls,
                prompt_tokens_computed=0 if position else cost.computed,
                prompt_tokens_reused=0 if position else cost.reused,
                seconds=seconds * len(result.tokens) / total,
            ),
        )
        for position, result in enumerate(results)
    ]
