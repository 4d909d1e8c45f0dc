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


def correlations(masks: FloatArray, activations: FloatArray) -> FloatArray:
    """Pearson's r of each row of `masks` [features, N] with `activations` [N]; 0 where constant."""
    centred = activations - activations.mean()
    means = masks.mean(axis=1)
    covariance = masks @ centred / len(centred)
    variance = np.maximum((masks**2).mean(axis=1) - means**2, 0) * (centred**2).mean()
    scale = np.sqrt(variance)
    result: FloatArray = np.divide(
        covariance, scale, out=np.zeros(len(masks)), where=scale > 1e-12 * (1 + scale.max())
    )
    return result


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
    features = list(table.masks)
    masks = np.stack([table.masks[feature] for feature in features])
    worth = np.asarray([_WORTH[feature.kind] for feature in features])
    shrinkage = worth * masks.sum(axis=1) / (masks.sum(axis=1) + support)
    single = correlations(masks, table.activations)
    ranked = np.argsort(-single * shrinkage, kind="stable")[:beams]
    found: dict[frozenset[Feature], FeatureSet] = {}
    for first in ranked.tolist():
        if single[first] <= 0:
            continue
        chosen, best = [first], float(single[first])
        union = masks[first]
        value = float(single[first] * shrinkage[first])
        _keep(found, features, chosen, best, value)
        while len(chosen) < most:
            trial = correlations(np.maximum(masks, union), table.activations)
            gains = (trial - best) * shrinkage
            following = int(np.argmax(gains))
            if gains[following] < gain:
                break
            value += float(gains[following]) - gain
            chosen.append(following)
            best = float(trial[following])
            union = np.maximum(union, masks[following])
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
