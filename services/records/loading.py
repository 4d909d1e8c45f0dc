"""From the content of a record file to what a request asks of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.records.components import Component, View
from services.records.fast_reading import read_record
from services.records.sequences import (
    TokenPairSequences,
    TokenSequences,
    token_pair_sequences,
    token_sequences,
)
from services.records.stored import Samples, StoredRecord

_Sequences = TypeVar("_Sequences", TokenSequences, TokenPairSequences)

# Top and random sequences; samples by quantile are scaled by these too.
_NUM_SCALING = 2


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of the activations; None where one is unknown or not finite."""

    mean: float | None
    variance: float | None
    skewness: float | None
    kurtosis: float | None


@dataclass(frozen=True, slots=True)
class Record(Generic[_Sequences]):
    """A component's record as columns.

    `dataset` is the path that answered, as configured or requested. `max_activation` is the
    largest finite activation of the top sequences, 0 where there is none. What was not asked for
    is empty or None.
    """

    dataset: str
    component: Component
    max_activation: float
    top: _Sequences
    random: _Sequences
    quantiles: list[_Sequences]
    quantile_boundaries: list[float]
    moments: Moments | None


def token_record(
    data: bytes, dataset: str, component: Component, view: View, source: str
) -> Record[TokenSequences]:
    """The record in `data`, a file's content, by token; errors name the file `source`."""
    stored = read_record(data, source, with_quantiles=view.quantile_samples)
    columns, maximum = token_sequences(_groups(stored), _NUM_SCALING, source)
    return _record(stored, columns, maximum, dataset, component, view)


def token_pair_record(
    data: bytes, dataset: str, component: Component, view: View, source: str
) -> Record[TokenPairSequences]:
    """The record in `data`, a file's content, by token pair; errors name the file `source`."""
    stored = read_record(data, source, with_quantiles=view.quantile_samples)
    columns, maximum = token_pair_sequences(_groups(stored), _NUM_SCALING, source)
    return _record(stored, columns, maximum, dataset, component, view)


def _groups(stored: StoredRecord) -> list[Samples]:
    return [stored.top, stored.random, *stored.quantiles]


def _record(
    stored: StoredRecord,
    columns: list[_Sequences],
    maximum: float,
    dataset: str,
    component: Component,
    view: View,
) -> Record[_Sequences]:
    moments = None
    if view.moments:
        moments = Moments(
            *(
                value if value is not None and math.isfinite(value) else None
                for value in stored.moments
            )
        )
    return Record(
        dataset=dataset,
        component=component,
        max_activation=maximum,
        top=columns[0],
        random=columns[1],
        quantiles=columns[_NUM_SCALING:],
        quantile_boundaries=(stored.quantile_boundaries or []) if view.quantile_samples else [],
        moments=moments,
    )
