"""The most extreme elements, against sorting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scalars.deriving.selection import top_indices, top_of_tensors


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=0, max_size=200
    ),
    k=st.integers(0, 30),
    largest=st.booleans(),
)
def test_is_what_sorting_gives(values: list[float], k: int, largest: bool) -> None:
    flat = torch.tensor(values, dtype=torch.float32)
    found, positions = top_indices(flat, k, largest=largest)
    numbers = sorted((v for v in flat.tolist() if v == v), reverse=largest)
    if not any(np.isnan(values)):
        assert found.tolist() == numbers[:k]
    assert flat[positions].tolist() == found.tolist()
    assert len(set(positions.tolist())) == len(positions)


@pytest.mark.parametrize("length", [1 << 14, (1 << 14) + 37, 70_000])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("with_nan", [True, False])
def test_long_tensors_are_looked_into_by_blocks(length: int, largest: bool, with_nan: bool) -> None:
    generator = torch.Generator().manual_seed(length)
    flat = torch.randn(length, generator=generator)
    if with_nan:
        flat[::97] = float("nan")
    # The most extreme of all stands last, where no whole block may reach.
    flat[-1] = 100.0 if largest else -100.0
    values, positions = top_indices(flat, 25, largest=largest)
    numbers = flat[~flat.isnan()].sort(descending=largest).values
    assert values.tolist() == numbers[:25].tolist()
    assert flat[positions].tolist() == values.tolist()


def test_ties_and_clusters_do_not_hide_elements() -> None:
    flat = torch.zeros(1 << 15)
    flat[100:150] = 1.0
    flat[-3:] = 2.0
    values, positions = top_indices(flat, 53, largest=True)
    assert values.tolist() == [2.0] * 3 + [1.0] * 50
    assert set(positions.tolist()) == {*range(100, 150), *range((1 << 15) - 3, 1 << 15)}


def test_several_tensors_together() -> None:
    values, places = top_of_tensors(
        [torch.tensor([[1.0, 5.0], [2.0, 0.0]]), torch.tensor([4.0]), torch.empty(0)],
        3,
        largest=True,
    )
    assert values.tolist() == [5, 4, 2]
    assert places == [(0, (0, 1)), (1, (0,)), (0, (1, 0))]
    assert top_of_tensors([], 3, largest=True)[1] == []
    assert top_of_tensors([torch.tensor([float("nan")])], 3, largest=True)[1] == []
