"""Keeping, for every component, the few sequences with the largest keys.

One structure serves three purposes. With the largest activation of a sequence as its key it keeps
the top sequences; with a random number it keeps a uniform sample of all sequences; with a random
number, and a key only for some sequences, a uniform sample of those. What is kept depends on keys
and positions alone, never on the order of arrival, so it is the same after a restart and
could be merged over shards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_SEQUENCE = -1
LEFT_OUT = -np.inf
"""A key that never gets a sequence kept."""


class LargestKeys:
    """For each of C components, the `size` sequences with the largest keys seen so far.

    Of equal keys the earlier sequence is kept. A kept sequence has its position in the corpus and
    its activations, up to `width` values.
    """

    def __init__(self, components: int, size: int, width: int) -> None:
        if components < 1 or size < 0 or width < 1:
            raise ValueError(f"no room for {size} of {components} components x {width} values")
        self.size = size
        self._keys = np.full((components, size), LEFT_OUT)
        self._positions = np.full((components, size), NO_SEQUENCE, dtype=np.int64)
        self._activations = np.zeros((components, size, width), dtype=np.float32)

    def offer(
        self, position: int, keys: NDArray[np.float64], activations: NDArray[np.float32]
    ) -> None:
        """One sequence: keys [C], finite or `LEFT_OUT`, and activations [values, C]."""
        if self.size == 0:
            return
        # The first to go is the smallest key and, of several, the latest position.
        smallest = self._keys.min(axis=1)
        tied = self._keys == smallest[:, None]
        slots = np.where(tied, self._positions, np.iinfo(np.int64).min).argmax(axis=1)
        held = self._positions[np.arange(len(slots)), slots]
        better = (keys > smallest) | ((keys == smallest) & (position < held))
        chosen = np.flatnonzero(better & (keys > LEFT_OUT))
        if chosen.size:
            at = slots[chosen]
            self._keys[chosen, at] = keys[chosen]
            self._positions[chosen, at] = position
            self._activations[chosen, at, : len(activations)] = activations[:, chosen].T

    def kept(self, component: int) -> list[tuple[int, NDArray[np.float32]]]:
        """Positions and activations (padded to `width`) of one component, largest key first."""
        keys, positions = self._keys[component], self._positions[component]
        order = np.lexsort((positions, -keys))
        return [
            (int(positions[slot]), self._activations[component, slot])
            for slot in order
            if positions[slot] != NO_SEQUENCE
        ]

    def positions(self) -> set[int]:
        """Every sequence that any component keeps."""
        return set(np.unique(self._positions).tolist()) - {NO_SEQUENCE}

    def state(self) -> dict[str, NDArray[Any]]:
        """All that `restore` needs."""
        return {
            "keys": self._keys,
            "positions": self._positions,
            "activations": self._activations,
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take back a state of the same sizes; ValueError where they differ."""
        for name, mine in self.state().items():
            if state[name].shape != mine.shape:
                raise ValueError(f"{name} has shape {state[name].shape}, not {mine.shape}")
            mine[...] = state[name]


def random_keys(seed: int, stream: int, position: int, components: int) -> NDArray[np.float64]:
    """Uniform keys in [0, 1), [C], that depend on nothing but the arguments."""
    return np.random.default_rng((seed, stream, position)).random(components)
