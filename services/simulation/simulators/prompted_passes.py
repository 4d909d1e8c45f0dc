"""A batch of sequences through a local model: what is computed when, and what each cost."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from services.simulation.language_models.local.rows import Row, RowLogits, counted
from services.simulation.prompts.simulation import AllAtOncePrompt, OneAtATimePrompt
from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.interface import (
    FloatArray,
    SimulatedSequence,
    SimulationCost,
    TokenIssue,
)
from services.simulation.simulators.sequence_rows import (
    PlannedRow,
    PlannedSequence,
    SequencePlanner,
)
from services.simulation.simulators.token_pieces import PieceTokenizer
from services.simulation.simulators.value_reading import ValueReading

if TYPE_CHECKING:
    from services.simulation.language_models.local.model import LocalModel
    from services.simulation.language_models.local.prefixes import Prefix


@dataclass(frozen=True)
class PromptInUse:
    """A prompt in the tokens of a model; depends on the model's tokenizer and context alone."""

    prompt: AllAtOncePrompt | OneAtATimePrompt
    tokenizer: PieceTokenizer
    reading: ValueReading
    planner: SequencePlanner
    shared: tuple[int, ...]
    """Ids of what all explanations share."""


@dataclass
class _Result:
    """What is known of one sequence so far."""

    tokens: Sequence[str]
    probabilities: FloatArray
    issues: list[TokenIssue] = field(default_factory=list)
    calls: int = 0
    computed: int = 0
    reused: int = 0

    def add(self, planned: PlannedSequence, logits: Sequence[RowLogits], how: ValueReading) -> None:
        for row, values in zip(planned.rows, logits, strict=True):
            read = how.probabilities(values.values, values.branch_values)
            self.probabilities[list(row.tokens)] = read
            self.computed += values.computed
            self.reused += values.reused
        self.issues += planned.issues

    def done(self, seconds: float) -> SimulatedSequence:
        cost = SimulationCost(self.calls, self.computed, self.reused, seconds=seconds)
        return SimulatedSequence(self.tokens, self.probabilities, tuple(self.issues), cost)


def simulate_steps(
    model: LocalModel,
    used: PromptInUse,
    explanation: tuple[int, ...],
    batch: Sequence[Sequence[str]],
    room: int,
) -> Generator[None, None, list[SimulatedSequence]]:
    """The simulations of a batch, a forward pass a step; `room` ids are left for a row.

    What sequences share, and the passes, stand with the first one that had a row.
    """
    began = time.perf_counter()
    results = [_Result(tokens, np.zeros((len(tokens), NUM_VALUES))) for tokens in batch]
    prefix: Prefix | None = None
    payer: _Result | None = None
    for group in used.planner.groups(batch, room):
        rows = [_row(row, used) for _, planned in group for row in planned.rows]
        logits: list[RowLogits] = []
        if rows:
            if prefix is None or payer is None:
                payer = next(results[number] for number, planned in group if planned.rows)
                prefix = yield from model.prefix_steps([used.shared, explanation])
                payer.calls += prefix.calls
                payer.computed += prefix.computed
                # The rows count all of it as reused.
                payer.reused -= prefix.computed
            yield
            logits, calls = yield from counted(model.logits_steps(prefix, rows))
            payer.calls += calls
        start = 0
        for number, planned in group:
            end = start + len(planned.rows)
            results[number].add(planned, logits[start:end], used.reading)
            start = end
    seconds = time.perf_counter() - began
    total = sum(len(tokens) for tokens in batch)
    return [result.done(seconds * len(result.tokens) / total) for result in results]


def _row(row: PlannedRow, used: PromptInUse) -> Row:
    positions = np.array(row.positions, dtype=np.int64)
    return Row(row.ids, positions, used.reading.columns, used.reading.branch)
