"""Flattened lower triangles of token pairs, capped ones included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.formats import token_pairs
from shared.formats.token_pairs import TokenPair

sizes = st.integers(1, 70).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@settings(deadline=None)
@given(sizes)
def test_the_cap_follows_from_the_number_of_values(size: tuple[int, int]) -> None:
    num_tokens, cap = size
    num_values = sum(min(row + 1, cap) for row in range(num_tokens))
    assert token_pairs.attended_cap(num_tokens, num_values) == cap


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 900))
def test_a_cap_is_found_just_where_one_exists(num_tokens: int, num_values: int) -> None:
    fitting = [
        cap
        for cap in range(1, num_tokens + 1)
        if sum(min(row + 1, cap) for row in range(num_tokens)) == num_values
    ]
    want = fitting[0] if fitting else (0 if num_tokens == num_values == 0 else None)
    assert token_pairs.attended_cap(num_tokens, num_values) == want


@settings(deadline=None)
@given(sizes)
def test_coordinates_and_rows_agree(size: tuple[int, int]) -> None:
    num_tokens, cap = size
    attending, attended = token_pairs.coordinates(num_tokens, cap)
    want = [(row, column) for row in range(num_tokens) for column in range(min(row + 1, cap))]
    assert list(zip(attending.tolist(), attended.tolist(), strict=True)) == want
    last = len(want) - 1
    assert token_pairs.pair_at(last, num_tokens, len(want)) == want[-1]
    assert token_pairs.flat_index(TokenPair(*want[-1]), num_tokens, cap) == last
    rows = token_pairs.to_rows(np.arange(len(want), dtype=np.float64), num_tokens)
    assert [len(row) for row in rows] == token_pairs.row_lengths(num_tokens, cap).tolist()
    assert np.concatenate(rows).tolist() == list(range(len(want)))


def test_huge_counts_are_exact() -> None:
    num_tokens = 2**31
    full = num_tokens * (num_tokens + 1) // 2
    assert token_pairs.attended_cap(num_tokens, full) == num_tokens
    assert token_pairs.attended_cap(num_tokens, full - 2) is None


def test_no_token_has_no_pair() -> None:
    assert token_pairs.attended_cap(0, 0) == 0
    assert token_pairs.to_rows(np.zeros(0), 0) == []


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="no token pairs"):
        token_pairs.to_rows(np.zeros(4), 3)
    with pytest.raises(ValueError, match="no token pairs"):
        token_pairs.pair_at(0, 3, 4)
    for index in (-1, 6):
        with pytest.raises(ValueError, match="not within"):
            token_pairs.pair_at(index, 3, 6)
    for pair in (TokenPair(0, 1), TokenPair(3, 0), TokenPair(2, 2), TokenPair(-1, 0)):
        with pytest.raises(ValueError, match="no value"):
            token_pairs.flat_index(pair, 3, 2)
