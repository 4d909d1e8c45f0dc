"""Scoring an explanation, from its sequences to its scores."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulation.calibration.calibrations import CalibrationKind, LinearCalibration
from services.simulation.calibration.content import CalibrationCache
from services.simulation.calibration.fitted import FittedCalibration, sequence_hash
from services.simulation.errors import InvalidInput
from services.simulation.scores.simulation_scores import UndefinedReason
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.scoring.simulation_scoring import (
    ScoredExplanation,
    ScoringProgress,
    ScoringTask,
    score_explanation,
)
from services.simulation.simulators.interface import (
    OneByOne,
    SimulatedSequence,
    SimulationCost,
    TokenIssue,
    TokenOutcome,
)
from shared.errors import FailedPrecondition, NeuropilError


class DigitSimulator(OneByOne):
    """Predicts the number that a token is; a token that is none gets no distribution."""

    kind: ClassVar[str] = "digits"
    model = "arithmetic 1"
    prompt_version = "p1"
    has_exact_probabilities: ClassVar[bool] = True
    description: ClassVar[str] = "Reads numbers."
    name = "digits"
    language_model = None
    capabilities: tuple[str, ...] = ()
    state = "ready"

    def __init__(self) -> None:
        self.simulated: list[tuple[str, ...]] = []

    def start(self) -> None: ...

    async def close(self) -> None: ...

    async def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        for tokens in sequences:
            self.simulated.append(tuple(tokens))
            probabilities = np.zeros((len(tokens), 11))
            issues = []
            for position, token in enumerate(tokens):
                if token.isdigit():
                    probabilities[position, int(token)] = 1.0
                else:
                    issues.append(TokenIssue(position, TokenOutcome.MALFORMED, "no number"))
            cost = SimulationCost(calls=1, prompt_tokens_computed=len(tokens))
            yield SimulatedSequence(tokens, probabilities, tuple(issues), cost)


def labeled(*sequences: tuple[str, list[float]]) -> LabeledSequences:
    return LabeledSequences(
        tuple(tuple(text.split()) for text, _ in sequences),
        tuple(np.asarray(values, dtype=np.float64) for _, values in sequences),
    )


CALIBRATION = labeled(("1 2 3", [3.0, 5.0, 7.0]), ("0 10", [1.0, 21.0]))
SCORED = labeled(("4 5 6", [9.0, 11.0, 13.0]), ("7 1", [15.0, 3.0]), ("2 2", [5.0, 5.0]))


async def run(
    task: ScoringTask,
    simulator: DigitSimulator | None = None,
    cache: CalibrationCache | None = None,
) -> tuple[list[ScoringProgress], ScoredExplanation]:
    simulator = simulator or DigitSimulator()
    events = [event async for event in score_explanation(task, simulator, cache)]
    result = events.pop()
    assert isinstance(result, ScoredExplanation)
    progress = [event for event in events if isinstance(event, ScoringProgress)]
    assert len(progress) == len(events)
    return progress, result


def task(
    kind: CalibrationKind = CalibrationKind.LINEAR,
    calibration: LabeledSequences = CALIBRATION,
    scored: LabeledSequences = SCORED,
    min_coverage: float = 0.9,
) -> ScoringTask:
    split = ScoringSplit(calibration, scored, "data/records")
    return ScoringTask("numbers", split, kind, seed=7, min_coverage=min_coverage)


async def test_calibration_makes_a_right_simulation_perfect() -> None:
    progress, result = await run(task())
    assert [(p.completed, p.stage) for p in progress] == [
        (0, "simulate_calibration"),
        (1, "simulate_calibration"),
        (2, "simulate_calibration"),
        (2, "fit"),
        (2, "simulate"),
        (3, "simulate"),
        (4, "simulate"),
        (5, "simulate"),
        (5, "score"),
    ]
    assert {p.total for p in progress} == {5}
    assert result.scores.overall.correlation.value == pytest.approx(1.0)
    assert result.scores.overall.rsquared.value == pytest.approx(1.0)
    before = result.uncalibrated_scores
    assert before.correlation.value == pytest.approx(1.0)
    assert before.rsquared.value is not None
    assert before.rsquared.value < 0.9
    third = result.scores[2]
    assert third.correlation.reason == UndefinedReason.UNDEFINED_CONSTANT_SIMULATION
    assert third.rsquared.value == pytest.approx(1.0)
    provenance = result.provenance
    assert isinstance(provenance.calibration, LinearCalibration)
    assert provenance.calibration.slope == pytest.approx(2.0)
    assert (provenance.fitted_tokens, provenance.calibration_sequences) == (5, 2)
    assert (provenance.scored_sequences, provenance.dataset, provenance.seed) == (
        3,
        "data/records",
        7,
    )
    assert (provenance.simulator_model, provenance.prompt_version) == ("arithmetic 1", "p1")
    assert provenance.cost == SimulationCost(calls=5, prompt_tokens_computed=12)


async def test_no_calibration_simulates_no_calibration_sequences() -> None:
    simulator = DigitSimulator()
    progress, result = await run(task(CalibrationKind.NONE), simulator)
    assert simulator.simulated == list(SCORED.tokens)
    assert progress[0] == ScoringProgress(0, 3, "simulate")
    assert result.scores.overall == result.uncalibrated_scores
    assert result.provenance.fitted_tokens == 0


async def test_tokens_without_a_distribution_take_no_part() -> None:
    gaps = labeled(("4 x 6", [9.0, 1e6, 13.0]), ("7 1 5", [15.0, 3.0, 11.0]))
    _, result = await run(task(scored=gaps, min_coverage=0.5))
    assert result.scores.overall.rsquared.value == pytest.approx(1.0)
    assert result.scores[0].correlation.value == pytest.approx(1.0)
    assert np.isnan(result.simulations[0].expected_activations[1])
    assert result.reports[0].malformed == 1
    with pytest.raises(FailedPrecondition, match="5 of 6 tokens"):
        await run(task(scored=gaps))
    with pytest.raises(FailedPrecondition, match="5 of 6 tokens"):
        await run(task(calibration=gaps))


async def test_activations_that_are_not_finite() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        holes = labeled(("1 2 3 4", [3.0, bad, 7.0, 9.0]))
        _, result = await run(task(calibration=holes))
        assert result.provenance.fitted_tokens == 3
        assert result.scores.overall.rsquared.value == pytest.approx(1.0)
        _, result = await run(task(scored=SCORED + holes))
        assert (
            result.scores.overall.correlation.reason == UndefinedReason.UNDEFINED_NON_FINITE_INPUT
        )
        assert result.scores[0].rsquared.value == pytest.approx(1.0)
        with pytest.raises(InvalidInput, match="finite true activation"):
            await run(task(calibration=labeled(("1", [bad]))))


async def test_a_second_score_of_the_same_explanation_fits_nothing() -> None:
    cache, simulator = CalibrationCache(), DigitSimulator()
    _, first = await run(task(), simulator, cache)
    simulator.simulated.clear()
    progress, second = await run(task(), simulator, cache)
    assert simulator.simulated == list(SCORED.tokens)
    assert progress[0] == ScoringProgress(0, 3, "simulate")
    assert (first.provenance.calibration_reused, second.provenance.calibration_reused) == (0, 1)
    assert second.provenance.fitted == first.provenance.fitted
    assert second.provenance.cost.calls == 3
    assert second.scores.overall == first.scores.overall


@pytest.mark.parametrize(
    "change",
    [
        {"explanation": "numbers "},
        {"calibration_kind": CalibrationKind.PERCENTILE},
        {"split": ScoringSplit(CALIBRATION.take([0]), SCORED)},
        # The same tokens, and one activation another.
        {
            "split": ScoringSplit(
                labeled(("1 2 3", [3.0, 5.0, 7.5]), ("0 10", [1.0, 21.0])), SCORED, "data/records"
            )
        },
        {"model": "arithmetic 2"},
        {"prompt_version": "p2"},
        {"name": "other"},
        {"capabilities": ("one at a time",)},
    ],
)
async def test_what_differs_is_fitted_again(change: dict[str, Any]) -> None:
    cache, simulator = CalibrationCache(), DigitSimulator()
    await run(task(), simulator, cache)
    changed = task()
    for field, value in change.items():
        if hasattr(simulator, field):
            setattr(simulator, field, value)
        else:
            changed = replace(changed, **{field: value})
    _, result = await run(changed, simulator, cache)
    assert not result.provenance.calibration_reused
    assert len(cache) == 2


async def test_a_remembered_fit_must_cover_what_is_asked_for() -> None:
    cache = CalibrationCache()
    gaps = labeled(("4 x 6", [9.0, 1e6, 13.0]), ("7 1 5", [15.0, 3.0, 11.0]))
    await run(task(calibration=gaps, min_coverage=0.5), cache=cache)
    with pytest.raises(FailedPrecondition, match="5 of 6 tokens"):
        await run(task(calibration=gaps), cache=cache)


async def test_a_given_calibration_is_applied_as_it_is() -> None:
    fitted = FittedCalibration(LinearCalibration(2.0, 1.0), 9, (1, 2, 3))
    simulator = DigitSimulator()
    given = replace(task(calibration=LabeledSequences()), calibration=fitted)
    _, result = await run(given, simulator)
    assert simulator.simulated == list(SCORED.tokens)
    assert result.scores.overall.rsquared.value == pytest.approx(1.0)
    assert result.provenance.fitted == fitted
    assert result.provenance.calibration_reused
    assert result.provenance.calibration_sequences == 3
    own = FittedCalibration(LinearCalibration(2.0, 1.0), 9, (sequence_hash(SCORED.tokens[1]),))
    with pytest.raises(InvalidInput, match="position 1 of those to score") as caught:
        await run(replace(given, calibration=own, calibration_field="calibration_id"))
    assert caught.value.field == "calibration_id"
    assert caught.value.reason == "SCORED_SEQUENCE_IN_CALIBRATION"


async def test_scores_before_and_after_calibration_have_intervals() -> None:
    rng = np.random.default_rng(0)
    scored = labeled(
        *(
            (" ".join(map(str, digits)), (2 * digits + rng.normal(size=6)).tolist())
            for digits in rng.integers(0, 11, (24, 6))
        )
    )
    _, first = await run(task(scored=scored))
    _, again = await run(task(scored=scored))
    _, other = await run(replace(task(scored=scored), seed=8))
    assert first.scores.overall == again.scores.overall
    assert first.uncalibrated_scores == again.uncalibrated_scores
    for scores, others in (
        (first.scores.overall, other.scores.overall),
        (first.uncalibrated_scores, other.uncalibrated_scores),
    ):
        for name in ("correlation", "rsquared", "absolute_dev_explained"):
            own, theirs = getattr(scores, name), getattr(others, name)
            assert own.value == theirs.value
            assert own.interval.low < own.value < own.interval.high
            assert own.interval != theirs.interval
    assert first.scores[0].correlation.interval is None
    assert first.provenance.interval_method == "bootstrap-t"
    assert first.provenance.interval_resamples == 1000


async def test_nothing_to_score_or_to_calibrate_on() -> None:
    with pytest.raises(FailedPrecondition, match="no sequences to score") as caught:
        await run(task(scored=LabeledSequences()))
    assert caught.value.reason == "NO_SEQUENCES_TO_SCORE"
    with pytest.raises(FailedPrecondition, match="fit a linear calibration") as caught:
        await run(task(calibration=LabeledSequences()))
    assert caught.value.reason == "NO_SEQUENCES_TO_CALIBRATE"
    await run(task(CalibrationKind.NONE, calibration=LabeledSequences()))


def numbered(prefix: str, count: int) -> LabeledSequences:
    return labeled(*((f"{prefix}{i} x", [1.0, 0.0]) for i in range(count)))


def names(sequences: LabeledSequences) -> list[str]:
    return [tokens[0] for tokens in sequences.tokens]


def test_a_record_is_calibrated_and_scored_on_its_own_splits() -> None:
    split = ScoringSplit.from_record(numbered("T", 9), numbered("R", 7), "d")
    assert names(split.calibration) == ["T1", "T5", "R0", "R3"]
    assert names(split.scored) == ["T2", "T6", "R1", "R4"]


def test_a_scored_sequence_never_calibrates() -> None:
    # The random sample holds a top sequence again, on the other side.
    random = numbered("R", 3).take([0, 1, 2])
    twin = LabeledSequences(
        (("T2", "x"), *random.tokens[1:]), (np.asarray([1.0, 0.0]), *random.activations[1:])
    )
    split = ScoringSplit.from_record(numbered("T", 4), twin, "d")
    assert names(split.calibration) == ["T1"]
    assert names(split.scored) == ["T2", "R1"]
    with pytest.raises(InvalidInput) as caught:
        ScoringSplit.from_request(numbered("a", 3), numbered("b", 2) + numbered("a", 1))
    assert caught.value.field == "sequences.scored_sequences"
    assert caught.value.reason == "SCORED_SEQUENCE_IN_CALIBRATION"


def test_small_records_have_empty_splits() -> None:
    split = ScoringSplit.from_record(numbered("T", 3), LabeledSequences(), "d")
    assert len(split.calibration) == len(split.scored) == 0


@given(st.integers(0, 40), st.integers(0, 50))
def test_a_limit_spreads_over_the_split(count: int, limit: int) -> None:
    split = ScoringSplit(LabeledSequences(), numbered("S", count))
    limited = split.limited(limit)
    kept = [int(name[1:]) for name in names(limited.scored)]
    assert len(kept) == (min(count, limit) if limit else count)
    assert kept == sorted(set(kept))
    if kept and limit:
        # Evenly: what is left out at both ends differs by no more than one stride.
        assert abs(kept[0] - (count - 1 - kept[-1])) <= 1


@pytest.mark.parametrize(
    ("tokens", "lengths", "activations", "field"),
    [
        (["a"], [1], [1.0, 2.0], "s.activations"),
        (["a"], [2], [1.0], "s.sequence_lengths"),
        (["a"], [], [1.0], "s.sequence_lengths"),
        ([], [1], [], "s.sequence_lengths"),
    ],
)
def test_columns_must_agree(
    tokens: list[str], lengths: list[int], activations: list[float], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        LabeledSequences.from_columns(tokens, lengths, activations, "s")
    assert caught.value.field == field


def test_columns_become_sequences() -> None:
    sequences = LabeledSequences.from_columns(["a", "b", "c"], [2, 0, 1], [1, math.nan, 3], "s")
    assert sequences.tokens == (("a", "b"), (), ("c",))
    assert sequences.activations[2].tolist() == [3.0]


@pytest.mark.parametrize(
    ("calibration", "scored", "reason", "field"),
    [
        (CALIBRATION, labeled(("", [])), "EMPTY_SEQUENCE", "sequences.scored_sequences[0]"),
        (labeled(("1", [1]), ("", [])), SCORED, "EMPTY_SEQUENCE", ".calibration_sequences[1]"),
        (labeled(("1 2", [math.nan] * 2)), SCORED, "NO_CALIBRATION_TOKENS", ".calibration_seq"),
        (
            CALIBRATION,
            labeled(("1 " * 100_001, [1.0] * 100_001)),
            "SEQUENCE_TOO_LONG",
            ".scored_seq",
        ),
    ],
)
async def test_what_can_not_be_scored_is_refused_before_anything_is_paid_for(
    calibration: LabeledSequences, scored: LabeledSequences, reason: str, field: str
) -> None:
    simulator = DigitSimulator()
    asked = task(calibration=calibration, scored=scored)
    given = replace(asked, split=ScoringSplit(calibration, scored))
    with pytest.raises(NeuropilError) as caught:
        await run(given, simulator)
    assert caught.value.reason == reason
    assert field in caught.value.field
    assert " sequences[" not in f" {caught.value.message}"
    with pytest.raises(NeuropilError) as caught:
        await run(asked, simulator)
    # A record is no part of the request.
    assert (caught.value.reason, caught.value.field) == (reason, "")
    assert simulator.simulated == []


@pytest.mark.parametrize("largest", [8e307, 1.7e308])
async def test_a_calibration_that_leaves_the_range_names_what_the_request_has(
    largest: float,
) -> None:
    huge = labeled(("1 2", [-largest, largest]))
    with pytest.raises(InvalidInput) as caught:
        await run(replace(task(), split=ScoringSplit(huge, SCORED)))
    assert (caught.value.reason, caught.value.field) == (
        "OUT_OF_RANGE",
        "sequences.calibration_sequences",
    )
    steep = FittedCalibration(LinearCalibration(1e308, 0.0))
    with pytest.raises(InvalidInput) as caught:
        await run(replace(task(), calibration=steep, calibration_field="calibration_id"))
    assert (caught.value.reason, caught.value.field) == ("OUT_OF_RANGE", "calibration_id")


def test_a_sequence_that_is_in_a_record_twice_is_scored_once() -> None:
    top = labeled(*((f"a{n} b", [1.0, 0.5]) for n in range(8)))
    # Those of the validation split of the top sequences, in that of the random sample.
    repeated = ScoringSplit.from_record(top, LabeledSequences(), "d").scored
    random = labeled(*((f"c{n} d", [0.0, 0.1]) for n in range(6)))
    random = LabeledSequences(
        tuple(repeated.tokens[0] if n in (1, 4) else each for n, each in enumerate(random.tokens)),
        random.activations,
    )
    split = ScoringSplit.from_record(top, random, "d")
    assert len(set(split.scored.tokens)) == len(split.scored) >= len(repeated)
    assert split.scored.tokens[: len(repeated)] == repeated.tokens
    assert not set(split.scored.tokens) & set(split.calibration.tokens)
