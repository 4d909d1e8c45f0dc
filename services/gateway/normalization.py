"""Scalars of a prompt normalised by a record, which only the gateway has both of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.tensors import to_array, to_tensor
from shared.normalization import largest_finite, normalized


def normalize_by_maximum(scalars: NDArray[Any], maximum: float) -> NDArray[Any]:
    """clip(scalar, 0) / maximum; 0 where the maximum is not positive, NaN what is not finite."""
    if maximum <= 0:
        return np.where(np.isfinite(scalars), 0.0, np.nan)
    shares: NDArray[Any] = np.maximum(scalars, 0.0) / maximum
    return shares


def normalize_with_record(
    prompt: common.TokenPairSequences, record: common.TokenPairSequences
) -> common.TokenPairSequences:
    """The prompt's scalars, each series normalised by its largest value in prompt and record.

    clip(x / (M - 1e-5), 0, 1) as in the contract's `TokenPairSequences`, with M over both.
    """
    together = common.TokenPairSequences()
    together.CopyFrom(prompt)
    together.normalized_activations.CopyFrom(_normalized(prompt.activations, record.activations))
    for name in ("total_in", "max_in", "total_out", "max_out"):
        summary: common.TokenPairSummary = getattr(together, name)
        summary.normalized_values.CopyFrom(
            _normalized(summary.values, getattr(record, name).values)
        )
    return together


def _normalized(values: common.Tensor, others: common.Tensor) -> common.Tensor:
    prompt = to_array(values)
    scaling = [prompt, to_array(others)] if others.data else [prompt]
    return to_tensor(normalized(prompt, largest_finite(scaling)))
