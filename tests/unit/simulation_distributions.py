"""What distributions of a simulator have to be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.simulation.sequence_simulation import NUM_VALUES


def assert_distributions(probabilities: NDArray[np.float64], tokens: int) -> None:
    """`probabilities` are `tokens` rows of 11 that add up to 1, or to 0 where there is none."""
    assert probabilities.shape == (tokens, NUM_VALUES)
    assert (probabilities >= 0).all()
    sums = probabilities.sum(axis=1)
    assert ((np.abs(sums - 1) < 1e-6) | (sums == 0)).all()
