"""Bootstrap resamples of sequences, as how often each sequence is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RESAMPLES = 1000
"""Drawn for an interval."""

CONFIDENCE = 0.95

MIN_DEFINED = 0.95
"""Smallest share of resamples in which a score must be defined for it to have an interval."""

_BLOCK = 1 << 14
"""Numbers of a block of resamples, which so stays in the processor's cache."""
_KEPT = 1 << 20
"""Numbers of all resamples that are kept for the next call with the same seed."""


def resample_counts(sequences: int, seed: int, resamples: int = RESAMPLES) -> Iterator[FloatArray]:
    """Blocks [rows, sequences] of how often each of `sequences` > 0 is drawn, `resamples` rows.

    As many sequences as there are, drawn with replacement; the same seed gives the same rows.
    """
    if resamples * sequences > _KEPT:
        yield from (block.astype(np.float64) for block in _drawn(sequences, seed, resamples))
        return
    counts = _kept_counts(sequences, seed, resamples)
    rows = max(1, _BLOCK // sequences)
    for start in range(0, resamples, rows):
        yield counts[start : start + rows].astype(np.float64)


@lru_cache(maxsize=16)
def _kept_counts(sequences: int, seed: int, resamples: int) -> NDArray[np.uint8]:
    # No sequence is ever drawn 256 times: of fewer there are no more, of more it never happens.
    counts = np.empty((resamples, sequences), dtype=np.uint8)
    start = 0
    for block in _drawn(sequences, seed, resamples):
        counts[start : start + len(block)] = block
        start += len(block)
    return counts


def _drawn(sequences: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    kind = np.uint16 if sequences <= 1 << 16 else np.uint32
    rows = max(1, _BLOCK // sequences)
    offsets = np.arange(0, rows * sequences, sequences, dtype=np.int64)[:, np.newaxis]
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), sequences)
        drawn = rng.integers(0, sequences, shape, dtype=kind) + offsets[: shape[0]]
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(shape)
