"""The token head: a token classifier that reads explanation and sequence as a pair.

Each piece of the sequence gets a distribution over the labels 0 to 10, and each of the subject's
tokens the one of the last piece that reaches into it. Many explanations of one sequence, like many
sequences of one explanation, run as rows of one batch. A sequence that is longer than the model
reads is cut into windows that overlap; a piece is read in the window where it has more around it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import ClassVar

import numpy as np
import structlog

from services.simulation.model_loading import LoadAttempts
from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.interface import (
    SimulatedSequence,
    SimulationCost,
    TokenIssue,
    TokenOutcome,
    check_explanations,
    check_request,
    naming,
)
from services.simulation.simulators.piece_alignment import NO_PIECE, AlignedPieces
from services.simulation.simulators.token_head_model import (
    FloatArray,
    TokenClassifier,
    fingerprint,
)
from shared.errors import ResourceExhausted, Unavailable

_log = structlog.get_logger(__name__)

_VERSION = "1"
_PIECES_AT_ONCE = 8192
"""Of a batch of rows, padding included; a longer row is a batch of its own."""
_TOKENS_AT_ONCE = 8192
_LEAST_WINDOW = 8
_NO_PIECE = "no piece of the model's tokenizer reaches into it"
_NOT_FINITE = "the model computed no finite number"


class _Stopped(Exception):
    """Nobody waits for the result any more."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A window [start, end) of the pieces of one pair, and the part [first, last) read from it."""

    pair: int
    start: int
    end: int
    first: int
    last: int


class TokenHeadSimulator:
    """A local token-classification model with 11 labels."""

    kind: ClassVar[str] = "token_head"
    has_exact_probabilities: ClassVar[bool] = True
    language_model: ClassVar[None] = None
    description: ClassVar[str] = (
        "A token classifier reads explanation and sequence as a pair and gives each token a "
        "distribution; as good as what it was trained on."
    )

    def __init__(self, name: str, path: str | Path, device: str = "auto") -> None:
        self.name = name
        self.prompt_version = ""
        self.state = "loading"
        self.capabilities: tuple[str, ...] = ()
        self._folder = Path(path)
        self._device = device
        self.model = self._version()
        # One thread: the model fills all cores by itself.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"simulator-{name}")
        self._classifier: TokenClassifier | None = None
        self._attempts = LoadAttempts()

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
        async for result in self._results([(explanation, tokens) for tokens in sequences]):
            yield result

    async def simulate_explanations(
        self, explanations: Sequence[str], tokens: Sequence[str]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """One result an explanation, in order, all in one batch where it fits."""
        check_explanations(explanations, tokens)
        pairs = [(explanation, tokens) for explanation in explanations]
        async for result in self._results(pairs, many=True):
            yield result

    async def _results(
        self, pairs: Sequence[tuple[str, Sequence[str]]], *, many: bool = False
    ) -> AsyncGenerator[SimulatedSequence, None]:
        stop = Event()
        loop = asyncio.get_running_loop()
        done = 0
        try:
            for group in _groups(pairs):
                work = partial(self._simulate, group, stop.is_set, done if many else None)
                done += len(group)
                for result in await loop.run_in_executor(self._worker, work):
                    yield result
        finally:
            # Reached on cancellation too: the thread then stops between two calls of the model.
            stop.set()

    def _version(self) -> str:
        return f"{self._folder.name} ({fingerprint(self._folder) or 'unread'}), way {_VERSION}"

    def _loaded(self) -> TokenClassifier:
        if self._classifier is None:
            try:
                self._classifier = self._attempts.attempt(self._load)
            except Unavailable as error:
                self.state = f"failed: {error.message}"
                raise
            self.model = self._version()
            self.capabilities = (
                f"reads {self._classifier.max_pieces} pieces at once; longer sequences in windows",
            )
            self.state = "ready"
        return self._classifier

    def _load(self) -> TokenClassifier:
        try:
            return TokenClassifier.load(self._folder, self._device)
        # torch and transformers raise errors of many classes.
        except Exception as error:
            raise Unavailable(
                f"the token head {self.name!r} can't be loaded: {error}",
                reason="MODEL_NOT_LOADED",
            ) from error

    def _report_loading(self, loading: Future[TokenClassifier]) -> None:
        if loading.cancelled():
            return
        error = loading.exception()
        if error is None:
            _log.info("simulator_loaded", simulator=self.name, device=loading.result().device)
        else:
            # Later calls try again, and answer UNAVAILABLE if that fails too.
            _log.error("simulator_not_loaded", simulator=self.name, error=str(error))

    def _simulate(
        self,
        pairs: Sequence[tuple[str, Sequence[str]]],
        stopped: Callable[[], bool],
        first: int | None,
    ) -> list[SimulatedSequence]:
        """Of many explanations, `first` is the position of the first one among them."""
        if stopped():
            raise _Stopped
        classifier = self._loaded()
        began = time.perf_counter()
        tokenizer = classifier.tokenizer
        heads = {text: tokenizer.text_ids(text) for text in dict.fromkeys(e for e, _ in pairs)}
        pieces = {id(tokens): tokenizer.align(tokens) for _, tokens in pairs}
        explained = [heads[explanation] for explanation, _ in pairs]
        read = [pieces[id(tokens)] for _, tokens in pairs]
        rows: list[_Row] = []
        for number, (head, own) in enumerate(zip(explained, read, strict=True)):
            with nullcontext() if first is None else naming(first + number):
                room = _room(classifier, len(head))
            rows += _windows(number, len(own.ids), room)
        found = [np.full((len(own.ids), NUM_VALUES), np.nan) for own in read]
        cost = SimulationCost()
        template = tokenizer.template
        for batch in _batches(rows, lambda row: len(explained[row.pair]) + row.end - row.start):
            if stopped():
                raise _Stopped
            filled = [
                template.filled(explained[row.pair], read[row.pair].ids[row.start : row.end])
                for row in batch
            ]
            computed = sum(len(ids) for ids, _ in filled)
            cost += SimulationCost(calls=1, prompt_tokens_computed=computed)
            for row, probabilities in zip(batch, classifier.distributions(filled), strict=True):
                offset = template.pieces_before_second + len(explained[row.pair]) - row.start
                found[row.pair][row.first : row.last] = probabilities[
                    offset + row.first : offset + row.last
                ]
        results = [
            _result(tokens, own, probabilities)
            for (_, tokens), own, probabilities in zip(pairs, read, found, strict=True)
        ]
        return _with_costs(results, cost, time.perf_counter() - began)


def _room(classifier: TokenClassifier, head: int) -> int:
    """Pieces of a sequence that fit beside an explanation of `head` pieces."""
    room = classifier.max_pieces - classifier.tokenizer.template.pieces - head
    if room < _LEAST_WINDOW:
        most = head + room - _LEAST_WINDOW
        raise ResourceExhausted(
            f"explanation has {head} pieces of the model's tokenizer; beside a sequence it reads "
            f"{max(most, 0)} at most",
            field="explanation",
            reason="EXPLANATION_TOO_LONG",
        )
    return room


def _windows(pair: int, pieces: int, room: int) -> list[_Row]:
    """Windows of `room` pieces; the part of two that overlap is shared half and half."""
    if pieces <= room:
        return [_Row(pair, 0, pieces, 0, pieces)] if pieces else []
    overlap = room // 4
    rows: list[_Row] = []
    start = 0
    while True:
        end = min(start + room, pieces)
        first = rows[-1].last if rows else 0
        last = pieces if end == pieces else end - overlap // 2
        rows.append(_Row(pair, start, end, first, last))
        if end == pieces:
            return rows
        # The last window ends with the sequence, and is as full as the others.
        start = min(start + room - overlap, pieces - room)


def _batches(rows: Sequence[_Row], pieces: Callable[[_Row], int]) -> list[list[_Row]]:
    """Rows of about the same length together, so that little is padded."""
    batches: list[list[_Row]] = []
    for row in sorted(rows, key=pieces, reverse=True):
        # The first of a batch is its longest.
        if not batches or (len(batches[-1]) + 1) * pieces(batches[-1][0]) > _PIECES_AT_ONCE:
            batches.append([])
        batches[-1].append(row)
    return batches


def _groups(
    pairs: Sequence[tuple[str, Sequence[str]]],
) -> list[list[tuple[str, Sequence[str]]]]:
    """What is answered together: results come while the rest is computed."""
    groups: list[list[tuple[str, Sequence[str]]]] = []
    filled = _TOKENS_AT_ONCE
    for pair in pairs:
        if filled + len(pair[1]) > _TOKENS_AT_ONCE:
            groups.append([])
            filled = 0
        groups[-1].append(pair)
        filled += len(pair[1])
    return groups


def _result(
    tokens: Sequence[str],
    pieces: AlignedPieces,
    by_piece: FloatArray,
) -> SimulatedSequence:
    owner = pieces.piece_of_token
    has_piece = owner != NO_PIECE
    probabilities = np.zeros((len(tokens), NUM_VALUES))
    probabilities[has_piece] = by_piece[owner[has_piece]]
    unread = np.isnan(probabilities.sum(axis=1))
    probabilities[unread] = 0.0
    issues = [
        TokenIssue(int(position), TokenOutcome.MALFORMED, _NOT_FINITE)
        if unread[position]
        else TokenIssue(int(position), TokenOutcome.MISSING, _NO_PIECE)
        for position in np.flatnonzero(unread | ~has_piece)
    ]
    return SimulatedSequence(tokens, probabilities, tuple(issues))


def _with_costs(
    results: list[SimulatedSequence], cost: SimulationCost, seconds: float
) -> list[SimulatedSequence]:
    """Seconds by tokens; calls and pieces, which results share, with the first one."""
    total = sum(len(result.tokens) for result in results)
    return [
        SimulatedSequence(
            result.tokens,
            result.probabilities,
            result.issues,
            SimulationCost(
                calls=0 if position else cost.calls,
                prompt_tokens_computed=0 if position else cost.prompt_tokens_computed,
                seconds=seconds * len(result.tokens) / total,
            ),
        )
        for position, result in enumerate(results)
    ]
