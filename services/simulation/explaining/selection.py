"""Which features predict activations best: greedy sets of them, by correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.explaining.features import Feature, FeatureKind, TokenTable

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class FeatureSet:
    """Features that one explanation names together, strongest first."""

    features: tuple[Feature, ...]
    correlation: float
    """Of whether one of them holds with the activations."""
    value: float
    """The same, less what each further feature has to bring."""


class _Correlations:
    """Correlations of features with activations, from the few tokens where each holds."""

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._count = len(table.activations)
        self._centred = table.activations - table.activations.mean()
        self._variance = float((self._centred**2).mean())

    def with_each(self, union: FloatArray) -> FloatArray:
        """Pearson's r [features] of the larger of `union` [N] and each feature; constant: 0."""
        table = self._table
        before = union[table.columns]
        after = np.maximum(before, table.weights)
        covariance = union @ self._centred + self._sums(
            (after - before) * self._centred[table.columns]
        )
        total = union.sum() + self._sums(after - before)
        squares = (union**2).sum() + self._sums(after**2 - before**2)
        variance = squares / self._count - (total / self._count) ** 2
        scale = np.sqrt(np.maximum(variance, 0.0) * self._variance)
        result: FloatArray = np.divide(
            covariance / self._count, scale, out=np.zeros(len(scale)), where=scale > _LEAST_SCALE
        )
        return result

    def _sums(self, entries: FloatArray) -> FloatArray:
        sums: FloatArray = np.bincount(
            self._table.rows, entries, minlength=len(self._table.features)
        ).astype(np.float64)
        return sums


def _mask(table: TokenTable, feature: int) -> FloatArray:
    mask = np.zeros(len(table.activations))
    first, last = np.searchsorted(table.rows, [feature, feature + 1])
    mask[table.columns[first:last]] = table.weights[first:last]
    return mask


_LEAST_SCALE = 1e-12
_WORTH = {
    FeatureKind.WORD: 1.0,
    FeatureKind.CLASS: 1.0,
    FeatureKind.PHRASE: 0.9,
    FeatureKind.STARTS: 0.9,
    FeatureKind.ENDS: 0.9,
    FeatureKind.BEFORE: 0.8,
    FeatureKind.AFTER: 0.9,
}
"""What a correlation of each kind counts: of two that are as good the simpler one is right."""


def feature_sets(
    table: TokenTable, *, beams: int, most: int, gain: float, support: float
) -> list[FeatureSet]:
    """Sets of at most `most` features, best first.

    Beginning with each of the `beams` best features, the one that raises the correlation most is
    added as long as it raises it by `gain`. `support` is the number of tokens that pull a feature
    towards 0, so that what was seen once counts for less.
    """
    features = table.features
    worth = np.asarray([_WORTH[feature.kind] for feature in features])
    held = np.bincount(table.rows, table.weights, minlength=len(features))
    shrinkage = worth * held / (held + support)
    correlations = _Correlations(table)
    single = correlations.with_each(np.zeros(len(table.activations)))
    ranked = np.argsort(-single * shrinkage, kind="stable")[:beams]
    found: dict[frozenset[Feature], FeatureSet] = {}
    for first in ranked.tolist():
        if single[first] <= 0:
            continue
        chosen, best = [first], float(single[first])
        union = _mask(table, first)
        value = float(single[first] * shrinkage[first])
        _keep(found, features, chosen, best, value)
        while len(chosen) < most:
            trial = correlations.with_each(union)
            gains = (trial - best) * shrinkage
            following = int(np.argmax(gains))
            if gains[following] < gain:
                break
            value += float(gains[following]) - gain
            chosen.append(following)
            best = float(trial[following])
            union = np.maximum(union, _mask(table, following))
            _keep(found, features, chosen, best, value)
    return sorted(found.values(), key=lambda each: -each.value)


def _keep(
    found: dict[frozenset[Feature], FeatureSet],
    features: Sequence[Feature],
    chosen: Sequence[int],
    correlation: float,
    value: float,
) -> None:
    named = tuple(features[position] for position in chosen)
    found.setdefault(frozenset(named), FeatureSet(named, correlation, value))
