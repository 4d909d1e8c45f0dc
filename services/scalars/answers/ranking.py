"""Which nodes are the strongest, and what they amount to: on the device, with results alone
leaving it.

Nothing here loops over nodes; there are loops over layers and over types of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.answers.node_lists import INDICES, NodeList, joined, no_nodes, united
from services.scalars.deriving.activations import ActivationsAndMetadata
from services.scalars.deriving.selection import (
    Extremes,
    top_and_bottom,
    top_of_several,
)
from services.scalars.model.locations import Dimension, LayerIndex, NodeType
from services.scalars.requests.selections import ResolvedSelection
from services.scalars.requests.top_nodes import TOKEN_DIMENSIONS, ResolvedTopNodes, TopNodesSpec

Scalars = Callable[[ResolvedSelection], ActivationsAndMetadata]
"""Gives a selection's tensors, by layer."""


@dataclass(frozen=True)
class NodeScalars:
    """The listed nodes, each group's scalar of every node, and sums over all nodes.

    Sums are by group and name of the scalar type.
    """

    nodes: NodeList
    values: dict[str, NDArray[np.float32]]
    sums: dict[tuple[str, str], NDArray[np.float32]]


def strongest_nodes(resolved: ResolvedTopNodes, scalars: Scalars) -> NodeList:
    """The nodes that the groups list, each once.

    Each group contributes the `count` largest of each of its types, then the `count` smallest,
    both blocks in descending order; a node that an earlier group listed is not repeated. Values
    that are not a number take no part.
    """
    return united([_extreme_nodes(group, resolved, scalars) for group in resolved.groups])


def _extreme_nodes(
    group: Sequence[ResolvedSelection], resolved: ResolvedTopNodes, scalars: Scalars
) -> NodeList:
    spec = resolved.spec
    # Without a count the largest are already all of them.
    largest_only = spec.exclude_bottom or spec.count is None
    node_types = tuple(each.dst.node_type for each in group)
    blocks: tuple[list[Tensor], list[Tensor]] = ([], [])
    rows: tuple[list[NodeList], list[NodeList]] = ([], [])
    for kind, each in sorted(enumerate(group), key=lambda pair: _place_among_equals(pair[1])):
        by_layer = scalars(each).activations_by_layer_index
        ranked = resolved.ranked_layers(each)
        tensors = [by_layer[layer] for layer in ranked]
        if resolved.token_index is not None:
            tensors = [tensor[resolved.token_index] for tensor in tensors]
        if spec.count is None:
            total = sum(tensor.numel() for tensor in tensors)
            found: tuple[Extremes, ...] = (top_of_several(tensors, total, largest=True),)
        elif largest_only:
            found = (top_of_several(tensors, spec.count, largest=True),)
        else:
            found = top_and_bottom(tensors, spec.count)
        for block, listed, extremes in zip(blocks, rows, found, strict=False):
            block.append(extremes.values)
            listed.append(_nodes_at(extremes, tensors, ranked, kind, node_types, resolved))
    return joined(
        [
            joined(listed).ordered(_descending(torch.cat(block).float()).cpu().numpy())
            for block, listed in zip(blocks, rows, strict=True)
            if listed
        ]
    )


_FIRST_AMONG_EQUALS = (NodeType.LAYER, NodeType.ATTENTION_HEAD)


def _place_among_equals(selection: ResolvedSelection) -> int:
    """Sorts types so that of equal values those stand first that do in the reference's answers."""
    node_type = selection.dst.node_type
    if node_type not in _FIRST_AMONG_EQUALS:
        return len(_FIRST_AMONG_EQUALS)
    return _FIRST_AMONG_EQUALS.index(node_type)


def _descending(values: Tensor) -> Tensor:
    """Positions in descending order of the values.

    Equal values stand as in the reference's answers, which come from the same selection of all.
    """
    return torch.topk(values, len(values)).indices


def _nodes_at(
    extremes: Extremes,
    tensors: Sequence[Tensor],
    ranked: Sequence[LayerIndex],
    kind: int,
    node_types: tuple[NodeType, ...],
    resolved: ResolvedTopNodes,
) -> NodeList:
    if not tensors:
        return no_nodes(node_types, resolved.spec.pass_type)
    owners = extremes.owners.cpu().numpy()
    positions = extremes.positions.cpu().numpy()
    # Layers differ in the number of latents, and in nothing else.
    last = np.array([tensor.shape[-1] for tensor in tensors])[owners]
    columns = [positions % last]
    rest = positions // last
    for size in reversed(tensors[0].shape[1:-1]):
        columns.insert(0, rest % size)
        rest = rest // size
    if tensors[0].ndim > 1:
        columns.insert(0, rest)
    if resolved.token_index is not None:
        columns.insert(0, np.full_like(positions, resolved.token_index))
    indices = np.full((len(positions), INDICES), -1, dtype=np.int64)
    indices[:, : len(columns)] = np.stack(columns, axis=1)
    layers = np.array([-1 if layer is None else layer for layer in ranked], dtype=np.int64)
    return NodeList(
        node_types,
        np.full(len(positions), kind, dtype=np.int64),
        layers[owners],
        indices,
        resolved.spec.pass_type,
    )


def values_of(
    nodes: NodeList, resolved: ResolvedTopNodes, scalars: Scalars
) -> dict[str, NDArray[np.float32]]:
    """Each group's scalar of every node of a list, whichever group or prompt listed it."""
    places = []
    for node_type, layer, positions in nodes.blocks():
        indices = nodes.indices[positions]
        used = int((indices[0] >= 0).sum())
        places.append(
            (
                node_type,
                None if layer < 0 else layer,
                positions,
                torch.from_numpy(indices[:, :used].T),
            )
        )
    return {
        group.group_id: _group_values(len(nodes), members, places, scalars)
        for group, members in zip(resolved.spec.groups, resolved.groups, strict=True)
    }


def _group_values(
    count: int,
    members: Sequence[ResolvedSelection],
    places: Sequence[tuple[NodeType, LayerIndex, NDArray[np.int64], Tensor]],
    scalars: Scalars,
) -> NDArray[np.float32]:
    by_type = {each.dst.node_type: scalars(each).activations_by_layer_index for each in members}
    found = np.zeros(count, dtype=np.float32)
    gathered = [
        by_type[node_type][layer][tuple(indices.to(by_type[node_type][layer].device))]
        for node_type, layer, _, indices in places
    ]
    if gathered:
        positions = np.concatenate([each[2] for each in places])
        found[positions] = torch.cat(gathered).float().cpu().numpy()
    return found


def sums_of(
    resolved: ResolvedTopNodes, scalars: Scalars
) -> dict[tuple[str, str], NDArray[np.float32]]:
    """Sums of all nodes over layers and the dimensions that are not kept."""
    return {
        (group.group_id, each.dst.name): _sum(each, scalars(each), resolved.spec)
        for group, members in zip(resolved.spec.groups, resolved.groups, strict=True)
        for each in members
    }


def _sum(
    each: ResolvedSelection, scalars: ActivationsAndMetadata, spec: TopNodesSpec
) -> NDArray[np.float32]:
    dimensions = each.dst.dimensions
    kept = (
        (*TOKEN_DIMENSIONS, Dimension.SEQUENCE_TOKEN_PAIRS)
        if spec.sum_dimensions is None
        else spec.sum_dimensions
    )
    dropped = [axis for axis, dimension in enumerate(dimensions) if dimension not in kept]
    total: Tensor | None = None
    for layer in each.layers:
        tensor = scalars.activations_by_layer_index[layer]
        part = tensor.sum(dim=dropped) if dropped else tensor
        total = part if total is None else total + part
    if total is None:
        raise ValueError(f"{each.dst.name} has no layers")
    summed: NDArray[np.float32] = total.float().cpu().numpy()
    return summed
