"""Edges: what one node does to many downstream of it, or many upstream do to one.

The activation of a node is what determines its effect: of a neuron or a latent its value after the
nonlinearity, of a head's query and key the attention probability, of its value the sum that it
mixes. An edge's attribution is the change of that activation which the upstream node's write makes,
at the downstream node's gradient; its activation is the change itself. Both are first order, at the
residual streams that the run left, and direct: through the residual stream alone.

An upstream node writes at one token. So a change is differentiated forward, along that write, and
only where it can arrive: at one row of the MLP, one query, or one key.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from services.scalars.autoencoders import Autoencoder
from services.scalars.catalogue.attention import effect_by_pair
from services.scalars.catalogue.declaration import (
    ONE,
    A,
    D,
    Declaration,
    Derivers,
    F,
    H,
    Make,
    NodeRole,
    Requirement,
    S,
    T,
    declare,
)
from services.scalars.catalogue.gradients import (
    final_residual_gradient,
    residual_source,
    rows_with_gradient,
)
from services.scalars.catalogue.mlp import effect_of_neurons
from services.scalars.catalogue.residual import projection_to
from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.differentiation import directional_derivative, gradient
from services.scalars.deriving.layer_indexers import ConstantLayerIndexer
from services.scalars.deriving.residual_points import (
    ResidualPoint,
    entering_attention,
    entering_mlp,
)
from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.deriving.sources import DerivedScalarSource, RawScalarSource, ScalarSource
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import Dimension, LayerIndex, LocationWithinLayer, PassType
from services.scalars.nodes import Node, autoencoder_input, node_activation

_WRITE = "single_node_write"
_GRADIENT = "grad_of_single_subnode_attribution"


def _node(config: DstConfig) -> Node:
    if config.node_index is None:
        raise ValueError("an edge needs the node at its one end")
    return config.node_index


def _layer(layer: LayerIndex) -> int:
    if layer is None:
        raise ValueError("a node has a layer")
    return layer


def _single(config: DstConfig) -> Autoencoder:
    autoencoder = config.autoencoders.single
    if autoencoder is None:
        raise ValueError("exactly one autoencoder is needed")
    return autoencoder


def _location(config: DstConfig, node: Node) -> Location:
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


# One node: its write, and the gradient of its attribution.


def _node_write(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    node = _node(config)
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
        sources = (RawScalarSource(_location(config, node), PassType.FORWARD, at),)
    return ScalarDeriver(
        dst=derivers.dst(_WRITE), dst_config=config, sources=sources, function=placed
    )


def _write_source(derivers: Derivers) -> ScalarSource:
    """The node's write, for every layer."""
    layer = _node(derivers.config).layer
    return DerivedScalarSource(derivers[_WRITE], PassType.FORWARD, ConstantLayerIndexer(layer))


def _write_to_final_gradient(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    node = _node(config)

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
    node = _node(config)
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
                _location(config, node), PassType.BACKWARD, ConstantLayerIndexer(node.layer)
            ),
        ),
        function=local_gradient,
    )


# Many upstream of one node.


def _attribution_gradient_source(derivers: Derivers) -> ScalarSource:
    layer = _node(derivers.config).layer
    return DerivedScalarSource(derivers[_GRADIENT], PassType.FORWARD, ConstantLayerIndexer(layer))


def _heads_out(derivers: Derivers) -> ScalarDeriver:
    return effect_by_pair(
        derivers,
        "attn_out_edge_attribution",
        _attribution_gradient_source(derivers),
        _node(derivers.config).residual,
    )


def _neurons_out(derivers: Derivers) -> ScalarDeriver:
    return effect_of_neurons(
        derivers,
        "mlp_out_edge_attribution",
        _attribution_gradient_source(derivers),
        _node(derivers.config).residual,
    )


def _latents_out(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    autoencoder = _single(config)
    point = _node(config).residual

    def effect(tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType) -> Tensor:
        latents, vectors = tensors
        result = torch.zeros_like(latents)
        if point.is_after(layer, autoencoder.location_within_layer):
            rows = rows_with_gradient(vectors)
            result[rows] = latents[rows] * autoencoder.write_products(
                _layer(layer), config.model.write, vectors[rows]
            )
        return result

    return ScalarDeriver(
        dst=derivers.dst("online_autoencoder_out_edge_attribution"),
        dst_config=config,
        sources=(
            RawScalarSource(autoencoder.latent_location, PassType.FORWARD),
            _attribution_gradient_source(derivers),
        ),
        function=effect,
    )


def _tokens_out(derivers: Derivers) -> ScalarDeriver:
    return projection_to(
        derivers,
        "token_out_edge_attribution",
        "resid_post_embedding",
        _attribution_gradient_source(derivers),
        _node(derivers.config).residual,
    )


# One node upstream of many.

_Change = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
"""From residual, write, gradient (None for an edge's activation) and layer to the change."""


def _in_edges(
    derivers: Derivers,
    name: str,
    change: _Change,
    *,
    gradient_at: Location | None,
    attention: bool,
    width: Callable[[int], int],
) -> ScalarDeriver:
    """A deriver of `change` at every layer; 0 where the node is not upstream of it."""
    config = derivers.config
    node = _node(config)
    dst = derivers.dst(name)
    residual: ScalarSource = (
        DerivedScalarSource(derivers["previous_layer_resid_post_mlp"], PassType.FORWARD)
        if attention
        else RawScalarSource(Location.RESID_POST_ATTN, PassType.FORWARD)
    )
    gradients = () if gradient_at is None else (RawScalarSource(gradient_at, PassType.BACKWARD),)

    def edges(tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType) -> Tensor:
        residual, write, *given = tensors
        index = _layer(layer)
        point: ResidualPoint = entering_attention(index) if attention else entering_mlp(index)
        if not point.is_after(node.layer, node.location_within_layer):
            return residual.new_zeros(_shape(dst, residual.shape[0], width(index)))
        return change(residual, write, given[0] if given else None, index)

    return ScalarDeriver(
        dst=dst,
        dst_config=config,
        sources=(residual, _write_source(derivers), *gradients),
        function=edges,
    )


def _shape(dst: DerivedScalarType, n_tokens: int, width: int) -> tuple[int, ...]:
    pairs = Dimension.ATTENDED_TO_SEQUENCE_TOKENS in dst.dimensions
    return (n_tokens, n_tokens, width) if pairs else (n_tokens, width)


def _neurons_in(name: str, *, attribution: bool) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        config = derivers.config
        model = config.model
        token = _node(config).token
        row = slice(token, token + 1)
        detach_scale = config.detach_layer_norm_scale or not attribution

        def change(residual: Tensor, write: Tensor, gradients: Tensor | None, layer: int) -> Tensor:
            moved = directional_derivative(
                lambda at: model.mlp_neurons(layer, at, detach_scale=detach_scale).post_act,
                residual[row],
                write[row],
            )
            result = residual.new_zeros(residual.shape[0], moved.shape[1])
            result[row] = moved if gradients is None else moved * gradients[row]
            return result

        return _in_edges(
            derivers,
            name,
            change,
            gradient_at=Location.MLP_POST_ACT if attribution else None,
            attention=False,
            width=lambda layer: model.shape.mlp_acts,
        )

    return make


def _latents_in(name: str, *, attribution: bool) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        config = derivers.config
        autoencoder = _single(config)
        attention = autoencoder.location_within_layer is LocationWithinLayer.ATTN
        token = _node(config).token
        # What a later token attends to can change too; what comes before it can't.
        row = slice(None) if attention else slice(token, token + 1)
        detach_scale = config.detach_layer_norm_scale or not attribution

        def change(residual: Tensor, write: Tensor, gradients: Tensor | None, layer: int) -> Tensor:
            def latents(at: Tensor) -> Tensor:
                read = autoencoder_input(
                    config.model, autoencoder.location, layer, at, detach_scale=detach_scale
                )
                return autoencoder.encode(layer, read)

            moved = directional_derivative(latents, residual[row], write[row])
            result = residual.new_zeros(residual.shape[0], moved.shape[1])
            result[row] = moved if gradients is None else moved * gradients[row]
            return result

        return _in_edges(
            derivers,
            name,
            change,
            gradient_at=autoencoder.latent_location if attribution else None,
            attention=attention,
            width=autoencoder.latent_count,
        )

    return make


def _heads_in(name: str, part: AttentionPart, *, attribution: bool) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        config = derivers.config
        model = config.model
        token = _node(config).token
        attached = frozenset({part})
        detach_scale = config.detach_layer_norm_scale or not attribution

        def by_query(
            residual: Tensor, write: Tensor, gradients: Tensor | None, layer: int
        ) -> Tensor:
            seen = slice(token + 1)

            def probs(at: Tensor) -> Tensor:
                return model.attention_heads(
                    layer, at, attached=attached, detach_scale=detach_scale
                ).probs[token]

            moved = directional_derivative(probs, residual[seen], write[seen])
            if gradients is not None:
                moved = moved * gradients[token, seen]
            result = residual.new_zeros(residual.shape[0], residual.shape[0], moved.shape[-1])
            result[token, seen] = moved
            return result

        def by_key(residual: Tensor, write: Tensor, gradients: Tensor | None, layer: int) -> Tensor:
            moved = directional_derivative(
                lambda at: (
                    model.attention_heads(
                        layer, at, attached=attached, detach_scale=detach_scale
                    ).probs
                ),
                residual,
                write,
            )
            return moved if gradients is None else moved * gradients

        def by_value(
            residual: Tensor, write: Tensor, gradients: Tensor | None, layer: int
        ) -> Tensor:
            if gradients is None:
                raise ValueError("an edge through the value is only attributed")
            factors = gradients.clone()

            def attributed(at: Tensor) -> Tensor:
                heads = model.attention_heads(
                    layer, at, attached=attached, detach_scale=detach_scale
                )
                projected = torch.einsum("he,the->th", heads.value[token], factors)
                return heads.probs[:, token] * projected

            moved = directional_derivative(attributed, residual, write)
            result = residual.new_zeros(residual.shape[0], *moved.shape)
            result[:, token] = moved
            return result

        by_part = {
            AttentionPart.QUERY: by_query,
            AttentionPart.KEY: by_key,
            AttentionPart.VALUE: by_value,
        }
        by_value_gradient = part is AttentionPart.VALUE
        location = (
            Location.ATTN_WEIGHTED_SUM_OF_VALUES if by_value_gradient else Location.ATTN_QK_PROBS
        )
        return _in_edges(
            derivers,
            name,
            by_part[part],
            gradient_at=location if attribution else None,
            attention=True,
            width=lambda layer: model.shape.attn_heads,
        )

    return make


_UPSTREAM, _DOWNSTREAM = NodeRole.UPSTREAM, NodeRole.DOWNSTREAM
_EDGE = (Requirement.NODE_INDEX,)
_ATTRIBUTION = (Requirement.NODE_INDEX, Requirement.GRADIENT)
_SINGLE = Requirement.SINGLE_AUTOENCODER
_ATTN, _MLP = LocationWithinLayer.ATTN, LocationWithinLayer.MLP


def _head_edges(part: AttentionPart, long: str) -> Declaration:
    name = f"attn_{long}_in_edge_attribution"
    formula = (
        "change of (P v) · d(Σ_k P v) along one node's write through the value"
        if part is AttentionPart.VALUE
        else f"change of P · dP along one node's write through the {long}, dP held constant"
    )
    return declare(
        name,
        (T, S, H),
        formula,
        _heads_in(name, part, attribution=True),
        requires=_ATTRIBUTION,
        at=_ATTN,
        node_role=_UPSTREAM,
    )


def _head_activations(part: AttentionPart, long: str) -> Declaration:
    name = f"attn_{long}_in_edge_activation"
    return declare(
        name,
        (T, S, H),
        f"change of P along one node's write through the {long}, the layer norm's scale constant",
        _heads_in(name, part, attribution=False),
        requires=_EDGE,
        at=_ATTN,
        node_role=_UPSTREAM,
    )


DECLARATIONS = (
    declare(
        _WRITE,
        (T, D),
        "the write vector of one node at its token, 0 elsewhere",
        _node_write,
        requires=_EDGE,
        node_role=_UPSTREAM,
        at_layer_of_node=True,
    ),
    declare(
        _GRADIENT,
        (T, D),
        "∇_x of one node's activation times its gradient, the gradient held constant",
        _attribution_gradient,
        requires=_ATTRIBUTION,
        node_role=_DOWNSTREAM,
        at_layer_of_node=True,
    ),
    declare(
        "attn_out_edge_attribution",
        (T, S, H),
        "P v_k W_O^h · that gradient, 0 where it is not upstream",
        _heads_out,
        requires=_ATTRIBUTION,
        at=_ATTN,
        node_role=_DOWNSTREAM,
    ),
    declare(
        "mlp_out_edge_attribution",
        (T, F),
        "f W_out[n] · that gradient",
        _neurons_out,
        requires=_ATTRIBUTION,
        at=_MLP,
        node_role=_DOWNSTREAM,
    ),
    declare(
        "online_autoencoder_out_edge_attribution",
        (T, A),
        "z w_n · that gradient",
        _latents_out,
        requires=(*_ATTRIBUTION, _SINGLE),
        node_role=_DOWNSTREAM,
    ),
    _head_edges(AttentionPart.QUERY, "query"),
    _head_edges(AttentionPart.KEY, "key"),
    _head_edges(AttentionPart.VALUE, "value"),
    declare(
        "mlp_in_edge_attribution",
        (T, F),
        "change of f · df along one node's write, df held constant",
        _neurons_in("mlp_in_edge_attribution", attribution=True),
        requires=_ATTRIBUTION,
        at=_MLP,
        node_role=_UPSTREAM,
    ),
    declare(
        "online_autoencoder_in_edge_attribution",
        (T, A),
        "change of z · dz along one node's write, dz held constant",
        _latents_in("online_autoencoder_in_edge_attribution", attribution=True),
        requires=(*_ATTRIBUTION, _SINGLE),
        node_role=_UPSTREAM,
    ),
    declare(
        "token_out_edge_attribution",
        (T, ONE),
        "x0 · gradient of one node's attribution",
        _tokens_out,
        requires=(*_ATTRIBUTION, Requirement.NO_LAYER),
        node_role=_DOWNSTREAM,
    ),
    declare(
        "single_node_write_to_final_residual_grad",
        (T, ONE),
        "the write vector of one node · g",
        _write_to_final_gradient,
        requires=_ATTRIBUTION,
        node_role=_UPSTREAM,
        at_layer_of_node=True,
    ),
    _head_activations(AttentionPart.QUERY, "query"),
    _head_activations(AttentionPart.KEY, "key"),
    declare(
        "mlp_in_edge_activation",
        (T, F),
        "change of f along one node's write, the layer norm's scale constant",
        _neurons_in("mlp_in_edge_activation", attribution=False),
        requires=_EDGE,
        at=_MLP,
        node_role=_UPSTREAM,
    ),
    declare(
        "online_autoencoder_in_edge_activation",
        (T, A),
        "change of z along one node's write, the layer norm's scale constant",
        _latents_in("online_autoencoder_in_edge_activation", attribution=False),
        requires=(*_EDGE, _SINGLE),
        node_role=_UPSTREAM,
    ),
)
