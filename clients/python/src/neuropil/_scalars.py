"""Derived scalars, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil import names
from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, translated
from neuropil.scalars import v1
from neuropil.tensors import to_array


@dataclass(frozen=True)
class Loss:
    """What a backward pass starts from, at the last token of the prompt."""

    kind: str
    """logit_diff, logit_minus_mean, probs or zero."""
    targets: Sequence[str] = ()
    """Strings that each are one token."""
    distractors: Sequence[str] = ()
    """Strings that each are one token; logit_diff only."""

    def message(self) -> v1.LossFunction:
        """As the contract says it.

        Raises:
            ValueError: if there is no such kind.
        """
        return v1.LossFunction(
            kind=names.LOSS_KINDS.value(self.kind),
            target_tokens=self.targets,
            distractor_tokens=self.distractors,
        )


@dataclass(frozen=True)
class Ablation:
    """Overwrites activations in the forward pass, or gradients in the backward pass."""

    location: str
    """For example ``mlp.post_act`` or ``attn.qk_probs``."""
    layer_index: int | None
    indices: Sequence[int | None]
    """One for each dimension; None means all of it."""
    value: float
    pass_type: str = "forward"

    def message(self) -> v1.Ablation:
        """As the contract says it.

        Raises:
            ValueError: if there is no such location or pass type.
        """
        return v1.Ablation(
            index=common.ActivationIndex(
                location_type=names.ACTIVATION_LOCATION_TYPES.value(self.location),
                layer_index=self.layer_index,
                tensor_indices=[common.DimensionIndex(index=index) for index in self.indices],
                pass_type=names.PASS_TYPES.value(self.pass_type),
            ),
            value=self.value,
        )


@dataclass(frozen=True)
class DerivedScalars:
    """Derived tensors of one prompt."""

    tokens: list[str]
    token_ids: list[int]
    loss: float | None
    seconds: float
    """Spent in forward and backward pass."""
    tensors: Mapping[tuple[str, int | None], NDArray[Any]]
    """By scalar type and layer; None as the layer of what has none."""

    def __getitem__(self, key: tuple[str, int | None] | str) -> NDArray[Any]:
        return self.tensors[(key, None) if isinstance(key, str) else key]


@dataclass(frozen=True)
class Node:
    """One part of the model at one token or token pair, with its scalar."""

    node_type: str
    layer_index: int | None
    indices: tuple[int, ...]
    """[token, neuron] or [query, key, head], for example."""
    values: Mapping[str, float]
    """The node's scalar in each group."""


class ScalarsClient:
    """Derived scalars of the deployment's subject model."""

    def __init__(self, stub: v1.DerivedScalarsStub, timeout: float) -> None:
        self.stub = stub
        """The generated stub, for what this class doesn't cover."""
        self._timeout = timeout

    def model_info(self) -> v1.GetModelInfoResponse:
        """The subject model's name and sizes."""
        with translated():
            return self.stub.GetModelInfo(v1.GetModelInfoRequest(), timeout=self._timeout)

    def scalar_types(self) -> list[v1.ScalarType]:
        """The catalogue of derived scalar types."""
        with translated():
            answer = self.stub.ListScalarTypes(v1.ListScalarTypesRequest(), timeout=self._timeout)
        return list(answer.scalar_types)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, with the model's tokenizer."""
        with translated():
            answer = self.stub.Tokenize(v1.TokenizeRequest(texts=[text]), timeout=self._timeout)
        return list(answer.texts[0].tokens)

    def derive(
        self,
        prompt: str,
        scalar_types: Sequence[str],
        *,
        layers: Sequence[int] = (),
        loss: Loss | None = None,
        ablations: Sequence[Ablation] = (),
        pass_type: str = "forward",
    ) -> DerivedScalars:
        """Derive whole tensors for a prompt, all layers unless some are named.

        Raises:
            ValueError: if a name is unknown.
            NeuropilError: INVALID_ARGUMENT, naming the field, for what the model can't do.
        """
        selections = [
            v1.ScalarSelection(
                derived_scalar_type=names.DERIVED_SCALAR_TYPES.value(name),
                pass_type=names.PASS_TYPES.value(pass_type),
                layer_indices=layers,
            )
            for name in scalar_types
        ]
        request = v1.DeriveRequest(
            inference=_inference(prompt, loss, ablations), selections=selections
        )
        result: v1.InferenceResult | None = None
        tensors: dict[tuple[str, int | None], NDArray[Any]] = {}
        with translated():
            for response in self.stub.Derive(request, timeout=self._timeout):
                if response.HasField("inference"):
                    result = response.inference
                else:
                    _place(response.frame, scalar_types, tensors)
        if result is None:
            raise NeuropilError("DATA_LOSS", "the answer ended before the run's result")
        return DerivedScalars(
            tokens=list(result.tokens),
            token_ids=list(result.token_ids),
            loss=result.loss if result.HasField("loss") else None,
            seconds=result.seconds,
            tensors=tensors,
        )

    def top_nodes(
        self,
        prompt: str,
        groups: Mapping[str, Sequence[str]],
        *,
        count: int = 10,
        loss: Loss | None = None,
        ablations: Sequence[Ablation] = (),
    ) -> list[Node]:
        """The nodes with the largest and the smallest scalars, `count` of each a scalar type.

        `groups` holds scalar types by group, for example
        ``{"write_norm": ["mlp_write_norm", "unflattened_attn_write_norm"]}``.

        Raises:
            ValueError: if a name is unknown.
            NeuropilError: INVALID_ARGUMENT, naming the field, for what the model can't do.
        """
        request = v1.ListTopNodesRequest(
            inference=_inference(prompt, loss, ablations),
            spec=v1.TopNodesSpec(
                groups=[
                    v1.ScalarGroup(
                        group_id=names.GROUP_IDS.value(group),
                        derived_scalar_types=[
                            names.DERIVED_SCALAR_TYPES.value(name) for name in scalar_types
                        ],
                    )
                    for group, scalar_types in groups.items()
                ],
                top_and_bottom_count=count,
            ),
        )
        with translated():
            top = self.stub.ListTopNodes(request, timeout=self._timeout).top_nodes
        values = {names.GROUP_IDS.name(g.group_id): to_array(g.values) for g in top.groups}
        table = top.nodes
        return [
            Node(
                node_type=names.NODE_TYPES.name(node_type),
                layer_index=None if layer < 0 else layer,
                indices=tuple(
                    index for index in table.tensor_indices[3 * row : 3 * row + 3] if index >= 0
                ),
                values={group: float(column[row]) for group, column in values.items()},
            )
            for row, (node_type, layer) in enumerate(
                zip(table.node_types, table.layer_indices, strict=True)
            )
        ]


def _inference(prompt: str, loss: Loss | None, ablations: Sequence[Ablation]) -> v1.InferenceSpec:
    return v1.InferenceSpec(
        prompt=prompt,
        loss=None if loss is None else loss.message(),
        ablations=[ablation.message() for ablation in ablations],
    )


def _place(
    frame: v1.TensorFrame,
    scalar_types: Sequence[str],
    tensors: dict[tuple[str, int | None], NDArray[Any]],
) -> None:
    layer = frame.layer_index if frame.HasField("layer_index") else None
    key = (scalar_types[frame.selection], layer)
    rows = to_array(frame.rows)
    if frame.first_row == 0 and rows.shape == tuple(frame.shape):
        tensors[key] = rows
        return
    if key not in tensors:
        tensors[key] = np.empty(tuple(frame.shape), dtype=rows.dtype)
    tensors[key][frame.first_row : frame.first_row + len(rows)] = rows
