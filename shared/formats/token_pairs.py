"""Token pairs: a scalar for every attended-to token of every attending token, flattened.

A sequence of n tokens is stored as the rows of a lower triangle, one after the other: row i (of
attending token i) has min(i + 1, c) values, of attended-to tokens 0, 1, ...; c caps the number of
attended-to tokens and is n where there is no cap. c is not stored: it follows from n and the number
of values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOKEN_PAIR_TYPES = frozenset(
    {
        "attn_act_times_grad",
        "attn_key_in_edge_activation",
        "attn_key_in_edge_attribution",
        "attn_out_edge_attribution",
        "attn_qk_logits",
        "attn_qk_probs",
        "attn_query_in_edge_activation",
        "attn_query_in_edge_attribution",
        "attn_value_in_edge_attribution",
        "attn_weighted_value",
        "attn_write",
        "attn_write_norm",
        "attn_write_sum_heads",
        "attn_write_to_final_residual_grad",
        "attn_write_to_latent",
        "attn_write_to_latent_summed_over_heads",
        "flattened_attn_post_softmax",
        "flattened_attn_write_to_latent_summed_over_heads",
        "flattened_attn_write_to_latent_summed_over_heads_batched",
        "unflattened_attn_act_times_grad",
        "unflattened_attn_write_norm",
        "unflattened_attn_write_to_final_activation_residual_grad",
        "unflattened_attn_write_to_final_residual_grad",
    }
)
"""Derived scalar types with a value for every pair of attending and attended-to token; all others
have one for every token."""


class TokenPair(NamedTuple):
    """Indices of the attending and the attended-to token."""

    attending: int
    attended: int


def attended_cap(num_tokens: int, num_values: int) -> int | None:
    """The cap c with which `num_tokens` tokens have `num_values` values; None where no c fits.

    The values missing from n(n + 1)/2 are a smaller triangle of n - c rows.
    """
    missing = num_tokens * (num_tokens + 1) // 2 - num_values
    if missing < 0:
        return None
    rows = (math.isqrt(8 * missing + 1) - 1) // 2
    if rows * (rows + 1) // 2 != missing:
        return None
    cap = num_tokens - rows
    # No tokens have no values, and no cap to speak of; a cap of 0 would leave rows empty.
    return cap if cap > 0 or num_tokens == num_values == 0 else None


def row_lengths(num_tokens: int, cap: int) -> NDArray[np.int64]:
    """Number of values in each row, [num_tokens]: min(i + 1, cap)."""
    return np.minimum(np.arange(1, num_tokens + 1, dtype=np.int64), cap)


def row_starts(num_tokens: int, cap: int) -> NDArray[np.int64]:
    """Index of each row's first value in the flat array, [num_tokens]."""
    lengths = row_lengths(num_tokens, cap)
    return np.cumsum(lengths) - lengths


def coordinates(num_tokens: int, cap: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Attending and attended-to token of every value, each [number of values], in flat order."""
    lengths = row_lengths(num_tokens, cap)
    attending = np.repeat(np.arange(num_tokens, dtype=np.int64), lengths)
    starts = np.cumsum(lengths) - lengths
    attended = np.arange(attending.size, dtype=np.int64) - np.repeat(starts, lengths)
    return attending, attended


def pair_at(flat_index: int, num_tokens: int, num_values: int) -> TokenPair:
    """The token pair of one value. ValueError where there is no such value or no such record."""
    cap = attended_cap(num_tokens, num_values)
    if cap is None:
        raise ValueError(f"{num_values} values are no token pairs of {num_tokens} tokens")
    if not 0 <= flat_index < num_values:
        raise ValueError(f"index {flat_index} is not within the {num_values} values")
    starts = row_starts(num_tokens, cap)
    row = int(np.searchsorted(starts, flat_index, side="right")) - 1
    return TokenPair(row, flat_index - int(starts[row]))


def flat_index(pair: TokenPair, num_tokens: int, cap: int) -> int:
    """Where the value of `pair` is in the flat array; ValueError where it has none."""
    attending, attended = pair
    if not 0 <= attending < num_tokens or not 0 <= attended < min(attending + 1, cap):
        raise ValueError(f"{pair} has no value among {num_tokens} tokens capped at {cap}")
    return int(row_starts(num_tokens, cap)[attending]) + attended


def to_rows(values: NDArray[np.float64], num_tokens: int) -> list[NDArray[np.float64]]:
    """The flat `values` as one view a row. ValueError where they are no token pairs."""
    cap = attended_cap(num_tokens, values.size)
    if cap is None:
        raise ValueError(f"{values.size} values are no token pairs of {num_tokens} tokens")
    return np.split(values, row_starts(num_tokens, cap)[1:]) if num_tokens else []
