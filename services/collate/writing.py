"""From what was collected to record files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.collate.collation import Collation
from services.collate.sampling import LargestKeys
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord

Tokens = Callable[[int], list[str]]
"""The tokens of the sequence at a position of the corpus."""


def kept_pairs(token_count: int, cap: int | None) -> NDArray[np.bool_]:
    """Which values of a flattened lower triangle of token pairs stay under a cap.

    Row i (attending token) has values for the attended-to tokens 0 to i; the first `cap` stay.
    """
    attended = np.concatenate([np.arange(row + 1) for row in range(token_count)])
    return attended < (token_count if cap is None else cap)


def value_count(token_count: int, by_token_pair: bool, cap: int | None) -> int:
    """Number of activations that a sequence of so many tokens has."""
    if not by_token_pair:
        return token_count
    missing = max(0, token_count - (token_count if cap is None else cap))
    return token_count * (token_count + 1) // 2 - missing * (missing + 1) // 2


def records(
    collation: Collation,
    layer_sizes: list[int],
    tokens: Tokens,
    values: Callable[[int], int],
) -> Iterator[NeuronRecord]:
    """The record of every component, layer by layer.

    `values` gives the number of activations of a sequence of so many tokens.
    """

    def sample(kept: LargestKeys, component: int) -> list[ActivationRecord]:
        found = []
        for position, activations in kept.kept(component):
            of_sequence = tokens(position)
            count = values(len(of_sequence))
            found.append(ActivationRecord(activations[:count].tolist(), of_sequence))
        return found

    moments = collation.moments
    mean, variance = moments.mean, moments.variance
    skewness, kurtosis = moments.skewness, moments.kurtosis
    component = 0
    for layer, size in enumerate(layer_sizes):
        for index in range(size):
            tracked = bool(collation.by_quantile)
            cuts = collation.quantile_boundaries
            yield NeuronRecord(
                neuron_id=NeuronId(neuron_index=index, layer_index=layer),
                random_sample=sample(collation.random, component),
                random_sample_by_quantile=[
                    sample(part, component) for part in collation.by_quantile
                ]
                if tracked
                else None,
                quantile_boundaries=cuts[:, component].tolist()
                if tracked and cuts is not None
                else None,
                mean=float(mean[component]),
                variance=float(variance[component]),
                skewness=float(skewness[component]),
                kurtosis=float(kurtosis[component]),
                most_positive_activation_records=sample(collation.top, component),
            )
            component += 1


def write_record(folder: Path, record: NeuronRecord, significant_digits: int | None) -> None:
    """Write `<folder>/<layer>/<index>.json`."""
    name = record.neuron_id
    path = folder / str(name.layer_index) / f"{name.neuron_index}.json"
    write_atomically(path, encode(record, significant_digits=significant_digits) + b"\n")


def existing_records(folder: Path) -> list[Path]:
    """Record files `<layer>/<index>.json` that lie in a dataset's folder."""
    return [
        path
        for path in folder.glob("*/*.json")
        if path.stem.isdecimal() and path.parent.name.isdecimal()
    ]
