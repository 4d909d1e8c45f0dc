"""Edges from one node to many downstream of it.

The activation of a node is what determines its effect: of a neuron or a latent its value after the
nonlinearity, of a head's query and key the attention probability, of its value the sum that it
mixes. An edge's activation is the change of that activation which the upstream node's write makes,
its attribution the change times the downstream node's gradient. Both are first order, at the
residual streams that the run left, and direct: through the residual stream alone.

The node writes at one token. So changes are differentiated forward, along that write, and only
where they can arrive: at one row of the MLP, and at one token's query, key and value, from which
the changes of all attention probabilities follow in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from services.scalars.catalogue.declaration import (
    QK,
    A,
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
from services.scalars.catalogue.edge_nodes import (
    ATTRIBUTION,
    EDGE,
    layer_of,
    node_of,
    single_autoencoder,
    write_source,
)
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.differentiation import directional_derivative
from services.scalars.deriving.residual_points import entering_attention, entering_mlp
from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.deriving.sources import DerivedScalarSource, RawScalarSource, ScalarSource
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import Dimension, LayerIndex, LocationWithinLayer, PassType
from services.scalars.passes.nodes import autoencoder_input


class _At(NamedTuple):
    """What a change at one layer is computed from; `gradients` are None for an edge's activation.

    `parts`, (3, T, H, dh), are queries, keys and values, for attention alone.
    """

    layer: int
    residual: Tensor
    write: Tensor
    gradients: Tensor | None
    parts: Tensor | None


def _in_edges(
    derivers: Derivers,
    name: str,
    change: Callable[[_At], Tensor],
    *,
    gradient_at: Location | None,
    attention: bool,
    width: Callable[[int], int],
    parts: ScalarSource | None = None,
) -> ScalarDeriver:
    """A deriver of `change` at every layer; 0 where the node is not upstream of it."""
    config = derivers.config
    node = node_of(config)
    dst = derivers.dst(name)
    gradients = () if gradient_at is None else (RawScalarSource(gradient_at, PassType.BACKWARD),)

    def edges(tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType) -> Tensor:
        residual, write, *others = tensors
        index = layer_of(layer)
        point = entering_attention(index) if attention else entering_mlp(index)
        if not point.is_after(node.layer, node.location_within_layer):
            return residual.new_zeros(_shape(dst, residual.shape[0], width(index)))
        given = others.pop(0) if gradients else None
        return change(_At(index, residual, write, given, others[0] if parts else None))

    return ScalarDeriver(
        dst=dst,
        dst_config=config,
        sources=(
            _residual(derivers, attention=attention),
            write_source(derivers),
            *gradients,
            *(() if parts is None else (parts,)),
        ),
        function=edges,
    )


def _residual(derivers: Derivers, *, attention: bool) -> ScalarSource:
    """The residual stream that each layer's attention, or its MLP, reads."""
    if attention:
        return DerivedScalarSource(derivers["previous_layer_resid_post_mlp"], PassType.FORWARD)
    return RawScalarSource(Location.RESID_POST_ATTN, PassType.FORWARD)


def _shape(dst: DerivedScalarType, n_tokens: int, width: int) -> tuple[int, ...]:
    pairs = Dimension.ATTENDED_TO_SEQUENCE_TOKENS in dst.dimensions
    return (n_tokens, n_tokens, width) if pairs else (n_tokens, width)


def _neurons_in(name: str, *, attribution: bool) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        config = derivers.config
        model = config.model
        token = node_of(config).token
        row = slice(token, token + 1)
        detach_scale = config.detach_layer_norm_scale or not attribution

        def change(at: _At) -> Tensor:
            moved = directional_derivative(
                lambda x: model.mlp_neurons(at.layer, x, detach_scale=detach_scale).post_act,
                at.residual[row],
                at.write[row],
            )
            result = at.residual.new_zeros(at.residual.shape[0], moved.shape[1])
            result[row] = moved if at.gradients is None else moved * at.gradients[row]
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
        autoencoder = single_autoencoder(config)
        attention = autoencoder.location_within_layer is LocationWithinLayer.ATTN
        token = node_of(config).token
        # Through attention, latents of later tokens change too.
        row = slice(None) if attention else slice(token, token + 1)
        detach_scale = config.detach_layer_norm_scale or not attribution

        def change(at: _At) -> Tensor:
            def latents(x: Tensor) -> Tensor:
                read = autoencoder_input(
                    config.model, autoencoder.location, at.layer, x, detach_scale=detach_scale
                )
                return autoencoder.encode(at.layer, read)

            moved = directional_derivative(latents, at.residual[row], at.write[row])
            result = at.residual.new_zeros(at.residual.shape[0], moved.shape[1])
            result[row] = moved if at.gradients is None else moved * at.gradients[row]
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


# Attention: a closed form from the change of one token's query, key or value.


def _parts(derivers: Derivers) -> ScalarSource:
    """Queries, keys and values, recomputed from the residual stream: (3, T, H, dh) by layer."""
    config = derivers.config
    model = config.model

    def compute(tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType) -> Tensor:
        (residual,) = tensors
        positions = torch.arange(residual.shape[0], device=residual.device)
        return torch.stack(model.attention_parts(layer_of(layer), residual, positions))

    name = "attention_parts"
    return DerivedScalarSource(
        derivers.shared(
            name,
            lambda: ScalarDeriver(
                dst=DerivedScalarType(name, (Dimension.SINGLETON, T, H, QK)),
                dst_config=config,
                sources=(_residual(derivers, attention=True),),
                function=compute,
            ),
        ),
        PassType.FORWARD,
    )


def _probs(queries: Tensor, keys: Tensor, first: int) -> Tensor:
    """Attention probabilities, (Q, S, H), of queries (Q, H, dh) from token `first` on."""
    logits = torch.einsum("the,she->tsh", queries, keys)
    future = torch.ones(logits.shape[:2], dtype=torch.bool, device=keys.device).triu(first + 1)
    return torch.softmax(logits.masked_fill(future[:, :, None], float("-inf")), dim=1)


def _by_query(parts: Tensor, moved: Tensor, token: int) -> Tensor:
    """dP/dx, (T, S, H), where the query of a token moves by (H, dh)."""
    queries, keys, _ = parts
    probs = _probs(queries[token : token + 1], keys, token)[0]
    change = torch.einsum("he,she->sh", moved, keys)
    result = parts.new_zeros(keys.shape[0], *probs.shape)
    result[token] = probs * (change - (probs * change).sum(dim=0))
    return result


def _by_key(parts: Tensor, moved: Tensor, token: int) -> Tensor:
    """dP/dx, (T, S, H), where the key of a token moves by (H, dh)."""
    queries, keys, _ = parts
    probs = _probs(queries[token:], keys, token)
    # The logits of that key alone change; probabilities of the others give way to it.
    change = probs[:, token] * torch.einsum("the,he->th", queries[token:], moved)
    result = parts.new_zeros(keys.shape[0], *probs.shape[1:])
    result[token:] = -probs * change[:, None]
    result[token:, token] += change
    return result


def _by_value(parts: Tensor, moved: Tensor, token: int, gradients: Tensor) -> Tensor:
    """P (dv · d(Σ_k P v)), (T, S, H), where the value of a token moves by (H, dh)."""
    queries, keys, _ = parts
    probs = _probs(queries[token:], keys, token)
    result = parts.new_zeros(keys.shape[0], *probs.shape[1:])
    result[token:, token] = probs[:, token] * torch.einsum("he,the->th", moved, gradients[token:])
    return result


def _heads_in(name: str, part: AttentionPart, *, attribution: bool) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        config = derivers.config
        model = config.model
        token = node_of(config).token
        which = list(AttentionPart).index(part)
        detach_scale = config.detach_layer_norm_scale or not attribution

        def change(at: _At) -> Tensor:
            if at.parts is None:
                raise ValueError("queries, keys and values are needed")
            position = torch.tensor([token], device=at.residual.device)
            moved = directional_derivative(
                lambda x: model.attention_parts(at.layer, x, position, detach_scale=detach_scale)[
                    which
                ],
                at.residual[token : token + 1],
                at.write[token : token + 1],
            )[0]
            if part is AttentionPart.VALUE:
                if at.gradients is None:
                    raise ValueError("an edge through the value is only attributed")
                return _by_value(at.parts, moved, token, at.gradients)
            by_part = _by_query if part is AttentionPart.QUERY else _by_key
            changed = by_part(at.parts, moved, token)
            return changed if at.gradients is None else changed * at.gradients

        location = (
            Location.ATTN_WEIGHTED_SUM_OF_VALUES
            if part is AttentionPart.VALUE
            else Location.ATTN_QK_PROBS
        )
        return _in_edges(
            derivers,
            name,
            change,
            gradient_at=location if attribution else None,
            attention=True,
            width=lambda layer: model.shape.attn_heads,
            parts=_parts(derivers),
        )

    return make


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
        requires=ATTRIBUTION,
        at=LocationWithinLayer.ATTN,
        node_role=NodeRole.UPSTREAM,
    )


def _head_activations(part: AttentionPart, long: str) -> Declaration:
    name = f"attn_{long}_in_edge_activation"
    return declare(
        name,
        (T, S, H),
        f"change of P along one node's write through the {long}, the layer norm's scale constant",
        _heads_in(name, part, attribution=False),
        requires=EDGE,
        at=LocationWithinLayer.ATTN,
        node_role=NodeRole.UPSTREAM,
    )


DECLARATIONS = (
    _head_edges(AttentionPart.QUERY, "query"),
    _head_edges(AttentionPart.KEY, "key"),
    _head_edges(AttentionPart.VALUE, "value"),
    declare(
        "mlp_in_edge_attribution",
        (T, F),
        "change of f · df along one node's write, df held constant",
        _neurons_in("mlp_in_edge_attribution", attribution=True),
        requires=ATTRIBUTION,
        at=LocationWithinLayer.MLP,
        node_role=NodeRole.UPSTREAM,
    ),
    declare(
        "online_autoencoder_in_edge_attribution",
        (T, A),
        "change of z · dz along one node's write, dz held constant",
        _latents_in("online_autoencoder_in_edge_attribution", attribution=True),
        requires=(*ATTRIBUTION, Requirement.SINGLE_AUTOENCODER),
        node_role=NodeRole.UPSTREAM,
    ),
    _head_activations(AttentionPart.QUERY, "query"),
    _head_activations(AttentionPart.KEY, "key"),
    declare(
        "mlp_in_edge_activation",
        (T, F),
        "change of f along one node's write, the layer norm's scale constant",
        _neurons_in("mlp_in_edge_activation", attribution=False),
        requires=EDGE,
        at=LocationWithinLayer.MLP,
        node_role=NodeRole.UPSTREAM,
    ),
    declare(
        "online_autoencoder_in_edge_activation",
        (T, A),
        "change of z along one node's write, the layer norm's scale constant",
        _latents_in("online_autoencoder_in_edge_activation", attribution=False),
        requires=(*EDGE, Requirement.SINGLE_AUTOENCODER),
        node_role=NodeRole.UPSTREAM,
    ),
)
