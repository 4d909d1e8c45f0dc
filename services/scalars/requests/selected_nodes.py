"""The one node, or the one activation, that some scalar types are about."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.scalars.autoencoders import AutoencoderSet
from services.scalars.catalogue import Declaration, Requirement
from services.scalars.catalogue.declaration import NodeRole
from services.scalars.catalogue.vocabulary import READABLE
from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.indexing import ActivationIndex, NodeIndex
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.locations import ActivationLocationType, ModelShape
from services.scalars.passes.layers import check_layer
from services.scalars.passes.nodes import Node, resolve_node
from shared.errors import InvalidArgument


@dataclass(frozen=True)
class NodeSelection:
    """What a selection is about, as a request states it."""

    node_index: NodeIndex | None = None
    attention_part: AttentionPart | None = None
    activation_index: ActivationIndex | None = None
    detach_layer_norm_scale: bool = False


@dataclass(frozen=True)
class SelectedNode:
    """The same, checked. It can be hashed: selections with equal ones share their derivers."""

    node: Node | None = None
    attention_part: AttentionPart | None = None
    activation_index: ActivationIndex | None = None
    detach_layer_norm_scale: bool = False

    def config(self, base: DstConfig) -> DstConfig:
        """The configuration of derivers that are about it."""
        return replace(
            base,
            node_index=self.node,
            attention_part=self.attention_part,
            activation_index=self.activation_index,
            detach_layer_norm_scale=self.detach_layer_norm_scale,
        )


ABOUT_ALL = NodeSelection()
NO_NODE = SelectedNode()


def resolve_selected_node(
    declaration: Declaration,
    given: NodeSelection,
    shape: ModelShape,
    n_tokens: int,
    autoencoders: AutoencoderSet,
    field: str,
    activation_field: str,
) -> SelectedNode:
    """Checks what a selection is about, against what its type takes.

    Raises InvalidArgument naming the field, after the prefix `field`, for a node or activation that
    is missing, superfluous or doesn't exist, and for a part of a head that is missing or makes no
    sense. `activation_field` is where the activation index stands.
    """
    name = declaration.dst.name
    takes_node = Requirement.NODE_INDEX in declaration.requirements
    takes_activation = Requirement.ACTIVATION_INDEX in declaration.requirements
    if given.node_index is not None and not takes_node:
        raise InvalidArgument(f"{name} takes no node index", field=f"{field}.node_index")
    if given.activation_index is not None and not takes_activation:
        raise InvalidArgument(f"{name} takes no activation index", field=activation_field)
    if given.node_index is None and takes_node:
        raise InvalidArgument(
            f"{name} is of the edges of one node; say which",
            field=f"{field}.node_index",
            reason="NODE_INDEX_NEEDED",
        )
    if given.activation_index is None and takes_activation:
        raise InvalidArgument(
            f"{name} is of what one neuron or latent reads; say which",
            field=activation_field,
            reason="ACTIVATION_INDEX_NEEDED",
        )
    if given.detach_layer_norm_scale and given.node_index is None:
        raise InvalidArgument(
            f"{name} has no layer norm's scale to detach", field=f"{field}.detach_layer_norm_scale"
        )
    node = (
        None
        if given.node_index is None
        else resolve_node(given.node_index, shape, autoencoders, n_tokens, f"{field}.node_index")
    )
    _check_part(declaration, node, given.attention_part, f"{field}.attention_part")
    return SelectedNode(
        node,
        given.attention_part,
        None
        if given.activation_index is None
        else _resolve_read(given.activation_index, shape, n_tokens, autoencoders, activation_field),
        given.detach_layer_norm_scale,
    )


def _check_part(
    declaration: Declaration, node: Node | None, part: AttentionPart | None, field: str
) -> None:
    name = declaration.dst.name
    downstream = declaration.node_role is NodeRole.DOWNSTREAM
    of_head = downstream and node is not None and node.is_head
    if of_head and part is None:
        raise InvalidArgument(
            f"{name} is of one way into a head; say which of "
            f"{', '.join(each.name.lower() for each in AttentionPart)}",
            field=field,
        )
    if part is not None and not of_head:
        raise InvalidArgument(
            f"{name} takes a part of attention only for a head downstream of the edges"
            if downstream
            else f"{name} takes no part of attention",
            field=field,
        )


def _resolve_read(
    index: ActivationIndex,
    shape: ModelShape,
    n_tokens: int,
    autoencoders: AutoencoderSet,
    field: str,
) -> ActivationIndex:
    """Checks a neuron or latent whose read direction is wanted; its token is of no consequence."""
    location = index.activation_location_type
    if location not in READABLE:
        raise InvalidArgument(
            f"{location.value} holds nothing that reads one token; one of "
            f"{', '.join(each.value for each in READABLE)} is needed",
            field=f"{field}.location_type",
        )
    layer = index.layer_index
    check_layer(layer, location.value, True, shape, field)
    count = shape.mlp_acts
    if not location.exists_by_default and layer is not None:
        autoencoder = autoencoders.resolve_location(location, layer, field)
        if autoencoder.location is ActivationLocationType.RESID_DELTA_ATTN:
            raise InvalidArgument(
                f"{autoencoder.name} reads attention's output, which mixes tokens",
                field=f"{field}.location_type",
            )
        count = autoencoder.latent_count(layer)
    sizes = (n_tokens, count)
    if len(index.tensor_indices) != len(sizes):
        raise InvalidArgument(
            f"{location.value} has 2 dimensions, but {len(index.tensor_indices)} indices are given",
            field=f"{field}.tensor_indices",
        )
    for axis, (each, size) in enumerate(zip(index.tensor_indices, sizes, strict=True)):
        if each is None and axis == 1:
            raise InvalidArgument(
                "one neuron or latent is needed; say which", field=f"{field}.tensor_indices[1]"
            )
        if each is not None and not 0 <= each < size:
            raise InvalidArgument(
                f"index {each} is not in {location.dimensions[axis].value}, which has {size}",
                field=f"{field}.tensor_indices[{axis}]",
            )
    return index
