"""The nodes with the largest and the smallest scalars, over groups of derived scalar types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from services.scalars.deriving.activations import ActivationsAndMetadata
from services.scalars.deriving.indexing import DerivedScalarIndex, NodeIndex
from services.scalars.deriving.store import DerivedScalarStore
from services.scalars.model.locations import Dimension, ModelShape, PassType
from services.scalars.selections import (
    ResolvedSelection,
    Selection,
    resolve_selection,
)
from shared.errors import InvalidArgument, ResourceExhausted

MAX_NODES = 500_000
"""Most nodes that one answer lists."""

TOKEN_DIMENSIONS = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)


@dataclass(frozen=True)
class ScalarGroup:
    """Scalar types that are ranked together, one for each node type."""

    group_id: str
    dsts: tuple[str, ...]


@dataclass(frozen=True)
class TopNodesSpec:
    """Which nodes to list.

    `count` is that of the largest and of the smallest of each type, None for every node;
    `sum_dimensions` are those that the sums keep, None for the token dimensions.
    """

    groups: tuple[ScalarGroup, ...]
    token_index: int | None = None
    count: int | None = None
    pass_type: PassType = PassType.FORWARD
    sum_dimensions: tuple[Dimension, ...] | None = None
    exclude_bottom: bool = False


@dataclass(frozen=True)
class ResolvedTopNodes:
    """A checked request: the selections of each group in order."""

    spec: TopNodesSpec
    groups: tuple[tuple[ResolvedSelection, ...], ...]
    token_index: int | None

    @property
    def selections(self) -> tuple[ResolvedSelection, ...]:
        """All that must be derived, each once."""
        return tuple({each.dst.name: each for group in self.groups for each in group}.values())


@dataclass(frozen=True)
class NodeScalars:
    """The listed nodes, each group's scalar of every node, and sums over all nodes.

    Sums are by group and name of the scalar type.
    """

    nodes: tuple[NodeIndex, ...]
    values: dict[str, NDArray[np.float32]]
    sums: dict[tuple[str, str], NDArray[np.float32]]


def resolve_top_nodes(
    spec: TopNodesSpec,
    shape: ModelShape,
    n_tokens: int,
    *,
    has_loss: bool,
    field: str,
    loss_field: str,
) -> ResolvedTopNodes:
    """Checks a request for top nodes; errors name the field after the prefix `field`."""
    groups: list[tuple[ResolvedSelection, ...]] = []
    seen: set[str] = set()
    for position, group in enumerate(spec.groups):
        here = f"{field}.groups[{position}]"
        if group.group_id in seen:
            raise InvalidArgument(f"{group.group_id} is there twice", field=f"{here}.group_id")
        seen.add(group.group_id)
        groups.append(
            tuple(
                _resolve_member(
                    name,
                    spec.pass_type,
                    shape,
                    n_tokens,
                    has_loss,
                    f"{here}.derived_scalar_types[{index}]",
                    f"{field}.pass_type",
                    loss_field,
                )
                for index, name in enumerate(group.dsts)
            )
        )
        node_types = [each.dst.node_type for each in groups[-1]]
        if len(set(node_types)) < len(node_types):
            raise InvalidArgument(
                f"a group holds one type for each node type; these are of {', '.join(node_types)}",
                field=f"{here}.derived_scalar_types",
            )
        if node_types != [each.dst.node_type for each in groups[0]]:
            raise InvalidArgument(
                "all groups must hold the same node types in the same order: here they are "
                f"{', '.join(node_types)}, in the first group "
                f"{', '.join(each.dst.node_type for each in groups[0])}",
                field=f"{here}.derived_scalar_types",
            )
    token = spec.token_index
    if token is not None and not -n_tokens <= token < n_tokens:
        raise InvalidArgument(
            f"token {token} is not in the prompt of {n_tokens} tokens", field=f"{field}.token_index"
        )
    for position, dimension in enumerate(spec.sum_dimensions or ()):
        for group_ in groups:
            for each in group_:
                if dimension not in each.dst.dimensions:
                    raise InvalidArgument(
                        f"{each.dst.name} has no dimension {dimension.value}",
                        field=f"{field}.sum_dimensions.dimensions[{position}]",
                    )
    resolved = ResolvedTopNodes(spec, tuple(groups), None if token is None else token % n_tokens)
    _check_number(resolved, n_tokens, field)
    return resolved


def _resolve_member(
    name: str,
    pass_type: PassType,
    shape: ModelShape,
    n_tokens: int,
    has_loss: bool,
    field: str,
    pass_field: str,
    loss_field: str,
) -> ResolvedSelection:
    try:
        resolved = resolve_selection(
            Selection(name, pass_type),
            shape,
            n_tokens,
            has_loss=has_loss,
            field="",
            loss_field=loss_field,
        )
    except InvalidArgument as error:
        error.field = {".derived_scalar_type": field, ".pass_type": pass_field}.get(
            error.field, error.field
        )
        raise
    if len(resolved.shape) > 3:
        raise InvalidArgument(
            f"{name} has {len(resolved.shape)} dimensions; a node has at most 3 indices",
            field=field,
        )
    return resolved


def _check_number(resolved: ResolvedTopNodes, n_tokens: int, field: str) -> None:
    number = 0
    for group in resolved.groups:
        for each in group:
            elements = each.n_bytes // 4
            if resolved.token_index is not None:
                elements //= each.shape[0]
            wanted = elements if resolved.spec.count is None else 2 * resolved.spec.count
            number += min(elements, wanted)
    if number > MAX_NODES:
        raise ResourceExhausted(
            f"up to {number} nodes would be listed; {MAX_NODES} is the most. Ask for fewer",
            field=f"{field}.top_and_bottom_count",
            reason="REQUEST_TOO_LARGE",
            metadata={"nodes": str(number), "limit": str(MAX_NODES)},
        )


def rank_nodes(resolved: ResolvedTopNodes, store: DerivedScalarStore) -> NodeScalars:
    """Lists nodes of scalars at hand.

    Each group contributes the `count` largest of each of its types, then the `count` smallest,
    both blocks in descending order; a node that an earlier group listed is not repeated. Values
    that are not a number take no part.
    """
    spec = resolved.spec
    chosen: dict[NodeIndex, None] = {}
    for group in resolved.groups:
        for largest in (True, False):
            # Without a count the largest are already all of them.
            if not largest and (spec.exclude_bottom or spec.count is None):
                continue
            chosen.update(dict.fromkeys(_extreme_nodes(group, store, resolved, largest)))
    nodes = tuple(chosen)
    return NodeScalars(
        nodes=nodes,
        values={
            group.group_id: _values(nodes, members, store, spec.pass_type)
            for group, members in zip(spec.groups, resolved.groups, strict=True)
        },
        sums={
            (group.group_id, each.dst.name): _sum(each, store, spec)
            for group, members in zip(spec.groups, resolved.groups, strict=True)
            for each in members
        },
    )


def _extreme_nodes(
    group: Sequence[ResolvedSelection],
    store: DerivedScalarStore,
    resolved: ResolvedTopNodes,
    largest: bool,
) -> list[NodeIndex]:
    found: list[tuple[float, NodeIndex]] = []
    for each in group:
        scalars = store.get(each.dst, each.pass_type)
        count = scalars.numel if resolved.spec.count is None else resolved.spec.count
        values, places = _at_token(scalars, resolved.token_index).topk(count, largest=largest)
        found += [
            (value, _with_token(place, resolved.token_index).node_index)
            for value, place in zip(values.tolist(), places, strict=True)
        ]
    found.sort(key=lambda pair: pair[0], reverse=True)
    return [node for _, node in found]


def _at_token(scalars: ActivationsAndMetadata, token: int | None) -> ActivationsAndMetadata:
    if token is None:
        return scalars
    return scalars.apply_transform_fn(lambda tensor, layer: tensor[token])


def _with_token(place: DerivedScalarIndex, token: int | None) -> DerivedScalarIndex:
    if token is None:
        return place
    return DerivedScalarIndex(
        place.dst, (token, *place.tensor_indices), place.layer_index, place.pass_type
    )


def _values(
    nodes: Sequence[NodeIndex],
    members: Sequence[ResolvedSelection],
    store: DerivedScalarStore,
    pass_type: PassType,
) -> NDArray[np.float32]:
    values = np.zeros(len(nodes), dtype=np.float32)
    by_type = {each.dst.node_type: each.dst for each in members}
    places: dict[tuple[str, int | None], list[int]] = {}
    for position, node in enumerate(nodes):
        places.setdefault((node.node_type, node.layer_index), []).append(position)
    for (node_type, layer), positions in places.items():
        scalars = store.get(next(d for t, d in by_type.items() if t == node_type), pass_type)
        tensor = scalars.activations_by_layer_index[layer]
        indices = torch.tensor(
            [nodes[position].tensor_indices for position in positions], device=tensor.device
        )
        values[positions] = tensor[tuple(indices.T)].cpu().numpy()
    return values


def _sum(
    each: ResolvedSelection, store: DerivedScalarStore, spec: TopNodesSpec
) -> NDArray[np.float32]:
    kept = (
        [
            dimension
            for dimension in each.dst.dimensions
            if dimension in TOKEN_DIMENSIONS or dimension is Dimension.SEQUENCE_TOKEN_PAIRS
        ]
        if spec.sum_dimensions is None
        else list(spec.sum_dimensions)
    )
    total = store.filter(dsts=[each.dst], pass_type=each.pass_type).sum(kept)
    summed: NDArray[np.float32] = total.cpu().numpy()
    return summed
