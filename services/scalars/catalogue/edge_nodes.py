"""The one node of edges: what it writes, and what changes its attribution."""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.autoencoders import Autoencoder
from services.scalars.catalogue.declaration import (
    ONE,
    D,
    Derivers,
    NodeRole,
    Requirement,
    T,
    declare,
)
from services.scalars.catalogue.gradients import final_residual_gradient, residual_source
from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.differentiation import gradient
from services.scalars.deriving.layer_indexers import ConstantLayerIndexer
from services.scalars.deriving.sources import DerivedScalarSource, RawScalarSource, ScalarSource
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, PassType
from services.scalars.passes.nodes import Node, node_activation

EDGE = (Requirement.NODE_INDEX,)
ATTRIBUTION = (Requirement.NODE_INDEX, Requirement.GRADIENT)
_WRITE = "single_node_write"
_GRADIENT = "grad_of_single_subnode_attribution"


def node_of(config: DstConfig) -> Node:
    """The node; ValueError where the configuration has none."""
    if config.node_index is None:
        raise ValueError("an edge needs the node at its one end")
    return config.node_index


def layer_of(layer: LayerIndex) -> int:
    """The layer of a node; ValueError for none."""
    if layer is None:
        raise ValueError("a node has a layer")
    return layer


def single_autoencoder(config: DstConfig) -> Autoencoder:
    """The only autoencoder; ValueError where there are none or two."""
    autoencoder = config.autoencoders.single
    if autoencoder is None:
        raise ValueError("exactly one autoencoder is needed")
    return autoencoder


def activation_location(config: DstConfig, node: Node) -> Location:
    """Where the activation that determines a node's effect is found."""
    if node.is_head:
        by_value = config.attention_part is AttentionPart.VALUE
        return Location.ATTN_WEIGHTED_SUM_OF_VALUES if by_value else Location.ATTN_QK_PROBS
    if node.reads is None:
        return Location.MLP_POST_ACT
    autoencoder = config.autoencoders.at(node.reads, node.layer)
    if autoencoder is None:
        raise ValueError("a resolved latent has an autoencoder")
    return autoencoder.latent_location


def _node_write(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    node = node_of(config)
    at = ConstantLayerIndexer(node.layer)
    write = config.model.write

    def vector(tensors: tuple[Tensor, ...]) -> Tensor:
        if node.is_head:
            query, key, head = node.index
            probs, values = tensors
            return probs[query, key, head] * (values[key, head] @ write.attn[node.layer][head])
        token, column = node.index
        activation = tensors[0][token, column]
        if node.reads is None:
            return activation * write.mlp[node.layer][column]
        autoencoder = config.autoencoders.at(node.reads, node.layer)
        if autoencoder is None:
            raise ValueError("a resolved latent has an autoencoder")
        chosen = slice(column, column + 1)
        return activation * autoencoder.write_directions(node.layer, write, chosen)[0]

    def placed(tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType) -> Tensor:
        written = vector(tensors)
        result = written.new_zeros(tensors[0].shape[0], written.shape[0])
        result[node.token] = written
        return result

    sources: tuple[ScalarSource, ...]
    if node.is_head:
        sources = (
            RawScalarSource(Location.ATTN_QK_PROBS, PassType.FORWARD, at),
            RawScalarSource(Location.ATTN_VALUE, PassType.FORWARD, at),
        )
    else:
        sources = (RawScalarSource(activation_location(config, node), PassType.FORWARD, at),)
    return ScalarDeriver(
        dst=derivers.dst(_WRITE), dst_config=config, sources=sources, function=placed
    )


def write_source(derivers: Derivers) -> ScalarSource:
    """The node's write, for every layer."""
    layer = node_of(derivers.config).layer
    return DerivedScalarSource(derivers[_WRITE], PassType.FORWARD, ConstantLayerIndexer(layer))


def _write_to_final_gradient(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    node = node_of(config)

    def project(write: Tensor, vectors: Tensor, layer: LayerIndex) -> Tensor:
        if not config.final_residual.is_after(node.layer, node.location_within_layer):
            return torch.zeros_like(write[:, :1])
        return (write * vectors).sum(dim=-1, keepdim=True)

    return derivers[_WRITE].combine(
        project,
        final_residual_gradient(config),
        derivers.dst("single_node_write_to_final_residual_grad"),
    )


def _attribution_gradient(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    node = node_of(config)
    model, autoencoders = config.model, config.autoencoders
    part = config.attention_part
    detach_scale = config.detach_layer_norm_scale

    def attribution(residual: Tensor, gradients: Tensor) -> Tensor:
        if part is AttentionPart.VALUE:
            query, key, head = node.index
            heads = model.attention_heads(
                node.layer,
                residual[: query + 1],
                attached=frozenset({AttentionPart.VALUE}),
                detach_scale=detach_scale,
            )
            mixed = heads.probs[query, key, head] * heads.value[key, head]
            return mixed @ gradients[query, head]
        activation = node_activation(
            node,
            model,
            autoencoders,
            residual,
            attached=frozenset() if part is None else frozenset({part}),
            detach_scale=detach_scale,
        )
        return activation * gradients[node.index]

    def local_gradient(
        tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType
    ) -> Tensor:
        residual, gradients = tensors
        return gradient(lambda at: attribution(at, gradients.clone()), residual)

    return ScalarDeriver(
        dst=derivers.dst(_GRADIENT),
        dst_config=config,
        sources=(
            residual_source(node.residual, PassType.FORWARD),
            RawScalarSource(
                activation_location(config, node),
                PassType.BACKWARD,
                ConstantLayerIndexer(node.layer),
            ),
        ),
        function=local_gradient,
    )


def attribution_gradient_source(derivers: Derivers) -> ScalarSource:
    """The gradient of its attribution, for every layer."""
    layer = node_of(derivers.config).layer
    return DerivedScalarSource(derivers[_GRADIENT], PassType.FORWARD, ConstantLayerIndexer(layer))


DECLARATIONS = (
    declare(
        _WRITE,
        (T, D),
        "the write vector of one node at its token, 0 elsewhere",
        _node_write,
        requires=EDGE,
        node_role=NodeRole.UPSTREAM,
        at_layer_of_node=True,
    ),
    declare(
        _GRADIENT,
        (T, D),
        "∇_x of one node's activation times its gradient, the gradient held constant",
        _attribution_gradient,
        requires=ATTRIBUTION,
        node_role=NodeRole.DOWNSTREAM,
        at_layer_of_node=True,
    ),
    declare(
        "single_node_write_to_final_residual_grad",
        (T, ONE),
        "the write vector of one node · g",
        _write_to_final_gradient,
        requires=ATTRIBUTION,
        node_role=NodeRole.UPSTREAM,
        at_layer_of_node=True,
    ),
)
