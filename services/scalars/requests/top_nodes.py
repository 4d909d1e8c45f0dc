"""Which nodes a request wants listed: groups of derived scalar types, checked against the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from services.scalars.model.locations import Dimension, LayerIndex, PassType
from services.scalars.model.subject import Subject
from services.scalars.passes.inference import PreparedInference
from services.scalars.passes.layers import check_layer_exists
from services.scalars.requests.selections import (
    ResolvedSelection,
    check_pass,
    find_scalar,
    whole_selection,
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
    `sum_dimensions` are those that the sums keep of the types that have them, None for the token
    dimensions. With a `first_layer` only its nodes and those of later layers are listed.
    """

    groups: tuple[ScalarGroup, ...]
    token_index: int | None = None
    count: int | None = None
    pass_type: PassType = PassType.FORWARD
    sum_dimensions: tuple[Dimension, ...] | None = None
    exclude_bottom: bool = False
    first_layer: int | None = None


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

    @property
    def node_layout(self) -> tuple[Hashable, ...]:
        """Equal where nodes of two requests can be united."""
        return tuple(
            (each.dst.node_type, each.dst.dimensions, each.layers) for each in self.groups[0]
        )

    @property
    def nodes(self) -> int:
        """How many nodes there are, at all tokens and layers."""
        return sum(math.prod(shape) for each in self.groups[0] for shape in each.shapes)

    @property
    def max_nodes(self) -> int:
        """Most nodes that it lists: what several groups list counts once."""
        number = 0
        for of_one_type in zip(*self.groups, strict=True):
            there = self._nodes_of(of_one_type[0])
            wanted = there
            if self.spec.count is not None:
                blocks = len(of_one_type) * (1 if self.spec.exclude_bottom else 2)
                wanted = blocks * self.spec.count
            number += min(there, wanted)
        return number

    def _nodes_of(self, each: ResolvedSelection) -> int:
        ranked = set(self.ranked_layers(each))
        # Of a token's nodes the first index is always the same.
        axes = slice(0 if self.token_index is None else 1, None)
        return sum(
            math.prod(shape[axes])
            for layer, shape in zip(each.layers, each.shapes, strict=True)
            if layer in ranked
        )

    def ranked_layers(self, each: ResolvedSelection) -> tuple[LayerIndex, ...]:
        """The layers whose nodes may be listed."""
        first = self.spec.first_layer
        if first is None:
            return each.layers
        return tuple(layer for layer in each.layers if layer is not None and layer >= first)


def resolve_top_nodes(
    spec: TopNodesSpec,
    subject: Subject,
    prepared: PreparedInference,
    *,
    field: str,
    inference_field: str,
) -> ResolvedTopNodes:
    """Checks a request for top nodes; errors name the field after the prefix `field`."""
    groups = tuple(
        tuple(
            _resolve_member(
                name,
                spec.pass_type,
                subject,
                prepared,
                f"{field}.groups[{position}].derived_scalar_types[{index}]",
                f"{field}.pass_type",
                inference_field,
            )
            for index, name in enumerate(group.dsts)
        )
        for position, group in enumerate(spec.groups)
    )
    _check_groups(spec, groups, field)
    n_tokens = len(prepared.tokens)
    token = spec.token_index
    if token is not None:
        if not -n_tokens <= token < n_tokens:
            raise InvalidArgument(
                f"token {token} is not in the prompt of {n_tokens} tokens",
                field=f"{field}.token_index",
            )
        _check_every(
            groups,
            lambda each: Dimension.SEQUENCE_TOKEN_PAIRS not in each.dst.dimensions,
            "{} is by token pair; a token index needs a type by token",
            f"{field}.token_index",
        )
    if spec.first_layer is not None:
        check_layer_exists(spec.first_layer, subject.model.shape, f"{field}.first_layer")
    known = {dimension for group in groups for each in group for dimension in each.dst.dimensions}
    for position, dimension in enumerate(spec.sum_dimensions or ()):
        if dimension not in known:
            raise InvalidArgument(
                f"no type of the groups has the dimension {dimension.value}; they have "
                f"{', '.join(sorted(each.value for each in known))}",
                field=f"{field}.sum_dimensions.dimensions[{position}]",
            )
        for each in (each for group in groups for each in group):
            _check_sum(each, dimension, f"{field}.sum_dimensions.dimensions[{position}]")
    resolved = ResolvedTopNodes(spec, groups, None if token is None else token % n_tokens)
    if resolved.max_nodes > MAX_NODES:
        raise too_many_nodes(resolved.max_nodes, field)
    return resolved


def _check_sum(selection: ResolvedSelection, dimension: Dimension, field: str) -> None:
    """Refuses to sum layers along an axis that is of another length at each."""
    dimensions = selection.dst.dimensions
    if dimension not in dimensions:
        return
    lengths = {shape[dimensions.index(dimension)] for shape in selection.shapes}
    if len(lengths) > 1:
        raise InvalidArgument(
            f"{selection.dst.name} has different {dimension.value} at different layers "
            f"({', '.join(map(str, sorted(lengths)))}), which can't be summed",
            field=field,
        )


def _check_groups(
    spec: TopNodesSpec, groups: Sequence[Sequence[ResolvedSelection]], field: str
) -> None:
    """Refuses groups whose nodes can't be told apart or united."""
    first = groups[0]
    for position, (group, members) in enumerate(zip(spec.groups, groups, strict=True)):
        here = f"{field}.groups[{position}]"
        if group.group_id in [other.group_id for other in spec.groups[:position]]:
            raise InvalidArgument(f"{group.group_id} is there twice", field=f"{here}.group_id")
        node_types = [each.dst.node_type for each in members]
        if len(set(node_types)) < len(node_types):
            raise InvalidArgument(
                f"a group holds one type for each node type; these are of {', '.join(node_types)}",
                field=f"{here}.derived_scalar_types",
            )
        if node_types != [each.dst.node_type for each in first]:
            raise InvalidArgument(
                "all groups must hold the same node types in the same order: here they are "
                f"{', '.join(node_types)}, in the first group "
                f"{', '.join(each.dst.node_type for each in first)}",
                field=f"{here}.derived_scalar_types",
            )
        for index, (each, other) in enumerate(zip(members, first, strict=True)):
            # Dimensions too: those of a single token have equal sizes.
            mine, theirs = ((one.dst.dimensions, one.shapes, one.layers) for one in (each, other))
            if mine != theirs:
                raise InvalidArgument(
                    f"{each.dst.name} is not indexed as {other.dst.name} is, so that their nodes "
                    "can't be united",
                    field=f"{here}.derived_scalar_types[{index}]",
                )


def _check_every(
    groups: Sequence[Sequence[ResolvedSelection]],
    holds: Callable[[ResolvedSelection], bool],
    message: str,
    field: str,
) -> None:
    for members in groups:
        for each in members:
            if not holds(each):
                raise InvalidArgument(message.format(each.dst.name), field=field)


def _resolve_member(
    name: str,
    pass_type: PassType,
    subject: Subject,
    prepared: PreparedInference,
    field: str,
    pass_field: str,
    inference_field: str,
) -> ResolvedSelection:
    declaration = find_scalar(name, field)
    check_pass(declaration, pass_type, prepared, field=pass_field, inference_field=inference_field)
    resolved = whole_selection(
        declaration, pass_type, subject, prepared, field=field, inference_field=inference_field
    )
    if len(resolved.shape) > 3:
        raise InvalidArgument(
            f"{name} has {len(resolved.shape)} dimensions; a node has at most 3 indices",
            field=field,
        )
    return resolved


def too_many_nodes(number: int, field: str) -> ResourceExhausted:
    """The refusal of a request that would list so many nodes."""
    return ResourceExhausted(
        f"up to {number} nodes would be listed; {MAX_NODES} is the most. Ask for fewer",
        field=f"{field}.top_and_bottom_count",
        reason="REQUEST_TOO_LARGE",
        metadata={"nodes": str(number), "limit": str(MAX_NODES)},
    )
