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

_BLOCK = 1 << 20
"""Numbers of a block of resamples, so that many sequences don't take much memory."""
_KEPT = 1 << 18
"""Numbers of a block that is worth keeping for the next call with the same seed."""


def resample_counts(sequences: int, seed: int, resamples: int = RESAMPLES) -> Iterator[FloatArray]:
    """Blocks [rows, sequences] of how often each of `sequences` > 0 is drawn, `resamples` rows.

    As many sequences as there are, drawn with replacement; the same seed gives the same rows.
    """
    rows = max(1, _BLOCK // sequences)
    if resamples <= rows and resamples * sequences <= _KEPT:
        yield _kept_counts(sequences, seed, resamples)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        yield _counts(rng, sequences, min(rows, resamples - start))


@lru_cache(maxsize=16)
def _kept_counts(sequences: int, seed: int, resamples: int) -> FloatArray:
    counts = _counts(np.random.default_rng(seed), sequences, resamples)
    counts.flags.writeable = False
    return counts


def _counts(rng: np.random.Generator, sequences: int, rows: int) -> FloatArray:
    drawn = rng.integers(0, sequences, (rows, sequences), dtype=np.int32)
    drawn += np.arange(0, rows * sequences, sequences, dtype=np.int32)[:, np.newaxis]
    counts = np.bincount(drawn.ravel(), minlength=rows * sequences)
    return counts.reshape(rows, sequences).astype(np.float64)
