"""What a request wants derived, checked against the catalogue, the model and its inference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.scalars.autoencoders import Autoencoder
from services.scalars.catalogue import CATALOGUE, Declaration, Requirement
from services.scalars.catalogue.availability import (
    autoencoder_for,
    check_exists_at,
    layers_of,
    sizes_of,
)
from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.model.locations import Dimension, LayerIndex, PassType
from services.scalars.model.subject import Subject
from services.scalars.passes.inference import PreparedInference
from services.scalars.passes.layers import check_layer_exists
from services.scalars.requests.selected_nodes import (
    ABOUT_ALL,
    NO_NODE,
    NodeSelection,
    SelectedNode,
    resolve_selected_node,
)
from shared.errors import InvalidArgument

_EDGE_COPIES = 4
"""Tensors of a layer's shape that are there at once while its edges are derived."""


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
    node: NodeSelection = ABOUT_ALL


@dataclass(frozen=True)
class ResolvedSelection:
    """A checked selection: its declaration, its layers, and a slice for each axis.

    `shapes` are those of the whole tensors, before they are cut, layer by layer: an axis of latents
    is as long as each layer has some. `about` is the node that it is about, if any: selections
    with equal ones share their derivers.
    """

    declaration: Declaration
    pass_type: PassType
    layers: tuple[LayerIndex, ...]
    slices: tuple[slice, ...]
    shapes: tuple[tuple[int, ...], ...]
    about: SelectedNode = NO_NODE

    @property
    def dst(self) -> DerivedScalarType:
        """The scalar type."""
        return self.declaration.dst

    @property
    def shape(self) -> tuple[int, ...]:
        """The largest shape of a layer, axis by axis."""
        return tuple(max(sizes) for sizes in zip(*self.shapes, strict=True))

    @property
    def cut_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the answered tensors, layer by layer."""
        return tuple(
            tuple(
                len(range(*part.indices(size)))
                for part, size in zip(self.slices, shape, strict=True)
            )
            for shape in self.shapes
        )

    @property
    def answer_bytes(self) -> int:
        """Size of the answered tensors."""
        return sum(4 * math.prod(shape) for shape in self.cut_shapes)

    @property
    def n_bytes(self) -> int:
        """Size of the uncut tensors at all layers; for edges, of what one layer's take besides."""
        sizes = [4 * math.prod(shape) for shape in self.shapes]
        beside = 0 if self.about.node is None else _EDGE_COPIES * max(sizes)
        return sum(sizes) + beside


def find_scalar(name: str, field: str) -> Declaration:
    """The declaration of a scalar; InvalidArgument for a name that is not declared."""
    declaration = CATALOGUE.get(name)
    if declaration is None:
        raise InvalidArgument(f"{name!r} is no derived scalar type", field=field)
    return declaration


def check_pass(
    declaration: Declaration,
    pass_type: PassType,
    prepared: PreparedInference,
    *,
    field: str,
    inference_field: str,
) -> None:
    """Refuses a gradient that does not exist, and one that the inference has nothing to take of."""
    name = declaration.dst.name
    if pass_type not in declaration.pass_types:
        raise InvalidArgument(
            f"{name} has no backward pass; these have one: "
            f"{', '.join(CATALOGUE.names_with_backward_pass)}",
            field=field,
            reason="NO_BACKWARD_PASS",
        )
    if Requirement.TRACE in declaration.requirements and prepared.trace is None:
        raise InvalidArgument(
            f"{name} is of a traced activation; give a trace",
            field=f"{inference_field}.trace",
            reason="TRACE_NEEDED",
        )
    if declaration.needs_gradient(pass_type) and not prepared.has_gradient:
        what = f"the backward pass of {name}" if pass_type is PassType.BACKWARD else name
        raise InvalidArgument(
            f"{what} holds a gradient; give a loss or a trace",
            field=f"{inference_field}.loss",
            reason="LOSS_NEEDED",
        )


def resolve_selection(
    selection: Selection,
    subject: Subject,
    prepared: PreparedInference,
    *,
    field: str,
    inference_field: str,
    activation_field: str | None = None,
) -> ResolvedSelection:
    """Checks a selection on an inference.

    Errors name the field after the prefix `field`, or `inference_field` for what the inference
    lacks.
    """
    declaration = find_scalar(selection.dst, f"{field}.derived_scalar_type")
    check_pass(
        declaration,
        selection.pass_type,
        prepared,
        field=f"{field}.pass_type",
        inference_field=inference_field,
    )
    autoencoder = autoencoder_of(
        declaration, subject, prepared, f"{field}.derived_scalar_type", inference_field
    )
    shape, n_tokens = subject.model.shape, len(prepared.tokens)
    about = resolve_selected_node(
        declaration,
        selection.node,
        shape,
        n_tokens,
        subject.autoencoders,
        field,
        activation_field or f"{field}.activation_index",
    )
    layers = _layers(
        selection.layer_indices,
        declaration,
        subject,
        prepared,
        autoencoder,
        about,
        f"{field}.layer_indices",
    )
    shapes = tuple(sizes_of(declaration, shape, n_tokens, autoencoder, each) for each in layers)
    return ResolvedSelection(
        declaration=declaration,
        pass_type=selection.pass_type,
        layers=layers,
        slices=_slices(selection.ranges, declaration.dst, shapes, f"{field}.ranges"),
        shapes=shapes,
        about=about,
    )


def whole_selection(
    declaration: Declaration,
    pass_type: PassType,
    subject: Subject,
    prepared: PreparedInference,
    *,
    field: str,
    inference_field: str,
) -> ResolvedSelection:
    """A scalar at all its layers, uncut.

    Raises InvalidArgument for a type that is about a single node, or that the deployment or the
    inference lacks an autoencoder or a latent for.
    """
    refuse_single_node(declaration, field)
    autoencoder = autoencoder_of(declaration, subject, prepared, field, inference_field)
    shape, n_tokens = subject.model.shape, len(prepared.tokens)
    layers = layers_of(declaration, shape, autoencoder, prepared.within_layer_latent)
    return ResolvedSelection(
        declaration=declaration,
        pass_type=pass_type,
        layers=layers,
        slices=tuple(slice(None) for _ in declaration.dst.dimensions),
        shapes=tuple(
            sizes_of(declaration, shape, n_tokens, autoencoder, layer) for layer in layers
        ),
    )


def autoencoder_of(
    declaration: Declaration,
    subject: Subject,
    prepared: PreparedInference,
    field: str,
    inference_field: str,
) -> Autoencoder | None:
    """What a scalar is derived of; InvalidArgument where deployment or inference lacks it."""
    return autoencoder_for(
        declaration,
        subject.autoencoders,
        prepared.within_layer_latent,
        field=field,
        latent_field=f"{inference_field}.within_layer_gradient_index",
    )


def refuse_single_node(declaration: Declaration, field: str) -> None:
    """Refuses a type that only a selection of tensors can say the node or activation of."""
    if declaration.requirements & {Requirement.NODE_INDEX, Requirement.ACTIVATION_INDEX}:
        raise InvalidArgument(
            f"{declaration.dst.name} is about one node; only a selection of tensors can name it",
            field=field,
        )


def _layers(
    wanted: Sequence[int],
    declaration: Declaration,
    subject: Subject,
    prepared: PreparedInference,
    autoencoder: Autoencoder | None,
    about: SelectedNode,
    field: str,
) -> tuple[LayerIndex, ...]:
    name, shape, latent = declaration.dst.name, subject.model.shape, prepared.within_layer_latent
    if not declaration.dst.has_layers:
        if wanted:
            raise InvalidArgument(f"{name} has no layers; leave them out", field=field)
        return (None,)
    only = about.node.layer if declaration.at_layer_of_node and about.node is not None else None
    for position, layer in enumerate(wanted):
        here = f"{field}[{position}]"
        check_layer_exists(layer, shape, here)
        if layer in wanted[:position]:
            raise InvalidArgument(f"layer {layer} is there twice", field=here)
        if only is not None and layer != only:
            raise InvalidArgument(
                f"{name} exists at the layer of its node alone, layer {only}", field=here
            )
        check_exists_at(declaration, layer, autoencoder, latent, here)
    if wanted:
        return tuple(wanted)
    return layers_of(declaration, shape, autoencoder, latent) if only is None else (only,)


def _slices(
    ranges: Sequence[DimensionRange],
    dst: DerivedScalarType,
    shapes: Sequence[tuple[int, ...]],
    field: str,
) -> tuple[slice, ...]:
    slices = [slice(None)] * len(dst.dimensions)
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
        # A range must be there at every layer; without a stop it goes to each layer's own end.
        size = min(sizes[axis] for sizes in shapes)
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
        slices[axis] = slice(each.start, each.stop)
    return tuple(slices)
