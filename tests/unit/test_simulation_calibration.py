"""Calibrations, and the simulators that carry them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.isotonic import IsotonicRegression

from services.simulation.calibration.calibrated_simulator import (
    SIMULATOR_BY_KIND,
    CalibratedNeuronSimulator,
    LinearCalibratedNeuronSimulator,
    NeuronSimulator,
    PercentileMatchingCalibratedNeuronSimulator,
    UncalibratedNeuronSimulator,
)
from services.simulation.calibration.calibrations import (
    CalibrationKind,
    IsotonicCalibration,
    LinearCalibration,
    NoCalibration,
    PercentileCalibration,
    fit_calibration,
)
from services.simulation.errors import InvalidInput, NotCalibrated
from services.simulation.sequence_simulation import NORMALIZED_VALUES, SequenceSimulation
from shared.formats.records import ActivationRecord
from shared.formats.simulations import ActivationScale
from shared.formats.simulations import SequenceSimulation as FileSequenceSimulation

VALUES = st.floats(-1e4, 1e4, allow_nan=False)


def pairs(elements: st.SearchStrategy[float], least: int = 1) -> st.SearchStrategy[np.ndarray]:
    return st.integers(least, 40).flatmap(
        lambda n: arrays.arrays(np.float64, (2, n), elements=elements)
    )


@settings(deadline=None)
@given(arrays.arrays(np.float64, st.integers(0, 20), elements=VALUES))
def test_no_calibration_is_the_identity(values: np.ndarray) -> None:
    calibration = fit_calibration(CalibrationKind.NONE, [], [])
    mapped = calibration.apply(values)
    assert np.array_equal(mapped, values)
    assert not np.shares_memory(mapped, values)


@settings(deadline=None)
@given(pairs(VALUES.map(lambda x: round(x, 3))))
def test_linear_is_least_squares(pair: np.ndarray) -> None:
    simulated, true = pair
    calibration = fit_calibration(CalibrationKind.LINEAR, simulated, true)
    assert isinstance(calibration, LinearCalibration)
    if np.ptp(simulated) == 0:
        assert calibration.slope == 0
        assert calibration.intercept == pytest.approx(true.mean(), abs=1e-9)
        return
    centred = simulated - simulated.mean()
    (slope,), *_ = np.linalg.lstsq(centred[:, None], true - true.mean(), rcond=None)
    intercept = true.mean() - slope * simulated.mean()
    expected = slope * simulated + intercept
    np.testing.assert_allclose(calibration.apply(simulated), expected, rtol=1e-6, atol=1e-5)


@settings(deadline=None)
@given(
    pairs(st.integers(0, 6).map(float) | VALUES),
    arrays.arrays(np.float64, 15, elements=st.integers(-1, 7).map(float) | VALUES),
)
def test_percentile_is_interpolation_ties_included(pair: np.ndarray, values: np.ndarray) -> None:
    simulated, true = pair
    calibration = fit_calibration(CalibrationKind.PERCENTILE, simulated, true)
    probes = np.concatenate([values, simulated])
    expected = np.interp(probes, np.sort(simulated), np.sort(true))
    assert np.array_equal(calibration.apply(probes), expected)


def test_many_values_are_interpolated_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    simulated = rng.integers(0, 3000, 5000) / 7
    calibration = fit_calibration(CalibrationKind.PERCENTILE, simulated, rng.normal(size=5000))
    values = np.append(rng.permutation(simulated), [np.nan, -1.0, 1e9])
    alone = [calibration.apply([value])[0] for value in values]
    assert np.array_equal(calibration.apply(values), alone, equal_nan=True)


def test_percentile_keeps_two_points_of_a_tie() -> None:
    calibration = fit_calibration(CalibrationKind.PERCENTILE, [0.0] * 500 + [3.0], np.arange(501))
    assert isinstance(calibration, PercentileCalibration)
    assert calibration.simulated.tolist() == [0.0, 0.0, 3.0]
    assert calibration.calibrated.tolist() == [0.0, 499.0, 500.0]


@settings(deadline=None)
@given(
    pairs(st.integers(0, 6).map(float) | VALUES),
    arrays.arrays(np.float64, 15, elements=st.integers(-1, 7).map(float) | VALUES),
)
def test_isotonic_is_that_of_scikit_learn(pair: np.ndarray, values: np.ndarray) -> None:
    simulated, true = pair
    calibration = fit_calibration(CalibrationKind.ISOTONIC, simulated, true)
    assert isinstance(calibration, IsotonicCalibration)
    probes = np.concatenate([values, simulated])
    theirs = IsotonicRegression(out_of_bounds="clip").fit(simulated, true).predict(probes)
    np.testing.assert_allclose(calibration.apply(probes), theirs, rtol=1e-12, atol=1e-9)
    assert (np.diff(calibration.apply(np.sort(probes))) >= -1e-9).all()


def test_isotonic_can_not_turn_a_simulation_round() -> None:
    calibration = fit_calibration(CalibrationKind.ISOTONIC, [1.0, 2.0, 3.0], [9.0, 5.0, 1.0])
    assert calibration.apply([0.0, 2.0, 9.0]).tolist() == pytest.approx([5.0, 5.0, 5.0])


@pytest.mark.parametrize(("scale_in", "scale_out"), [(1e-300, 1.0), (1e200, 1e300), (1.0, 1e-300)])
def test_isotonic_survives_extreme_scales(scale_in: float, scale_out: float) -> None:
    x, y = np.arange(4.0), np.array([0.0, 3.0, 1.0, 9.0])
    calibration = fit_calibration(CalibrationKind.ISOTONIC, x * scale_in, y * scale_out)
    mapped = calibration.apply(x * scale_in) / scale_out
    np.testing.assert_allclose(mapped, [0.0, 2.0, 2.0, 9.0], rtol=1e-9, atol=1e-9)


def test_linear_survives_extreme_scales() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0])
    for scale_in, scale_out in ((1e-300, 1.0), (1e200, 1e200), (1.0, 1e-300), (1.0, 1e300)):
        calibration = fit_calibration(CalibrationKind.LINEAR, x * scale_in, 2 * x * scale_out)
        mapped = calibration.apply(x * scale_in) / scale_out
        np.testing.assert_allclose(mapped, 2 * x, rtol=1e-9, atol=1e-9)
    with pytest.raises(InvalidInput, match="no double can hold"):
        fit_calibration(CalibrationKind.LINEAR, x * 1e-300, x * 1e300)


def test_calibrations_are_values() -> None:
    assert NoCalibration() == NoCalibration()
    assert LinearCalibration(1.0, 2.0) == LinearCalibration(1.0, 2.0)
    points = np.array([0.0, 1.0])
    first, second = PercentileCalibration(points, points), PercentileCalibration(points, points)
    assert first == second
    assert hash(first) == hash(second)
    assert first != PercentileCalibration(points, points + 1)
    assert first != IsotonicCalibration(points, points)
    points[0] = 0.5  # a calibration doesn't change when the caller's array does
    assert first == PercentileCalibration(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="read-only"):
        first.calibrated[0] = 3.0


@pytest.mark.parametrize("kind", [kind for kind in CalibrationKind if kind != "none"])
@pytest.mark.parametrize(
    ("simulated", "true", "field"),
    [
        ([], [], "true_activations"),
        ([1.0, 2.0], [1.0], "true_activations"),
        ([1.0, math.nan], [1.0, 2.0], "simulated[1]"),
        ([1.0, 2.0], [math.inf, 2.0], "true_activations[0]"),
        ([1e308, 1e308], [math.nan, 1e308], "true_activations[0]"),
        (["a"], [1.0], "simulated"),
        ([[1.0]], [1.0], "simulated"),
    ],
)
def test_fitting_names_bad_input(
    kind: CalibrationKind, simulated: object, true: object, field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        fit_calibration(kind, simulated, true)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize(
    "calibration",
    [
        NoCalibration(),
        LinearCalibration(2.0, 1.0),
        PercentileCalibration(np.array([0.0]), np.array([1.0])),
        IsotonicCalibration(np.array([0.0]), np.array([1.0])),
    ],
)
def test_applying_refuses_infinity_and_keeps_nan(calibration: NoCalibration) -> None:
    with pytest.raises(InvalidInput) as caught:
        calibration.apply([0.0, math.inf])
    assert caught.value.field == "values[1]"
    assert np.isnan(calibration.apply([math.nan])[0])
    assert calibration.apply([]).shape == (0,)


def test_a_result_that_no_double_holds_is_refused() -> None:
    with pytest.raises(InvalidInput, match="too large"):
        LinearCalibration(1e200, 0.0).apply([1e200])
    with pytest.raises(InvalidInput, match="too large"):
        PercentileCalibration(np.array([0.0, 1.0]), np.array([-1.7e308, 1.7e308])).apply([0.5])


@pytest.mark.parametrize(
    ("simulated", "true", "field"),
    [
        ([], [], "simulated"),
        ([1.0, 0.0], [0.0, 1.0], "simulated"),
        ([0.0, 1.0], [1.0, 0.0], "calibrated"),
        ([0.0, 1.0], [1.0], "calibrated"),
        ([math.nan], [1.0], "simulated[0]"),
        ([1.0], [math.inf], "calibrated[0]"),
    ],
)
def test_stored_percentiles_are_checked(
    simulated: list[float], true: list[float], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        PercentileCalibration(np.array(simulated), np.array(true))
    assert caught.value.field == field


@pytest.mark.parametrize(("slope", "intercept"), [(math.nan, 0.0), (0.0, math.inf)])
def test_stored_lines_are_checked(slope: float, intercept: float) -> None:
    with pytest.raises(InvalidInput):
        LinearCalibration(slope, intercept)


class ByLength(NeuronSimulator):
    """Simulates a token by the number of its letters, up to 10; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def simulate(self, tokens: Sequence[str]) -> SequenceSimulation:
        self.calls += 1
        lengths = np.minimum([len(token) for token in tokens], 10).astype(np.int64)
        return SequenceSimulation(
            tokens=tokens,
            expected_activations=lengths.astype(np.float64),
            activation_scale=ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS,
            distribution_values=NORMALIZED_VALUES,
            distribution_probabilities=np.eye(11)[lengths],
        )


RECORDS = [
    ActivationRecord(tokens=["a", "bb", "dddd"], activations=[1.0, 2.0, 4.0]),
    ActivationRecord(tokens=["ééé", ""], activations=[3.0, 0.0]),
]


@pytest.mark.parametrize("kind", list(CalibrationKind))
async def test_a_calibrated_simulator_maps_values_and_keeps_probabilities(
    kind: CalibrationKind,
) -> None:
    inner = ByLength()
    simulator = await SIMULATOR_BY_KIND[kind].create(inner, RECORDS)
    assert inner.calls == (0 if kind is CalibrationKind.NONE else 2)
    simulation = await simulator.simulate(["xx", "yyyyy"])
    raw = simulation.uncalibrated_simulation
    assert raw is not None
    assert raw.activation_scale == ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS
    assert simulation.activation_scale == ActivationScale.NEURON_ACTIVATIONS
    assert simulation.distribution_probabilities is raw.distribution_probabilities
    assert simulation.distribution_values.shape == (11,)
    assert simulation.expected_activations.tolist() == pytest.approx(
        simulator.apply_calibration(raw.expected_activations.tolist())
    )
    assert simulation.distribution_values.tolist() == pytest.approx(
        simulator.apply_calibration(list(range(11)))
    )


async def test_a_fitted_calibration_is_applied_elsewhere() -> None:
    fitted = await LinearCalibratedNeuronSimulator.create(ByLength(), RECORDS)
    elsewhere = LinearCalibratedNeuronSimulator(ByLength(), fitted.calibration)
    assert elsewhere.apply_calibration([1.5]) == fitted.apply_calibration([1.5])


@pytest.mark.parametrize(
    "simulator_class",
    [LinearCalibratedNeuronSimulator, PercentileMatchingCalibratedNeuronSimulator],
)
async def test_using_a_simulator_before_it_is_fitted(
    simulator_class: type[CalibratedNeuronSimulator],
) -> None:
    simulator = simulator_class(ByLength())
    with pytest.raises(ValueError, match="isn't fitted"):
        simulator.apply_calibration([])
    with pytest.raises(NotCalibrated):
        await simulator.simulate(["a"])


async def test_calibration_records_and_simulations_must_match() -> None:
    simulator = LinearCalibratedNeuronSimulator(ByLength())
    simulation = await ByLength().simulate(["a"])
    with pytest.raises(InvalidInput, match="one value a token") as caught:
        simulator.calibrate_from_simulations(RECORDS[:1], [simulation])
    assert caught.value.field == "simulations[0].expected_activations"
    with pytest.raises(InvalidInput):
        simulator.calibrate_from_simulations(RECORDS, [simulation])
    with pytest.raises(InvalidInput):
        simulator.calibrate_from_simulations([], [])


async def test_tokens_without_a_distribution_take_no_part_in_the_fit() -> None:
    simulator = LinearCalibratedNeuronSimulator(ByLength())
    records = [ActivationRecord([1.0, 50.0, 3.0, 5.0], ["a", "b", "c", "d"])]
    simulation = await ByLength().simulate(records[0].tokens)
    expected = np.asarray([0.0, math.nan, 1.0, 2.0])
    simulator.calibrate_from_simulations(
        records, [replace(simulation, expected_activations=expected)]
    )
    assert simulator.apply_calibration([0.0, 10.0]) == pytest.approx([1.0, 21.0])
    with pytest.raises(InvalidInput):
        simulator.calibrate_from_simulations(
            records, [replace(simulation, expected_activations=np.full(4, math.nan))]
        )


class FailsFirst(NeuronSimulator):
    """Fails on the first sequence, while the others are under way."""

    def __init__(self) -> None:
        self.begun = self.done = 0

    async def simulate(self, tokens: Sequence[str]) -> SequenceSimulation:
        self.begun += 1
        if tokens[0] == "fails":
            await asyncio.sleep(0)
            raise InvalidInput("no such token")
        await asyncio.sleep(0.05)
        self.done += 1
        return await ByLength().simulate(tokens)


async def test_a_failure_ends_the_other_simulations() -> None:
    simulator = FailsFirst()
    records = [ActivationRecord([1.0], [token]) for token in ["fails", *"abcdefghijklmnopqrstuvw"]]
    with pytest.raises(InvalidInput, match="no such token"):
        await LinearCalibratedNeuronSimulator.create(simulator, records)
    begun = simulator.begun
    assert begun < len(records)
    await asyncio.sleep(0.1)
    assert (simulator.begun, simulator.done) == (begun, 0)


async def test_uncalibrated_needs_no_records() -> None:
    simulator = UncalibratedNeuronSimulator(ByLength())
    assert simulator.apply_calibration([1.5]) == [1.5]
    simulator.calibrate_from_simulations([], [])
    assert simulator.apply_calibration([]) == []


def test_simulations_go_to_files_and_back() -> None:
    stored = FileSequenceSimulation(
        tokens=["a", " ü", "\n"],
        expected_activations=[1.0, 5.0, 0.0],
        activation_scale=ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS,
        distribution_values=[[10.0, 0.0], [5.0], []],
        distribution_probabilities=[[0.1, 0.9], [1.0], []],
    )
    simulation = SequenceSimulation.from_file_class(stored)
    assert simulation.distribution_values.tolist() == [0.0, 5.0, 10.0]
    assert simulation.distribution_probabilities.tolist() == [
        [0.9, 0.0, 0.1],
        [0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0],
    ]
    back = simulation.to_file_class()
    assert back.tokens == stored.tokens
    assert back.distribution_values[2] == []
    assert SequenceSimulation.from_file_class(back).to_file_class() == back


@pytest.mark.parametrize("probabilities", [[[0.5], [1.0]], [[0.5, 0.5]]])
def test_simulations_of_files_are_checked(probabilities: list[list[float]]) -> None:
    stored = FileSequenceSimulation(
        tokens=["a", "b"],
        expected_activations=[1.0, 5.0],
        activation_scale=ActivationScale.NEURON_ACTIVATIONS,
        distribution_values=[[0.0, 10.0], [5.0]],
        distribution_probabilities=probabilities,
    )
    with pytest.raises(InvalidInput):
        SequenceSimulation.from_file_class(stored)


def test_a_simulation_has_a_value_a_token() -> None:
    with pytest.raises(InvalidInput, match="one value a token"):
        SequenceSimulation(
            tokens=["a"],
            expected_activations=np.zeros(2),
            activation_scale=ActivationScale.NEURON_ACTIVATIONS,
            distribution_values=NORMALIZED_VALUES,
            distribution_probabilities=np.zeros((1, 11)),
        )
    with pytest.raises(InvalidInput, match="a row a token"):
        SequenceSimulation(
            tokens=["a"],
            expected_activations=np.zeros(1),
            activation_scale=ActivationScale.NEURON_ACTIVATIONS,
            distribution_values=NORMALIZED_VALUES,
            distribution_probabilities=np.zeros((1, 10)),
        )
