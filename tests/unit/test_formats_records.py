"""Splits and the maximum of a record."""

from __future__ import annotations

import math

import pytest

from shared.errors import InvalidArgument
from shared.formats.records import (
    ActivationRecord,
    ActivationRecordSliceParams,
    NeuronId,
    NeuronRecord,
    interleaved_split,
)


def record(num_top: int, num_random: int) -> NeuronRecord:
    return NeuronRecord(
        NeuronId(0, 0),
        random_sample=[ActivationRecord([0.0], [f"R{i}"]) for i in range(num_random)],
        most_positive_activation_records=[
            ActivationRecord([1.0], [f"T{i}"]) for i in range(num_top)
        ],
    )


def names(records: list[ActivationRecord]) -> list[str]:
    return [record.tokens[0] for record in records]


def test_splits_share_nothing() -> None:
    params = ActivationRecordSliceParams(n_examples_per_split=2)
    got = record(9, 7)
    train = names(got.train_activation_records(params))
    splits = [
        names(got.calibration_activation_records(params)),
        names(got.valid_activation_records(params)),
        names(got.test_activation_records(params)),
    ]
    assert train == ["T0", "T4"]
    assert splits == [["T1", "T5", "R0", "R3"], ["T2", "T6", "R1", "R4"], ["T3", "T7", "R2", "R5"]]


def test_too_few_sequences_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="0 to 2") as caught:
        record(10, 10).train_activation_records(ActivationRecordSliceParams(3))
    assert caught.value.field == "n_examples_per_split"
    with pytest.raises(InvalidArgument):
        record(10, 10).train_activation_records(ActivationRecordSliceParams(-1))
    assert record(3, 2).valid_activation_records(ActivationRecordSliceParams()) == []


def test_any_number_of_splits() -> None:
    assert interleaved_split("abcdefg", 1, 3) == ["b", "e"]


@pytest.mark.parametrize(
    ("activations", "largest"),
    [([], 0.0), ([math.nan], 0.0), ([-1.5, -2.0], -1.5), ([math.inf, 3.0, math.nan], 3.0)],
)
def test_the_maximum_is_of_finite_values(activations: list[float], largest: float) -> None:
    got = NeuronRecord(
        NeuronId(0, 0),
        most_positive_activation_records=[ActivationRecord(activations, [])],
    )
    assert got.max_activation == largest
