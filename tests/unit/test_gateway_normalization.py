"""Scalars of a prompt normalised by a record."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.tensors import to_array, to_tensor
from services.gateway.normalization import normalize_by_maximum, normalize_with_record

SUMMARIES = ("total_in", "max_in", "total_out", "max_out")


def sequences(pairs: list[float], **summaries: list[float]) -> common.TokenPairSequences:
    message = common.TokenPairSequences(activations=to_tensor(np.float32(pairs)))
    for name in SUMMARIES:
        values = np.float32(summaries.get(name, [0.0, 0.0]))
        getattr(message, name).values.CopyFrom(to_tensor(values))
    return message


def normalized(message: common.TokenPairSequences, name: str) -> NDArray[Any]:
    if name == "activations":
        return to_array(message.normalized_activations)
    return to_array(getattr(message, name).normalized_values)


@pytest.mark.parametrize("name", SUMMARIES)
def test_each_series_has_the_scale_of_its_own_in_prompt_and_record(name: str) -> None:
    prompt = sequences([4.0, 1.0, -2.0], **{name: [3.0, 6.0]})
    record = sequences([2.0], **{name: [12.0]})
    together = normalize_with_record(prompt, record)
    assert_allclose(normalized(together, "activations"), [1.0, 0.25, 0.0], rtol=1e-5)
    assert_allclose(normalized(together, name), [0.25, 0.5], rtol=1e-5)
    for other in set(SUMMARIES) - {name}:
        assert_allclose(normalized(together, other), [0.0, 0.0])
    # The prompt's own scalars stay as they are.
    assert together.activations == prompt.activations


def test_what_is_not_finite_is_nan_and_sets_no_scale() -> None:
    prompt = sequences([math.inf, 2.0, math.nan])
    record = sequences([math.inf, math.nan, 8.0])
    values = normalized(normalize_with_record(prompt, record), "activations")
    assert math.isnan(values[0])
    assert_allclose(values[1], 0.25, rtol=1e-5)
    assert math.isnan(values[2])


@pytest.mark.parametrize("largest", [0.0, -3.0, 1e-5])
def test_without_a_positive_scalar_all_are_0(largest: float) -> None:
    prompt = sequences([largest, math.nan])
    values = normalized(normalize_with_record(prompt, sequences([-1.0])), "activations")
    assert values[0] == 0.0
    assert math.isnan(values[1])


def test_an_empty_record_has_no_say() -> None:
    prompt = sequences([4.0, 1.0])
    together = normalize_with_record(prompt, common.TokenPairSequences())
    assert_allclose(normalized(together, "activations"), [1.0, 0.25], rtol=1e-5)


def test_by_a_maximum_alone_scalars_may_pass_1() -> None:
    scalars = np.float32([-1.0, 2.0, 8.0])
    assert_allclose(normalize_by_maximum(scalars, 4.0), [0.0, 0.5, 2.0])
    assert_allclose(normalize_by_maximum(scalars, 0.0), [0.0, 0.0, 0.0])
