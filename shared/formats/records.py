"""What was recorded of one component over a corpus: the classes of a record file.

A record file holds one `NeuronRecord` (of a neuron, a latent or an attention head) as JSON;
`shared.formats.decoding` reads it and `shared.formats.encoding` writes it. Numbers that are
undefined are NaN in memory and null in a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec

from shared.errors import InvalidArgument

CLASS_NAME_FIELD = "dataclass_name"
"""The JSON key under which every object carries the name of its class."""

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer of a file; one that needs more bits is no index."""

_T = TypeVar("_T")

_TOP_SPLITS = ("train", "calibration", "valid", "test")
_RANDOM_SPLITS = ("calibration", "valid", "test")


class NeuronId(msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="NeuronId"):
    """Which component of a model: its index within a layer, and the layer; both count from 0."""

    neuron_index: Int64
    layer_index: Int64


class ActivationRecord(msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="ActivationRecord"):
    """A component's activations on one sequence of n tokens.

    `activations` has n values, one a token, or the flattened lower triangle of token pairs of an
    attention head (see `shared.formats.token_pairs`). A value that is no finite number was stored
    as null, NaN or Infinity.
    """

    activations: list[float]
    tokens: list[str]


class ActivationRecordSliceParams(msgspec.Struct, frozen=True):
    """How many sequences a split takes from the top and from the random sequences.

    None takes as many as divide evenly among the splits.
    """

    n_examples_per_split: int | None = None


class NeuronRecord(msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="NeuronRecord"):
    """One component's top sequences, random samples, and moments of its activations.

    `random_sample_by_quantile[i]` holds random sequences of the i-th quantile, with
    `quantile_boundaries` between them; both are None where quantiles were not tracked. Moments are
    of the activations over the whole corpus, NaN or None where they are not known.
    """

    neuron_id: NeuronId
    random_sample: list[ActivationRecord] = []
    random_sample_by_quantile: list[list[ActivationRecord]] | None = None
    quantile_boundaries: list[float] | None = None
    mean: float | None = math.nan
    variance: float | None = math.nan
    skewness: float | None = math.nan
    kurtosis: float | None = math.nan
    most_positive_activation_records: list[ActivationRecord] = []

    @property
    def max_activation(self) -> float:
        """Largest finite activation of the top sequences; 0 where there is none."""
        finite = (
            value
            for record in self.most_positive_activation_records
            for value in record.activations
            if math.isfinite(value)
        )
        return max(finite, default=0.0)

    def train_activation_records(
        self, activation_record_slice_params: ActivationRecordSliceParams
    ) -> list[ActivationRecord]:
        """Sequences to explain from: top sequences alone."""
        return self._split("train", activation_record_slice_params)

    def calibration_activation_records(
        self, activation_record_slice_params: ActivationRecordSliceParams
    ) -> list[ActivationRecord]:
        """Sequences to calibrate a simulation on: top ones, then random ones."""
        return self._split("calibration", activation_record_slice_params)

    def valid_activation_records(
        self, activation_record_slice_params: ActivationRecordSliceParams
    ) -> list[ActivationRecord]:
        """Sequences to score an explanation on: top ones, then random ones."""
        return self._split("valid", activation_record_slice_params)

    def test_activation_records(
        self, activation_record_slice_params: ActivationRecordSliceParams
    ) -> list[ActivationRecord]:
        """Sequences held out from scoring too: top ones, then random ones."""
        return self._split("test", activation_record_slice_params)

    def _split(self, split: str, params: ActivationRecordSliceParams) -> list[ActivationRecord]:
        count = params.n_examples_per_split
        top = interleaved_split(
            self.most_positive_activation_records, _TOP_SPLITS.index(split), len(_TOP_SPLITS), count
        )
        if split not in _RANDOM_SPLITS:
            return top
        return top + interleaved_split(
            self.random_sample, _RANDOM_SPLITS.index(split), len(_RANDOM_SPLITS), count
        )


def interleaved_split(
    items: Sequence[_T], index: int, num_splits: int, count: int | None = None
) -> list[_T]:
    """Items index, index + num_splits, ...: `count` of them, or len(items) // num_splits.

    Splits of the same `count` are of equal size and share no item. InvalidArgument where `items`
    is too short for num_splits * count.
    """
    if count is None:
        count = len(items) // num_splits
    if count < 0 or len(items) < count * num_splits:
        raise InvalidArgument(
            f"{num_splits} splits of {count} sequences each need {max(count, 0) * num_splits} "
            f"sequences, but the record has {len(items)}; a split can have 0 to "
            f"{len(items) // num_splits}.",
            field="n_examples_per_split",
        )
    return list(items[index : count * num_splits : num_splits])
