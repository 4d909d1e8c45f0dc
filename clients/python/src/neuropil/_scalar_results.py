"""What derived scalars come as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil import names
from neuropil._inference import NodeIndex
from neuropil._record_types import TokenPairSequence
from neuropil.common import v1 as common
from neuropil.scalars import v1
from neuropil.tensors import to_array

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Run:
    """What a run of the model gave besides activations."""

    tokens: list[str]
    token_ids: list[int]
    loss: float | None
    """None where there is none, or it is not finite."""
    seconds: float
    """Spent in forward and backward pass."""
    traced_activation: float | None = field(default=None, kw_only=True)
    """Activation that the backward pass started from; None without a trace."""


@dataclass(frozen=True)
class DerivedScalars(Run):
    """Derived tensors of one prompt."""

    tensors: Mapping[tuple[str, int | None], NDArray[Any]]
    """By scalar type and layer; None as the layer of what has none."""

    def __getitem__(self, key: tuple[str, int | None] | str) -> NDArray[Any]:
        return self.tensors[(key, None) if isinstance(key, str) else key]


@dataclass(frozen=True)
class Node(NodeIndex):
    """One part of the model at one token or token pair, with its scalar."""

    indices: tuple[int, ...]
    """[token, neuron] or [query, key, head], for example."""
    values: Mapping[str, float]
    """The node's scalar in each group."""


@dataclass(frozen=True)
class VocabularyScore:
    """An entry of the vocabulary with a score."""

    token: str
    score: float
    normalized: float
    """The score divided by the largest absolute one of its lists, -1 to 1."""


@dataclass(frozen=True)
class TopTokens:
    """Entries of the vocabulary that a node promotes, or reads, most and least.

    Of a component whose activation at token 0 is negative, the lists are exchanged: `top` is what
    it promotes when it is active, which its write there suppresses, with negative scores.
    """

    top: list[VocabularyScore]
    """Largest first; where the lists are exchanged, smallest first."""
    bottom: list[VocabularyScore]
    """Smallest first; where the lists are exchanged, largest first."""


@dataclass(frozen=True)
class ComponentScalars:
    """The scalars of one component at every token."""

    activations: Floats
    """[tokens]; token pairs where the type is flattened."""
    nodes: list[NodeIndex]
    """What each belongs to."""
    top_tokens: TopTokens | None
    """None unless asked for, and where the component writes nothing at token 0."""


@dataclass(frozen=True)
class TopNodes:
    """Nodes with the largest and the smallest scalars."""

    nodes: list[Node]
    """The union of the groups' nodes."""
    sums: Mapping[tuple[str, str], Floats]
    """By group and scalar type: sums over all nodes, listed or not."""
    vocabulary_tokens: list[str]
    """Text of each node; empty unless nodes are entries of the vocabulary."""


@dataclass(frozen=True)
class Attribution:
    """Attended-to tokens that a node is attributed to."""

    top: list[tuple[int, float]]
    """Position and attribution, largest first."""
    bottom: list[tuple[int, float]]
    """The same, smallest first."""


BatchResult = (
    ComponentScalars
    | TokenPairSequence
    | TopNodes
    | list[TopTokens | None]
    | list[Attribution | None]
    | Floats
)
"""The answer to a spec: what it is follows from the kind of the spec."""


@dataclass(frozen=True)
class BatchRun(Run):
    """An inference of a batch with what was derived from it."""

    results: Mapping[str, Any]
    """By name of the spec, a `BatchResult` each."""

    def __getitem__(self, name: str) -> Any:
        return self.results[name]


def run_of(result: v1.InferenceResult) -> dict[str, Any]:
    """The fields of a `Run`."""
    return {
        "tokens": list(result.tokens),
        "token_ids": list(result.token_ids),
        "loss": result.loss if result.HasField("loss") else None,
        "seconds": result.seconds,
        "traced_activation": (
            result.traced_activation if result.HasField("traced_activation") else None
        ),
    }


def component_scalars_of(message: v1.ComponentScalars) -> ComponentScalars:
    """One component's scalars of a message."""
    return ComponentScalars(
        activations=to_array(message.activations),
        nodes=[
            NodeIndex(kind, layer, indices) for kind, layer, indices in _node_rows(message.nodes)
        ],
        top_tokens=(top_tokens_of(message.top_tokens) if message.HasField("top_tokens") else None),
    )


def top_nodes_of(message: v1.TopNodes) -> TopNodes:
    """The strongest nodes of a message."""
    columns = {
        names.GROUP_IDS.name(each.group_id): to_array(each.values).tolist()
        for each in message.groups
    }
    return TopNodes(
        nodes=[
            Node(kind, layer, indices, {group: values[row] for group, values in columns.items()})
            for row, (kind, layer, indices) in enumerate(_node_rows(message.nodes))
        ],
        sums={
            (
                names.GROUP_IDS.name(each.group_id),
                names.DERIVED_SCALAR_TYPES.name(each.derived_scalar_type),
            ): to_array(each.values)
            for each in message.sums
        },
        vocabulary_tokens=list(message.vocabulary_tokens),
    )


def token_pairs_of(message: common.TokenPairSequences) -> TokenPairSequence:
    """The only sequence of a message: the prompt."""
    return TokenPairSequence(
        tokens=list(message.tokens),
        attended_to_cap=message.attended_to_caps[0],
        activations=to_array(message.activations),
    )


def batch_result_of(message: v1.NamedResult) -> BatchResult:
    """The answer to a spec."""
    match message.WhichOneof("result"):
        case "component":
            return component_scalars_of(message.component)
        case "component_by_token_pair":
            return token_pairs_of(message.component_by_token_pair)
        case "top_nodes":
            return top_nodes_of(message.top_nodes)
        case "scored_tokens":
            return [
                top_tokens_of(each) if each.top or each.bottom else None
                for each in message.scored_tokens.nodes
            ]
        case "token_pair_attribution":
            return [_attribution_of(each) for each in message.token_pair_attribution.nodes]
        case _:
            return to_array(message.selection)


def top_tokens_of(message: v1.TopTokens) -> TopTokens:
    """Entries of the vocabulary of a message."""
    top, bottom = (
        [VocabularyScore(each.token, each.scalar, each.normalized_scalar) for each in entries]
        for entries in (message.top, message.bottom)
    )
    return TopTokens(top, bottom)


def _attribution_of(message: v1.TokenPairAttribution) -> Attribution | None:
    if not message.top_tokens and not message.bottom_tokens:
        return None
    return Attribution(
        top=list(zip(message.top_tokens, message.top_values, strict=True)),
        bottom=list(zip(message.bottom_tokens, message.bottom_values, strict=True)),
    )


def _node_rows(table: v1.NodeTable) -> list[tuple[str, int | None, tuple[int, ...]]]:
    return [
        (
            names.NODE_TYPES.name(kind),
            None if layer < 0 else layer,
            tuple(each for each in table.tensor_indices[3 * row : 3 * row + 3] if each >= 0),
        )
        for row, (kind, layer) in enumerate(zip(table.node_types, table.layer_indices, strict=True))
    ]
