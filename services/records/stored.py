"""What a record file holds of a component, as columns: of a part all tokens, all activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.formats.records import ActivationRecord, NeuronRecord


@dataclass(frozen=True, slots=True)
class Samples:
    """The sequences of one part of a record file, one after the other.

    `part` is the name of that part in the file; `lengths` has the number of tokens of each
    sequence, `counts` that of its activations; `values` are the activations of all.
    """

    part: str
    tokens: list[str]
    lengths: list[int]
    values: NDArray[np.float64]
    counts: list[int]

    @classmethod
    def of(cls, records: Sequence[ActivationRecord], part: str) -> Samples:
        """The sequences as columns."""
        values = [np.array(record.activations, dtype=np.float64) for record in records]
        return cls(
            part=part,
            tokens=[token for record in records for token in record.tokens],
            lengths=[len(record.tokens) for record in records],
            values=np.concatenate(values) if values else np.zeros(0, dtype=np.float64),
            counts=[len(record.activations) for record in records],
        )

    def field(self, position: int) -> str:
        """Path, in the file, of the sequence at `position`."""
        return f"{self.part}[{position}]"


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record file's content; `quantiles` is empty where they were not asked for.

    `moments` are mean, variance, skewness and kurtosis; None or NaN where they are not known.
    """

    top: Samples
    random: Samples
    quantiles: list[Samples]
    quantile_boundaries: list[float] | None
    moments: tuple[float | None, ...]

    @classmethod
    def of(cls, record: NeuronRecord, *, with_quantiles: bool) -> StoredRecord:
        """The record as columns."""
        quantiles = record.random_sample_by_quantile if with_quantiles else None
        return cls(
            top=Samples.of(record.most_positive_activation_records, TOP),
            random=Samples.of(record.random_sample, RANDOM),
            quantiles=[
                Samples.of(records, quantile_part(position))
                for position, records in enumerate(quantiles or [])
            ],
            quantile_boundaries=record.quantile_boundaries,
            moments=(record.mean, record.variance, record.skewness, record.kurtosis),
        )


TOP = "most_positive_activation_records"
RANDOM = "random_sample"
QUANTILES = "random_sample_by_quantile"


def quantile_part(position: int) -> str:
    """What the part of a quantile is called in a file."""
    return f"{QUANTILES}[{position}]"
