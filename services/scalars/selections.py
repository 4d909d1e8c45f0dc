"""What a request wants derived, checked against the catalogue and the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.scalars.ablations import check_layer
from services.scalars.catalogue import CATALOGUE, Declaration, Requirement
from services.scalars.deriving.indexing import ActivationIndex, NodeIndex
from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.model.locations import Dimension, LayerIndex, ModelShape, PassType
from shared.errors import InvalidArgument, Unimplemented


@dataclass(frozen=True)
class DimensionRange:
    """Indices start to stop - 1 of a dimension; None for stop is its end."""

    dimension: Dimension
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Selection:
    """A scalar at some layers (none named: all), cut to ranges of its dimensions."""

    dst: str
    pass_type: PassType = PassType.FORWARD
    layer_indices: tuple[int, ...] = ()
    ranges: tuple[DimensionRange, ...] = ()
    node_index: NodeIndex | None = None
    activation_index: ActivationIndex | None = None


@dataclass(frozen=True)
class ResolvedSelection:
    """A checked selection: its declaration, its layers, and a slice for each axis."""

    declaration: Declaration
    pass_type: PassType
    layers: tuple[LayerIndex, ...]
    slices: tuple[slice, ...]
    shape: tuple[int, ...]
    """Of the whole tensor at one layer, before it is cut."""

    @property
    def dst(self) -> DerivedScalarType:
        """The scalar type."""
        return self.declaration.dst

    @property
    def n_bytes(self) -> int:
        """Size of the uncut tensors at all layers."""
        return 4 * math.prod(self.shape) * len(self.layers)


def find_scalar(name: str, field: str) -> Declaration:
    """The declaration of a scalar that this release derives.

    Raises InvalidArgument for a name that is not declared, Unimplemented for one of a later
    release.
    """
    declaration = CATALOGUE.get(name)
    if declaration is None:
        raise InvalidArgument(f"{name!r} is no derived scalar type", field=field)
    if declaration.make is None:
        raise Unimplemented(
            f"{name} is not served yet",
            field=field,
            metadata={"derived_scalar_type": name},
        )
    return declaration


def check_pass(
    declaration: Declaration,
    pass_type: PassType,
    *,
    has_loss: bool,
    field: str,
    loss_field: str,
) -> None:
    """Refuses a gradient that does not exist, and one that nothing is there to take of."""
    name = declaration.dst.name
    if pass_type not in declaration.pass_types:
        raise InvalidArgument(
            f"{name} has no backward pass; these have one: "
            f"{', '.join(CATALOGUE.names_with_backward_pass)}",
            field=field,
            reason="NO_BACKWARD_PASS",
        )
    if declaration.needs_gradient(pass_type) and not has_loss:
        what = f"the backward pass of {name}" if pass_type is PassType.BACKWARD else name
        raise InvalidArgument(
            f"{what} holds a gradient; give a loss", field=loss_field, reason="LOSS_NEEDED"
        )


def resolve_selection(
    selection: Selection,
    shape: ModelShape,
    n_tokens: int,
    *,
    has_loss: bool,
    field: str,
    loss_field: str,
) -> ResolvedSelection:
    """Checks a selection; errors name the field after the prefix `field`."""
    declaration = find_scalar(selection.dst, f"{field}.derived_scalar_type")
    dst = declaration.dst
    check_pass(
        declaration,
        selection.pass_type,
        has_loss=has_loss,
        field=f"{field}.pass_type",
        loss_field=loss_field,
    )
    for given, requirement, name in (
        (selection.node_index, Requirement.NODE_INDEX, "node_index"),
        (selection.activation_index, Requirement.ACTIVATION_INDEX, "activation_index"),
    ):
        if given is not None and requirement not in declaration.requirements:
            raise InvalidArgument(f"{dst.name} takes no {name}", field=f"{field}.{name}")
    sizes = shape.sizes(dst.dimensions, n_tokens)
    return ResolvedSelection(
        declaration=declaration,
        pass_type=selection.pass_type,
        layers=_layers(selection.layer_indices, dst, shape, f"{field}.layer_indices"),
        slices=_slices(selection.ranges, dst, sizes, f"{field}.ranges"),
        shape=sizes,
    )


def whole_selection(
    declaration: Declaration, pass_type: PassType, shape: ModelShape, n_tokens: int
) -> ResolvedSelection:
    """A scalar at all its layers, uncut."""
    sizes = shape.sizes(declaration.dst.dimensions, n_tokens)
    return ResolvedSelection(
        declaration=declaration,
        pass_type=pass_type,
        layers=_layers((), declaration.dst, shape, ""),
        slices=tuple(slice(None) for _ in sizes),
        shape=sizes,
    )


def _layers(
    wanted: Sequence[int], dst: DerivedScalarType, shape: ModelShape, field: str
) -> tuple[LayerIndex, ...]:
    if not dst.has_layers:
        if wanted:
            raise InvalidArgument(f"{dst.name} has no layers; leave them out", field=field)
        return (None,)
    for position, layer in enumerate(wanted):
        if not 0 <= layer < shape.layers:
            raise InvalidArgument(
                f"layer {layer} does not exist; the model has layers 0 to {shape.layers - 1}",
                field=f"{field}[{position}]",
            )
        if layer in wanted[:position]:
            raise InvalidArgument(f"layer {layer} is there twice", field=f"{field}[{position}]")
    return tuple(wanted) or tuple(range(shape.layers))


def _slices(
    ranges: Sequence[DimensionRange], dst: DerivedScalarType, sizes: Sequence[int], field: str
) -> tuple[slice, ...]:
    slices = [slice(None)] * len(sizes)
    seen: set[Dimension] = set()
    for position, each in enumerate(ranges):
        here = f"{field}[{position}]"
        if each.dimension not in dst.dimensions:
            raise InvalidArgument(
                f"{dst.name} has no dimension {each.dimension.value}; it has "
                f"{', '.join(d.value for d in dst.dimensions)}",
                field=f"{here}.dimension",
            )
        if each.dimension in seen:
            raise InvalidArgument(
                f"{each.dimension.value} is there twice", field=f"{here}.dimension"
            )
        seen.add(each.dimension)
        axis = dst.dimensions.index(each.dimension)
        size = sizes[axis]
        stop = size if each.stop is None else each.stop
        if not 0 <= each.start < size:
            raise InvalidArgument(
                f"{each.start} is not in {each.dimension.value}, which has {size}",
                field=f"{here}.start",
            )
        if not each.start < stop <= size:
            raise InvalidArgument(
                f"the range {each.start} to {stop} is not in {each.dimension.value}, "
                f"which has {size}",
                field=f"{here}.stop",
            )
        slices[axis] = slice(each.start, stop)
    return tuple(slices)


@dataclass(frozen=True)
class ComponentSpec:
    """One component at every token, and how many top tokens of it are wanted beside."""

    dst: str
    layer_index: LayerIndex
    component_index: int
    pass_type: PassType = PassType.FORWARD
    top_token_count: int = 0


def resolve_component(
    spec: ComponentSpec,
    shape: ModelShape,
    n_tokens: int,
    *,
    has_loss: bool,
    field: str,
    loss_field: str,
    by_token_pair: bool = False,
) -> ResolvedSelection:
    """Checks a component; the selection answered is its own scalars at its layer.

    Raises InvalidArgument for a type that is not indexed by token (or token pair of a flattened
    triangle) and component; with `by_token_pair`, by query, key and component.
    """
    component = f"{field}.component"
    declaration = find_scalar(spec.dst, f"{component}.derived_scalar_type")
    dst = declaration.dst
    tokens = (Dimension.SEQUENCE_TOKENS,)
    allowed = (
        [(*tokens, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)]
        if by_token_pair
        else [tokens, (Dimension.SEQUENCE_TOKEN_PAIRS,)]
    )
    if dst.dimensions[:-1] not in allowed:
        raise InvalidArgument(
            f"{dst.name} has the dimensions {', '.join(d.value for d in dst.dimensions)}; one "
            f"that is indexed by {'token pair' if by_token_pair else 'token'} and component is "
            "needed",
            field=f"{component}.derived_scalar_type",
        )
    check_pass(
        declaration,
        spec.pass_type,
        has_loss=has_loss,
        field=f"{field}.pass_type",
        loss_field=loss_field,
    )
    check_layer(spec.layer_index, dst.name, dst.has_layers, shape, component)
    sizes = shape.sizes(dst.dimensions, n_tokens)
    if not 0 <= spec.component_index < sizes[-1]:
        raise InvalidArgument(
            f"component {spec.component_index} is not in {dst.dimensions[-1].value}, "
            f"which has {sizes[-1]}",
            field=f"{component}.component_index",
        )
    return ResolvedSelection(
        declaration=declaration,
        pass_type=spec.pass_type,
        layers=(spec.layer_index,),
        slices=(
            *(slice(None) for _ in sizes[:-1]),
            slice(spec.component_index, spec.component_index + 1),
        ),
        shape=sizes,
    )
