"""Collate's streaming statistics against brute force over everything at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.collate.collation import Collation, SampleSizes, boundaries, in_pilot, largest
from services.collate.moments import Moments
from services.collate.sampling import LEFT_OUT, LargestKeys, random_keys

COMPONENTS = 5


def batches(seed: int, count: int, offset: float = 0.0) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return [
        (random.gamma(1.0, 2.0, size=(random.integers(1, 9), COMPONENTS)) + offset).astype(
            np.float32
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_are_those_of_all_values_at_once(offset: float) -> None:
    parts = batches(1, 200, offset)
    moments = Moments(COMPONENTS)
    for part in parts:
        moments.update(part)
    whole = np.concatenate(parts).astype(np.float64)
    assert moments.count.tolist() == [len(whole)] * COMPONENTS
    np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, whole.var(axis=0), rtol=1e-9)
    deviations = (whole - whole.mean(axis=0)) / whole.std(axis=0)
    np.testing.assert_allclose(moments.skewness, (deviations**3).mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(moments.kurtosis, (deviations**4).mean(axis=0), rtol=1e-7)


def test_moments_leave_out_what_is_not_finite() -> None:
    values = np.array([[1.0, np.nan], [2.0, np.inf], [4.0, -np.inf]], dtype=np.float32)
    moments = Moments(2)
    moments.update(values[:1])
    moments.update(values[1:])
    assert moments.count.tolist() == [3, 0]
    assert moments.mean[0] == pytest.approx(7 / 3)
    for figure in (moments.mean, moments.variance, moments.skewness, moments.kurtosis):
        assert np.isnan(figure[1])


def test_constant_values_have_no_skewness() -> None:
    moments = Moments(1)
    moments.update(np.full((9, 1), 3.0, dtype=np.float32))
    assert moments.variance[0] == 0.0
    assert np.isnan(moments.skewness[0])
    assert np.isnan(moments.kurtosis[0])


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=30),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_largest_keys_are_the_sorted_head_in_any_order(
    keys: list[list[int]], size: int, random: object
) -> None:
    order = list(range(len(keys)))
    random.shuffle(order)  # type: ignore[attr-defined]
    kept = LargestKeys(2, size, width=3)
    for position in order:
        activations = np.full((2, 2), position, dtype=np.float32)
        kept.offer(position, np.array(keys[position], dtype=np.float64), activations)
    for component in range(2):
        expected = sorted(range(len(keys)), key=lambda p: (-keys[p][component], p))[:size]
        found = kept.kept(component)
        assert [position for position, _ in found] == expected
        for position, activations in found:
            assert activations[:2].tolist() == [position, position]
    assert kept.positions() <= set(order)


def test_what_is_left_out_is_never_kept() -> None:
    kept = LargestKeys(2, 3, width=1)
    kept.offer(0, np.array([LEFT_OUT, 1.0]), np.ones((1, 2), dtype=np.float32))
    assert kept.kept(0) == []
    assert [position for position, _ in kept.kept(1)] == [0]


def test_random_samples_are_uniform() -> None:
    sequences, size, components = 40, 8, 2000
    kept = LargestKeys(components, size, width=1)
    for position in range(sequences):
        keys = random_keys(7, 0, position, components)
        kept.offer(position, keys, np.zeros((1, components), dtype=np.float32))
    counts = np.zeros(sequences)
    for component in range(components):
        chosen = [position for position, _ in kept.kept(component)]
        assert len(set(chosen)) == size
        counts[chosen] += 1
    expected = components * size / sequences
    # Chi-squared with 39 degrees of freedom is above 73 once in a thousand times.
    assert ((counts - expected) ** 2 / expected).sum() < 73


def test_random_keys_depend_on_seed_stream_and_position_alone() -> None:
    first = random_keys(1, 0, 5, 9)
    assert np.array_equal(first, random_keys(1, 0, 5, 9))
    for other in ((2, 0, 5), (1, 1, 5), (1, 0, 6)):
        assert not np.array_equal(first, random_keys(*other, 9))


def test_pilot_is_about_the_fraction_asked_for() -> None:
    chosen = [position for position in range(4000) if in_pilot(3, position, 0.25)]
    assert 850 < len(chosen) < 1150
    assert chosen != [position for position in range(4000) if in_pilot(4, position, 0.25)]


def collated(
    sequences: list[NDArray[np.float32]], sizes: SampleSizes, cuts: NDArray[np.float64] | None
) -> Collation:
    collation = Collation(COMPONENTS, 8, sizes, seed=5, quantile_boundaries=cuts)
    for position, activations in enumerate(sequences):
        collation.add(position, activations)
    return collation


def test_quantile_samples_lie_within_their_bins() -> None:
    sequences = batches(2, 300)
    maxima = np.stack([largest(part) for part in sequences])
    sizes = SampleSizes(top=3, random=4, per_quantile=5, quantiles=(0.5, 0.9))
    cuts = boundaries(maxima, sizes.quantiles)
    np.testing.assert_allclose(cuts, np.quantile(maxima, sizes.quantiles, axis=0))
    collation = collated(sequences, sizes, cuts)
    assert len(collation.by_quantile) == 3
    edges = np.vstack([np.full(COMPONENTS, -np.inf), cuts, np.full(COMPONENTS, np.inf)])
    for component in range(COMPONENTS):
        for index, part in enumerate(collation.by_quantile):
            found = part.kept(component)
            assert len(found) == 5
            for position, activations in found:
                value = maxima[position, component]
                assert edges[index, component] <= value < edges[index + 1, component]
                stored = activations[: len(sequences[position])]
                assert np.array_equal(stored, sequences[position][:, component])


def test_top_sequences_are_the_largest_of_all() -> None:
    sequences = batches(3, 250)
    collation = collated(sequences, SampleSizes(top=6, random=2, quantiles=()), None)
    for component in range(COMPONENTS):
        maxima = [float(part[:, component].max()) for part in sequences]
        expected = sorted(range(len(sequences)), key=lambda p: (-maxima[p], p))[:6]
        assert [position for position, _ in collation.top.kept(component)] == expected
    assert collation.by_quantile == []


def test_state_goes_round_in_the_middle_of_a_stream() -> None:
    sequences = batches(4, 90)
    sizes = SampleSizes(top=3, random=3, per_quantile=2, quantiles=(0.5,))
    cuts = boundaries(np.stack([largest(part) for part in sequences]), (0.5,))
    whole = collated(sequences, sizes, cuts)
    first = collated(sequences[:41], sizes, cuts)
    second = Collation(COMPONENTS, 8, sizes, seed=5, quantile_boundaries=cuts)
    second.restore({name: array.copy() for name, array in first.state().items()})
    for position, activations in enumerate(sequences[41:], start=41):
        second.add(position, activations)
    for name, array in whole.state().items():
        assert np.array_equal(array, second.state()[name]), name


def test_state_of_another_shape_is_refused() -> None:
    sizes = SampleSizes(quantiles=())
    state = Collation(4, 8, sizes, 0, None).state()
    with pytest.raises(ValueError, match="shape"):
        Collation(COMPONENTS, 8, sizes, 0, None).restore(state)


def test_not_a_number_is_no_maximum() -> None:
    values = np.array([[np.nan, np.nan], [2.0, np.inf]], dtype=np.float32)
    assert largest(values).tolist() == [2.0, -np.inf]
    assert boundaries(np.array([[1.0, -np.inf], [3.0, -np.inf]]), (0.5,)).tolist() == [[2.0, 0.0]]
