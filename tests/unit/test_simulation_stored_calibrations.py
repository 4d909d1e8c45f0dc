"""Calibrations by content: what is kept in memory, what is stored, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulation.calibration.calibrations import (
    Calibration,
    CalibrationKind,
    IsotonicCalibration,
    LinearCalibration,
    NoCalibration,
    PercentileCalibration,
    fit_calibration,
)
from services.simulation.calibration.content import CachedFit, CalibrationCache
from services.simulation.calibration.fitted import FittedCalibration, sequence_hash
from services.simulation.calibration.store import CalibrationStore, decode, encode, id_of
from services.simulation.errors import InvalidInput
from services.simulation.simulators.interface import ValidityReport
from services.simulation.state.store import open_state
from shared.errors import DataLoss, NotFound

KNOTS = np.array([0.0, 0.1, 1 / 3])
CALIBRATIONS: list[Calibration] = [
    NoCalibration(),
    LinearCalibration(1 / 3, -5e-324),
    PercentileCalibration(KNOTS, KNOTS * 1.7),
    IsotonicCalibration(KNOTS, KNOTS * 1.7),
]


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=lambda c: c.kind.value)
async def test_a_stored_calibration_comes_back_the_same(
    calibration: Calibration, tmp_path: Path
) -> None:
    fitted = FittedCalibration(calibration, 7, (3, 2**64 - 1))
    calibration_id = await CalibrationStore(open_state(str(tmp_path))).put(fitted)
    elsewhere = CalibrationStore(open_state(str(tmp_path)))
    assert await elsewhere.get(calibration_id) == fitted
    assert await elsewhere.get(calibration_id) is await elsewhere.get(calibration_id)
    assert await elsewhere.put(fitted) == calibration_id


def test_ids_are_of_the_content() -> None:
    made = {id_of(encode(FittedCalibration(c, 1, (2,)))) for c in CALIBRATIONS}
    made |= {id_of(encode(FittedCalibration(NoCalibration(), 1, hashes))) for hashes in ((), (3,))}
    assert len(made) == 6
    # The order of the sequences, and how often one is there, makes no other calibration.
    assert encode(FittedCalibration(NoCalibration(), 1, (3, 2, 3))) == encode(
        FittedCalibration(NoCalibration(), 1, (2, 3))
    )
    # The name of what releases wrote before must stay.
    assert id_of(encode(FittedCalibration(LinearCalibration(2.0, 1.0), 5, (7,)))) == (
        "cal-1f951df698a8c4d4be5a928f4903f5aeadb3615a"
    )


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1e300, 1e300, allow_nan=False)] * 2), min_size=1))
def test_every_double_is_stored_as_it_is(points: list[tuple[float, float]]) -> None:
    simulated, true = np.sort(np.asarray(points), axis=0).T
    fitted = FittedCalibration(fit_calibration(CalibrationKind.PERCENTILE, simulated, true))
    assert decode(encode(fitted), "x") == fitted


async def test_what_is_not_there_or_damaged_is_said(tmp_path: Path) -> None:
    store = CalibrationStore(open_state(str(tmp_path)))
    with pytest.raises(InvalidInput, match="40 hexadecimal digits") as bad:
        await store.get("../../etc/passwd", "calibration_id")
    assert bad.value.field == "calibration_id"
    with pytest.raises(NotFound) as missing:
        await store.get("cal-" + "0" * 40)
    assert missing.value.reason == "CALIBRATION_NOT_FOUND"

    calibration_id = await store.put(FittedCalibration(LinearCalibration(2.0, 1.0)))
    cut_short(tmp_path, calibration_id)
    with pytest.raises(DataLoss, match="doesn't match its id") as damaged:
        await CalibrationStore(open_state(str(tmp_path))).get(calibration_id)
    assert damaged.value.reason == "CALIBRATION_DAMAGED"


def cut_short(folder: Path, calibration_id: str) -> None:
    (path,) = (path for path in folder.rglob(f"{calibration_id}*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"kind": "cubic"},
        {"slope": None},
        {"kind": "percentile"},
        {"kind": "isotonic", "simulated": [1.0, 0.0], "calibrated": [0.0, 1.0]},
        {"extra": 1},
        {"fitted_sequence_hashes": ["x"]},
    ],
)
def test_a_file_of_another_kind_is_no_calibration(change: dict[str, object]) -> None:
    content = json.loads(encode(FittedCalibration(LinearCalibration(2.0, 1.0)))) | change
    with pytest.raises(DataLoss) as caught:
        decode(json.dumps(content).encode(), "cal-1")
    assert caught.value.reason == "CALIBRATION_DAMAGED"


def test_hashes_tell_sequences_apart() -> None:
    sequences = [[], [""], ["", ""], ["ab"], ["a", "b"], ["a", "b", ""], ["1:a"], ["é"], ["\ud800"]]
    assert len({sequence_hash(tokens) for tokens in sequences}) == len(sequences)
    # Stands in stored calibrations: it must not change.
    assert sequence_hash(["a", " b", "\n"]) == 5255349214807341078


def test_fitted_sequences_are_refused() -> None:
    fitted = FittedCalibration(NoCalibration(), 1, (sequence_hash(["a", "b"]),))
    fitted.refuse_fitted([["ab"], ["a"]], "calibration")
    with pytest.raises(InvalidInput, match="position 1") as caught:
        fitted.refuse_fitted([["ab"], ["a", "b"]], "calibration_id")
    assert caught.value.field == "calibration_id"
    assert caught.value.reason == "SCORED_SEQUENCE_IN_CALIBRATION"


def test_the_cache_keeps_what_was_used_last() -> None:
    fit = CachedFit(FittedCalibration(NoCalibration()), ValidityReport())
    cache = CalibrationCache(3 * fit.size)
    for key in "abc":
        cache.put(key, fit)
    assert cache.get("a") is fit
    cache.put("d", fit)
    cache.put("d", fit)
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    knots = np.arange(1000.0)
    large = CachedFit(FittedCalibration(IsotonicCalibration(knots, knots)), ValidityReport())
    cache.put("large", large)
    assert cache.get("large") is None
    assert len(cache) == 3
