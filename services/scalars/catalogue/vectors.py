"""Scalars that are vectors of the residual stream or of a head, for those who ask for them whole.

Nothing else is derived from these: they are as large as their shapes say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.catalogue.declaration import VC, D, Derivers, F, H, S, T, declare
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.sources import RawScalarSource
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, LocationWithinLayer, NodeType, PassType


def _layer(layer: LayerIndex) -> int:
    if layer is None:
        raise ValueError("a write vector has a layer")
    return layer


def _weighted_value(derivers: Derivers) -> ScalarDeriver:
    return derivers["attn_qk_probs"].combine(
        lambda probs, values, layer: probs[..., None] * values,
        RawScalarSource(Location.ATTN_VALUE, PassType.FORWARD),
        derivers.dst("attn_weighted_value"),
    )


def _attn_write(derivers: Derivers) -> ScalarDeriver:
    weights = derivers.config.model.write.attn

    def write(probs: Tensor, values: Tensor, layer: LayerIndex) -> Tensor:
        written = torch.einsum("she,hed->shd", values, weights[_layer(layer)])
        return probs[..., None] * written

    return derivers["attn_qk_probs"].combine(
        write,
        RawScalarSource(Location.ATTN_VALUE, PassType.FORWARD),
        derivers.dst("attn_write"),
    )


def _attn_write_sum_heads(derivers: Derivers) -> ScalarDeriver:
    weights = derivers.config.model.write.attn

    def write(probs: Tensor, values: Tensor, layer: LayerIndex) -> Tensor:
        written = torch.einsum("she,hed->shd", values, weights[_layer(layer)])
        summed: Tensor = torch.einsum("tsh,shd->tsd", probs, written)
        return summed

    return derivers["attn_qk_probs"].combine(
        write,
        RawScalarSource(Location.ATTN_VALUE, PassType.FORWARD),
        derivers.dst("attn_write_sum_heads"),
    )


def _mlp_write(derivers: Derivers) -> ScalarDeriver:
    weights = derivers.config.model.write.mlp
    return derivers["mlp_post_act"].transform_by_layer(
        lambda post, layer, _: post[..., None] * weights[_layer(layer)],
        derivers.dst("mlp_write"),
    )


ATTN_WRITE = declare(
    "attn_write", (T, S, H, D), "P v_k W_O^h", _attn_write, at=LocationWithinLayer.ATTN
)
ATTN_WRITE_SUM_HEADS = declare(
    "attn_write_sum_heads",
    (T, S, D),
    "Σ_h P v_k W_O^h",
    _attn_write_sum_heads,
    at=LocationWithinLayer.ATTN,
)
MLP_WRITE = declare("mlp_write", (T, F, D), "f · W_out[n]", _mlp_write, at=LocationWithinLayer.MLP)
ATTN_WEIGHTED_VALUE = declare(
    "attn_weighted_value",
    (T, S, H, VC),
    "P v_k",
    _weighted_value,
    at=LocationWithinLayer.ATTN,
    node_type=NodeType.V_CHANNEL,
)

DECLARATIONS = (ATTN_WRITE, ATTN_WRITE_SUM_HEADS, MLP_WRITE, ATTN_WEIGHTED_VALUE)
