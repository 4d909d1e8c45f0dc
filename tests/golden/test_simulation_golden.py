"""The simulation domain against the reference implementation and its older release."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.simulation.calibration.calibrated_simulator import (
    CalibratedNeuronSimulator,
    LinearCalibratedNeuronSimulator,
    NeuronSimulator,
    PercentileMatchingCalibratedNeuronSimulator,
    UncalibratedNeuronSimulator,
)
from services.simulation.calibration.calibrations import LinearCalibration
from services.simulation.language_models.interface import Choice
from services.simulation.normalized_activations import (
    max_activation,
    non_zero_proportion,
    normalize_activations,
    normalize_activations_symmetric,
)
from services.simulation.parsing.choice_logprobs import choice_probabilities
from services.simulation.prompts.judging import CHOICES
from services.simulation.scores.simulation_scores import (
    Score,
    UndefinedReason,
    score,
    score_sequences,
)
from services.simulation.scoring.attention_pairs import (
    PredictedPair,
    roc_auc,
    select_pairs,
)
from services.simulation.scoring.judged_choices import prediction
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs
from services.simulation.sequence_simulation import SequenceSimulation
from shared.formats.records import ActivationRecord, interleaved_split
from shared.formats.simulations import ActivationScale
from shared.formats.simulations import SequenceSimulation as FileSequenceSimulation
from shared.formats.token_pairs import attended_cap

pytestmark = pytest.mark.golden

RELEASES = {"reference": "simulation.json.gz", "older": "old_release.json.gz"}
TOLERANCE = 1e-9

SIMULATORS: dict[str, type[CalibratedNeuronSimulator]] = {
    "uncalibrated": UncalibratedNeuronSimulator,
    "linear": LinearCalibratedNeuronSimulator,
    "percentile_matching": PercentileMatchingCalibratedNeuronSimulator,
}


@pytest.fixture(params=list(RELEASES))
def release(request: pytest.FixtureRequest, golden: Path) -> dict[str, Any]:
    packed = (golden / "simulation" / RELEASES[request.param]).read_bytes()
    content: dict[str, Any] = json.loads(gzip.decompress(packed))
    return content


def number(value: Any) -> float:
    return float(value.replace("Infinity", "inf")) if isinstance(value, str) else float(value)


def numbers(values: Sequence[Any]) -> list[float]:
    return [number(value) for value in values]


class Recorded(NeuronSimulator):
    """Answers the simulations that the golden case holds."""

    def __init__(self, by_tokens: dict[str, Any]) -> None:
        self.by_tokens = by_tokens

    async def simulate(self, tokens: Sequence[str]) -> SequenceSimulation:
        return SequenceSimulation.from_file_class(
            file_class(self.by_tokens[json.dumps(list(tokens))])
        )


def file_class(stored: dict[str, Any]) -> FileSequenceSimulation:
    inner = stored["uncalibrated_simulation"]
    return FileSequenceSimulation(
        tokens=stored["tokens"],
        expected_activations=stored["expected_activations"],
        activation_scale=ActivationScale(stored["activation_scale"]),
        distribution_values=stored["distribution_values"],
        distribution_probabilities=stored["distribution_probabilities"],
        uncalibrated_simulation=None if inner is None else file_class(inner),
    )


def assert_same_score(ours: Score, theirs: Any) -> None:
    """Where the reference has no number (or, for a correlation, its stand-in 0.0) we have none."""
    if ours.reason is None:
        assert ours.value == pytest.approx(number(theirs), rel=TOLERANCE, abs=TOLERANCE)
    else:
        assert ours.value is None
        assert theirs is None or not math.isfinite(number(theirs)) or number(theirs) == 0.0


# The cases in which a score is undefined: (correlation, R squared and absolute deviation).
UNDEFINED: dict[str, tuple[UndefinedReason | None, UndefinedReason | None]] = {
    "const_pred": (UndefinedReason.UNDEFINED_CONSTANT_SIMULATION, None),
    "const_real": (UndefinedReason.UNDEFINED_CONSTANT_ACTIVATIONS, None),
    "both_const": (UndefinedReason.UNDEFINED_CONSTANT_SIMULATION, None),
    "zero_real": (
        UndefinedReason.UNDEFINED_CONSTANT_ACTIVATIONS,
        UndefinedReason.UNDEFINED_ZERO_ACTIVATIONS,
    ),
    "zero_pred": (UndefinedReason.UNDEFINED_CONSTANT_SIMULATION, None),
    "both_zero": (
        UndefinedReason.UNDEFINED_CONSTANT_SIMULATION,
        UndefinedReason.UNDEFINED_ZERO_ACTIVATIONS,
    ),
    "single": (UndefinedReason.UNDEFINED_SINGLE_TOKEN, None),
    "empty": (UndefinedReason.UNDEFINED_EMPTY, UndefinedReason.UNDEFINED_EMPTY),
    "nan_real": (
        UndefinedReason.UNDEFINED_NON_FINITE_INPUT,
        UndefinedReason.UNDEFINED_NON_FINITE_INPUT,
    ),
    "inf_pred": (
        UndefinedReason.UNDEFINED_NON_FINITE_INPUT,
        UndefinedReason.UNDEFINED_NON_FINITE_INPUT,
    ),
}


def test_scores(release: dict[str, Any]) -> None:
    cases = release["scores"]
    assert len(cases) == 19
    for case in cases:
        true, simulated = numbers(case["real"]), numbers(case["predicted"])
        if "error" in case["ev_correlation"]:
            with pytest.raises(ValueError, match="expected_activations has 2 values"):
                score(true, simulated)
            continue
        ours = score(true, simulated)
        reasons = UNDEFINED.get(case["name"], (None, None))
        assert ours.correlation.reason == reasons[0], case["name"]
        assert ours.rsquared.reason == reasons[1], case["name"]
        assert ours.absolute_dev_explained.reason == reasons[1], case["name"]
        assert_same_score(ours.correlation, case["ev_correlation"]["result"])
        assert_same_score(ours.rsquared, case["rsquared"]["result"])
        assert_same_score(ours.absolute_dev_explained, case["absolute_dev_explained"]["result"])


def test_score_of_no_sequences_is_empty(release: dict[str, Any]) -> None:
    result = release["aggregate_edge"][0]["result"]
    assert result["ev_correlation_score"] is None
    ours = score([], [])
    assert ours.preferred is None
    assert ours.rsquared.reason == UndefinedReason.UNDEFINED_EMPTY
    assert len(score_sequences([], [], [])) == 0


def test_calibration(release: dict[str, Any]) -> None:
    cases = release["calibration"]
    assert len(cases) == 27
    simulator = Recorded({})
    for case in cases:
        wrapped = SIMULATORS[case["calibrator"]](simulator)
        if case["case"] == "not_calibrated":
            if "error" in case:
                with pytest.raises(ValueError, match="isn't fitted"):
                    wrapped.apply_calibration([1.0])
            else:
                assert wrapped.apply_calibration([1.0]) == case["result"]
            continue
        true = numbers(case["true_activations"])
        simulated = numbers(case["uncalibrated_activations"])
        records = [ActivationRecord(activations=true, tokens=[""] * len(true))]
        simulations = [plain(simulated)]
        # The reference fits percentiles to NaN and answers NaN; a line it refuses, as we do both.
        if "error" in case or (
            case["case"] == "nan" and case["calibrator"] == "percentile_matching"
        ):
            with pytest.raises(ValueError, match=r"no tokens|finite"):
                wrapped.calibrate_from_simulations(records, simulations)
            continue
        wrapped.calibrate_from_simulations(records, simulations)
        result = case["result"]
        mapped = wrapped.apply_calibration(case["apply_to"])
        assert mapped == pytest.approx(numbers(result["values"]), rel=TOLERANCE, abs=TOLERANCE)
        assert wrapped.apply_calibration([]) == result["empty"] == []
        if "slope" in result:
            assert isinstance(wrapped.calibration, LinearCalibration)
            assert wrapped.calibration.slope == pytest.approx(result["slope"], abs=TOLERANCE)
            assert wrapped.calibration.intercept == pytest.approx(
                result["intercept"], abs=TOLERANCE
            )


def plain(expected: list[float]) -> SequenceSimulation:
    return SequenceSimulation(
        tokens=[""] * len(expected),
        expected_activations=np.asarray(expected, dtype=np.float64),
        activation_scale=ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS,
        distribution_values=np.zeros(0),
        distribution_probabilities=np.zeros((len(expected), 0)),
    )


async def test_end_to_end_scoring(release: dict[str, Any]) -> None:
    cases = release["end_to_end_scoring"]
    assert len(cases) == 12
    raw: dict[str, Any] = {}
    for case in cases:
        raw.setdefault(case["case"], case.get("uncalibrated_simulations"))
        simulator: NeuronSimulator = Recorded(raw[case["case"]])
        if "calibration_records" in case:
            simulator = await SIMULATORS[case["calibrator"]].create(
                simulator, [activation_record(r) for r in case["calibration_records"]]
            )
        tests = [activation_record(record) for record in case["test_records"]]
        simulations = [await simulator.simulate(record.tokens) for record in tests]
        true = np.concatenate([record.activations for record in tests])
        simulated = np.concatenate([s.expected_activations for s in simulations])
        table = score_sequences(true, simulated, [len(record.tokens) for record in tests])

        theirs = case["scored_simulation"]
        overall = score(true, simulated)
        assert_same_score(overall.correlation, theirs["ev_correlation_score"])
        assert_same_score(overall.rsquared, theirs["rsquared_score"])
        assert_same_score(overall.absolute_dev_explained, theirs["absolute_dev_explained_score"])
        for position, stored in enumerate(theirs["scored_sequence_simulations"]):
            assert_same_score(table[position].correlation, stored["ev_correlation_score"])
            assert_same_score(table[position].rsquared, stored["rsquared_score"])
            assert_same_score(
                table[position].absolute_dev_explained, stored["absolute_dev_explained_score"]
            )
            expected = file_class(
                stored["sequence_simulation"]
                if "sequence_simulation" in stored
                else stored["simulation"]
            )
            assert_same_simulation(simulations[position].to_file_class(), expected)


def activation_record(stored: dict[str, Any]) -> ActivationRecord:
    return ActivationRecord(activations=numbers(stored["activations"]), tokens=stored["tokens"])


def assert_same_simulation(ours: FileSequenceSimulation, theirs: FileSequenceSimulation) -> None:
    assert ours.tokens == theirs.tokens
    assert ours.activation_scale == theirs.activation_scale
    assert ours.expected_activations == pytest.approx(theirs.expected_activations, abs=TOLERANCE)
    np.testing.assert_allclose(ours.distribution_values, theirs.distribution_values, atol=TOLERANCE)
    assert ours.distribution_probabilities == theirs.distribution_probabilities
    assert (ours.uncalibrated_simulation is None) == (theirs.uncalibrated_simulation is None)
    if ours.uncalibrated_simulation and theirs.uncalibrated_simulation:
        assert_same_simulation(ours.uncalibrated_simulation, theirs.uncalibrated_simulation)


def test_helpers(release: dict[str, Any]) -> None:
    splits = ("train", "calibration", "valid", "test")
    checked = 0
    for case in release["helpers"]:
        function = case["fn"]
        if function.startswith("format_"):
            continue  # how records are written in prompts: test_simulation_prompts_golden.py
        checked += 1
        if function == "normalize_activations":
            ours = normalize_activations(case["activations"], case["max_activation"])
            assert ours.tolist() == case["result"]
        elif function == "normalize_activations_symmetric":
            ours = normalize_activations_symmetric(case["activations"], case["max_activation"])
            assert ours.tolist() == case["result"]
        elif function == "calculate_max_activation":
            assert max_activation(r["activations"] for r in case["records"]) == case["result"]
        elif function == "non_zero_activation_proportion":
            ours_share = non_zero_proportion(
                (r["activations"] for r in case["records"]), case["max_activation"]
            )
            assert ours_share == pytest.approx(case["result"], rel=TOLERANCE)
        else:
            assert function == "split"
            index, count = splits.index(case["split"]), case["n_examples_per_split"]
            top = [f"T{i}" for i in range(case["n_top"])]
            random = [f"R{i}" for i in range(case["n_random"])]
            if "error" in case:
                with pytest.raises(Exception, match="splits of"):
                    chosen(top, random, index, count)
            else:
                assert chosen(top, random, index, count) == case["result"]
    assert checked >= 31


def chosen(top: list[str], random: list[str], index: int, count: int | None) -> list[str]:
    result = interleaved_split(top, index, 4, count)
    return result + interleaved_split(random, index - 1, 3, count) if index else result


def test_attention_scoring(golden: Path) -> None:
    """Of the reference alone: the older release scores no heads."""
    packed = (golden / "simulation" / RELEASES["reference"]).read_bytes()
    cases = json.loads(gzip.decompress(packed))["attention_scoring"]
    assert len(cases) == 8
    for case in cases:
        labeled = token_pairs(case["records"])
        pairs = select_pairs(
            labeled,
            case["num_activations_for_scoring"],
            case["low_activation_threshold"],
            case["python_random_seed"],
        )
        theirs = case["result"]["attention_simulations"]
        assert len(pairs) == len(theirs) == len(case["responses_top_logprobs"])
        predicted = []
        for pair, stored, response in zip(
            pairs, theirs, case["responses_top_logprobs"], strict=True
        ):
            assert list(labeled.tokens[pair.sequence]) == stored["tokens"]
            assert [pair.attending, pair.attended] == stored["token_pair_coords"]
            assert pair.label == bool(stored["token_pair_label"])
            logprobs = {item["token"]: item["logprob"] for item in response}
            value, issue = prediction(Choice(choice_probabilities(logprobs, CHOICES)))
            assert not issue
            assert value == pytest.approx(stored["simulation_prediction"], abs=TOLERANCE)
            predicted.append(PredictedPair(pair, value))
        # The reference answers NaN where all pairs have one label; ours is absent, with the reason.
        score_of_all = roc_auc(predicted, case["python_random_seed"])
        if case["case"] == "no_low":
            assert math.isnan(number(case["result"]["roc_auc_score"]))
            assert score_of_all == Score(None, UndefinedReason.UNDEFINED_SINGLE_CLASS)
        else:
            assert score_of_all.value == pytest.approx(
                case["result"]["roc_auc_score"], abs=TOLERANCE
            )


def token_pairs(records: list[dict[str, Any]]) -> LabeledTokenPairs:
    activations = [np.asarray(numbers(record["activations"])) for record in records]
    caps = [
        attended_cap(len(record["tokens"]), len(values))
        for record, values in zip(records, activations, strict=True)
    ]
    return LabeledTokenPairs(
        tuple(tuple(record["tokens"]) for record in records),
        tuple(activations),
        tuple(cap for cap in caps if cap is not None),
    )


PARSING, PROMPTS, HERE = (
    f"test_simulation_{subject}golden.py" for subject in ("parsing_", "prompts_", "")
)
# Where each part of the golden data is tested; None: docs/scoring.md says why it isn't.
TESTED_IN: dict[str, str | None] = {
    "release": None,
    "about": None,
    "scores": HERE,
    "calibration": HERE,
    "end_to_end_scoring": HERE,
    "aggregate_edge": HERE,
    "attention_scoring": HERE,
    "token_logprobs": PARSING,
    "simulators": PARSING,
    "simulators/all_at_once": PARSING,
    "simulators/one_at_a_time": PARSING,
    "simulators/logprob_free": PARSING,
    "simulators/logprob_free_old": PARSING,
    "simulators/all_at_once_chat_prompt": None,
    "simulators/dummy": None,
    "prompt_formats": None,
    "helpers": HERE,
    "helpers/split": HERE,
    "helpers/normalize_activations": HERE,
    "helpers/normalize_activations_symmetric": HERE,
    "helpers/calculate_max_activation": HERE,
    "helpers/non_zero_activation_proportion": HERE,
    "helpers/format_activation_records": PROMPTS,
    "helpers/format_sequences_for_simulation": PROMPTS,
}


def test_nothing_is_left_out(release: dict[str, Any]) -> None:
    parts = set(release)
    parts |= {f"simulators/{case['kind']}" for case in release["simulators"]}
    parts |= {f"helpers/{case['fn']}" for case in release["helpers"]}
    assert parts <= set(TESTED_IN)
    for part in parts:
        tested_in = TESTED_IN[part]
        if tested_in is not None:
            # The name that the test looks the cases up by.
            text = (Path(__file__).parent / tested_in).read_text(encoding="utf-8")
            assert part.rsplit("/", 1)[-1] in text.split("TESTED_IN")[0], part
