"""What is collected of one dataset's components, sequence by sequence.

A dataset is one derived scalar type over all layers; its C components are the layers' components
one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.collate.moments import Moments
from services.collate.sampling import LEFT_OUT, LargestKeys, random_keys

_RANDOM_STREAM = 0
_QUANTILE_STREAM = 1
_PILOT_STREAM = 2


@dataclass(frozen=True)
class SampleSizes:
    """How many sequences a record holds.

    `quantiles` are the fractions, ascending within (0, 1), at which the sequences are cut by
    their largest activation; n fractions make n + 1 bins of `per_quantile` sequences each.
    """

    top: int = 12
    random: int = 12
    per_quantile: int = 3
    quantiles: tuple[float, ...] = (0.5, 0.75, 0.95)

    @property
    def bins(self) -> int:
        """Number of quantile bins; 0 where they are not tracked."""
        return len(self.quantiles) + 1 if self.quantiles and self.per_quantile else 0


def in_pilot(seed: int, position: int, fraction: float) -> bool:
    """Whether a sequence is among the random `fraction` that the quantiles are estimated on."""
    return bool(np.random.default_rng((seed, _PILOT_STREAM, position)).random() < fraction)


def largest(activations: NDArray[np.float32]) -> NDArray[np.float64]:
    """Largest finite activation of a sequence, [values, C] -> [C]; -inf where none is finite."""
    finite = np.where(np.isfinite(activations), activations.astype(np.float64), -np.inf)
    maxima: NDArray[np.float64] = finite.max(axis=0)
    return maxima


def boundaries(maxima: NDArray[np.float64], quantiles: tuple[float, ...]) -> NDArray[np.float64]:
    """Quantiles of the sequences' largest activations, [sequences, C] -> [quantiles, C]."""
    finite = np.where(np.isfinite(maxima), maxima, np.nan)
    empty = np.isnan(finite).all(axis=0)
    finite[:, empty] = 0.0
    cuts: NDArray[np.float64] = np.nanquantile(finite, quantiles, axis=0)
    return cuts


class Collation:
    """Top, random and quantile sequences and the moments of C components."""

    def __init__(
        self,
        components: int,
        width: int,
        sizes: SampleSizes,
        seed: int,
        quantile_boundaries: NDArray[np.float64] | None,
    ) -> None:
        """`width`: most values of a sequence. `quantile_boundaries`: [quantiles, C], or None."""
        self.sizes = sizes
        self.quantile_boundaries = quantile_boundaries
        self._components = components
        self._seed = seed
        self.top = LargestKeys(components, sizes.top, width)
        self.random = LargestKeys(components, sizes.random, width)
        bins = sizes.bins if quantile_boundaries is not None else 0
        self.by_quantile = [LargestKeys(components, sizes.per_quantile, width) for _ in range(bins)]
        self.moments = Moments(components)

    def add(self, position: int, activations: NDArray[np.float32]) -> None:
        """One sequence of the corpus, activations [values, C]; each position once."""
        self.moments.update(activations)
        maxima = largest(activations)
        self.top.offer(position, maxima, activations)
        keys = random_keys(self._seed, _RANDOM_STREAM, position, self._components)
        self.random.offer(position, keys, activations)
        if self.quantile_boundaries is not None and self.by_quantile:
            keys = random_keys(self._seed, _QUANTILE_STREAM, position, self._components)
            # A sequence exactly on a boundary belongs to the bin above it.
            bins = (maxima >= self.quantile_boundaries).sum(axis=0)
            for index, sample in enumerate(self.by_quantile):
                mine = (bins == index) & np.isfinite(maxima)
                sample.offer(position, np.where(mine, keys, LEFT_OUT), activations)

    def _parts(self) -> dict[str, LargestKeys | Moments]:
        quantiles = {f"quantile{index}": part for index, part in enumerate(self.by_quantile)}
        return {"top": self.top, "random": self.random, "moments": self.moments, **quantiles}

    def positions(self) -> set[int]:
        """Every sequence that a record needs."""
        kept = (part for part in self._parts().values() if isinstance(part, LargestKeys))
        return set().union(*(part.positions() for part in kept))

    def state(self) -> dict[str, NDArray[Any]]:
        """All that `restore` needs, by name."""
        return {
            f"{part}.{name}": array
            for part, holder in self._parts().items()
            for name, array in holder.state().items()
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take back a state of the same sizes; ValueError or KeyError where they differ."""
        for part, holder in self._parts().items():
            holder.restore({name: state[f"{part}.{name}"] for name in holder.state()})
