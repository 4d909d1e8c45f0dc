"""Edges from many nodes to one downstream of them.

An attribution is the product of an upstream write with the gradient of the downstream node's
attribution, both at the residual stream that the downstream node's block reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.catalogue.attention import effect_by_pair
from services.scalars.catalogue.declaration import (
    ONE,
    A,
    Derivers,
    F,
    H,
    NodeRole,
    Requirement,
    S,
    T,
    declare,
)
from services.scalars.catalogue.edge_nodes import (
    ATTRIBUTION,
    attribution_gradient_source,
    layer_of,
    node_of,
    single_autoencoder,
)
from services.scalars.catalogue.gradients import rows_with_gradient
from services.scalars.catalogue.mlp import effect_of_neurons
from services.scalars.catalogue.residual import projection_to
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.sources import RawScalarSource
from services.scalars.model.locations import LayerIndex, LocationWithinLayer, PassType


def _heads_out(derivers: Derivers) -> ScalarDeriver:
    return effect_by_pair(
        derivers,
        "attn_out_edge_attribution",
        attribution_gradient_source(derivers),
        node_of(derivers.config).residual,
    )


def _neurons_out(derivers: Derivers) -> ScalarDeriver:
    return effect_of_neurons(
        derivers,
        "mlp_out_edge_attribution",
        attribution_gradient_source(derivers),
        node_of(derivers.config).residual,
    )


def _latents_out(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    autoencoder = single_autoencoder(config)
    point = node_of(config).residual

    def effect(tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType) -> Tensor:
        latents, vectors = tensors
        result = torch.zeros_like(latents)
        if point.is_after(layer, autoencoder.location_within_layer):
            rows = rows_with_gradient(vectors)
            result[rows] = latents[rows] * autoencoder.write_products(
                layer_of(layer), config.model.write, vectors[rows]
            )
        return result

    return ScalarDeriver(
        dst=derivers.dst("online_autoencoder_out_edge_attribution"),
        dst_config=config,
        sources=(
            RawScalarSource(autoencoder.latent_location, PassType.FORWARD),
            attribution_gradient_source(derivers),
        ),
        function=effect,
    )


def _tokens_out(derivers: Derivers) -> ScalarDeriver:
    return projection_to(
        derivers,
        "token_out_edge_attribution",
        "resid_post_embedding",
        attribution_gradient_source(derivers),
        node_of(derivers.config).residual,
    )


DECLARATIONS = (
    declare(
        "attn_out_edge_attribution",
        (T, S, H),
        "P v_k W_O^h · that gradient, 0 where it is not upstream",
        _heads_out,
        requires=ATTRIBUTION,
        at=LocationWithinLayer.ATTN,
        node_role=NodeRole.DOWNSTREAM,
    ),
    declare(
        "mlp_out_edge_attribution",
        (T, F),
        "f W_out[n] · that gradient",
        _neurons_out,
        requires=ATTRIBUTION,
        at=LocationWithinLayer.MLP,
        node_role=NodeRole.DOWNSTREAM,
    ),
    declare(
        "online_autoencoder_out_edge_attribution",
        (T, A),
        "z w_n · that gradient",
        _latents_out,
        requires=(*ATTRIBUTION, Requirement.SINGLE_AUTOENCODER),
        node_role=NodeRole.DOWNSTREAM,
    ),
    declare(
        "token_out_edge_attribution",
        (T, ONE),
        "x0 · gradient of one node's attribution",
        _tokens_out,
        requires=(*ATTRIBUTION, Requirement.NO_LAYER),
        node_role=NodeRole.DOWNSTREAM,
    ),
)
