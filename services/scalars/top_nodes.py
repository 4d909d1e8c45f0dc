"""Which nodes a request wants listed: groups of derived scalar types, checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.scalars.model.locations import Dimension, ModelShape, PassType
from services.scalars.selections import (
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
    groups = tuple(
        tuple(
            _resolve_member(
                name,
                spec.pass_type,
                shape,
                n_tokens,
                has_loss,
                f"{field}.groups[{position}].derived_scalar_types[{index}]",
                f"{field}.pass_type",
                loss_field,
            )
            for index, name in enumerate(group.dsts)
        )
        for position, group in enumerate(spec.groups)
    )
    _check_groups(spec, groups, field)
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
    for position, dimension in enumerate(spec.sum_dimensions or ()):
        _check_every(
            groups,
            lambda each, wanted=dimension: wanted in each.dst.dimensions,  # type: ignore[misc]
            f"{{}} has no dimension {dimension.value}",
            f"{field}.sum_dimensions.dimensions[{position}]",
        )
    resolved = ResolvedTopNodes(spec, groups, None if token is None else token % n_tokens)
    _check_number(resolved, field)
    return resolved


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
            if (each.shape, each.layers) != (other.shape, other.layers):
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
    shape: ModelShape,
    n_tokens: int,
    has_loss: bool,
    field: str,
    pass_field: str,
    loss_field: str,
) -> ResolvedSelection:
    declaration = find_scalar(name, field)
    check_pass(declaration, pass_type, has_loss=has_loss, field=pass_field, loss_field=loss_field)
    resolved = whole_selection(declaration, pass_type, shape, n_tokens)
    if len(resolved.shape) > 3:
        raise InvalidArgument(
            f"{name} has {len(resolved.shape)} dimensions; a node has at most 3 indices",
            field=field,
        )
    return resolved


def _check_number(resolved: ResolvedTopNodes, field: str) -> None:
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
