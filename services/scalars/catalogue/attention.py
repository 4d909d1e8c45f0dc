"""Scalars of attention heads.

The vector that a head writes for a token pair, P v_k W_O, is never made: its length follows from a
triangular factor of W_O, its product with g from u = W_O g, one vector a head and query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.catalogue.declaration import PAIRS, Derivers, H, Requirement, S, T, declare
from services.scalars.catalogue.gradients import (
    final_residual_gradient,
    is_upstream,
    rows_with_gradient,
)
from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.residual_points import ResidualPoint
from services.scalars.deriving.sources import RawScalarSource, ScalarSource
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, LocationWithinLayer, PassType

_AT = LocationWithinLayer.ATTN
_PROBS = RawScalarSource(Location.ATTN_QK_PROBS, PassType.FORWARD)
_PROBS_GRADIENT = RawScalarSource(Location.ATTN_QK_PROBS, PassType.BACKWARD)
_VALUES = RawScalarSource(Location.ATTN_VALUE, PassType.FORWARD)
_MIXED_VALUES = RawScalarSource(Location.ATTN_WEIGHTED_SUM_OF_VALUES, PassType.FORWARD)


def _layer(layer: LayerIndex) -> int:
    if layer is None:
        raise ValueError("an attention head has a layer")
    return layer


def flatten_pairs(tensor: Tensor) -> Tensor:
    """From (T, S, ...) to (T(T+1)/2, ...): the lower triangle, row-major."""
    rows, columns = torch.tril_indices(*tensor.shape[:2], device=tensor.device)
    return tensor[rows, columns]


def _write_norm_by_pair(derivers: Derivers) -> ScalarDeriver:
    write = derivers.config.model.write

    def norm(tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType) -> Tensor:
        values, probs = tensors
        lengths = write.head_write_norms(_layer(layer), values)
        if pass_type is PassType.FORWARD:
            return probs * lengths
        # The norm is P times a length that depends on the value alone; so the gradient with
        # respect to the norm is that with respect to P over the length.
        return probs / lengths

    return ScalarDeriver(
        dst=derivers.dst("unflattened_attn_write_norm"),
        dst_config=derivers.config,
        sources=(_VALUES, _PROBS),
        backward_sources=(_VALUES, _PROBS_GRADIENT),
        function=norm,
    )


def _act_times_grad_by_pair(derivers: Derivers) -> ScalarDeriver:
    return derivers["attn_qk_probs"].combine(
        lambda probs, gradient, layer: probs * gradient,
        _PROBS_GRADIENT,
        derivers.dst("unflattened_attn_act_times_grad"),
    )


def _head_directions(
    config: DstConfig, gradient: Tensor, rows: Tensor, layer: LayerIndex
) -> Tensor:
    """u = W_O^h g for the rows named: (R, H, dh)."""
    directions: Tensor = torch.einsum(
        "hed,td->the", config.model.write.attn[_layer(layer)], gradient[rows]
    )
    return directions


def effect_by_pair(
    derivers: Derivers, name: str, direction: ScalarSource, point: ResidualPoint
) -> ScalarDeriver:
    """P v_k W_O^h · d_q, for a direction d (T, D) at a point; 0 where not upstream of it."""
    config = derivers.config

    def effect(tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType) -> Tensor:
        probs, values, vectors = tensors
        result = torch.zeros_like(probs)
        if point.is_after(layer, _AT):
            rows = rows_with_gradient(vectors)
            directions = _head_directions(config, vectors, rows, layer)
            result[rows] = probs[rows] * torch.einsum("she,the->tsh", values, directions)
        return result

    return ScalarDeriver(
        dst=derivers.dst(name),
        dst_config=config,
        sources=(_PROBS, _VALUES, direction),
        function=effect,
    )


def _direct_effect_by_pair(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    return effect_by_pair(
        derivers,
        "unflattened_attn_write_to_final_residual_grad",
        final_residual_gradient(config),
        config.final_residual,
    )


def _direct_effect_by_token(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config

    def effect(tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType) -> Tensor:
        mixed, gradient = tensors
        result = mixed.new_zeros(mixed.shape[:2])
        if is_upstream(config, layer, _AT):
            rows = rows_with_gradient(gradient)
            directions = _head_directions(config, gradient, rows, layer)
            result[rows] = (mixed[rows] * directions).sum(dim=-1)
        return result

    return ScalarDeriver(
        dst=derivers.dst("attn_write_to_final_residual_grad_per_sequence_token"),
        dst_config=config,
        sources=(_MIXED_VALUES, final_residual_gradient(config)),
        function=effect,
    )


def _write_norm_by_token(derivers: Derivers) -> ScalarDeriver:
    write = derivers.config.model.write
    return ScalarDeriver(
        dst=derivers.dst("attn_write_norm_per_sequence_token"),
        dst_config=derivers.config,
        sources=(_MIXED_VALUES,),
        function=lambda tensors, layer, _: write.head_write_norms(_layer(layer), tensors[0]),
    )


UNFLATTENED_WRITE_NORM = declare(
    "unflattened_attn_write_norm",
    (T, S, H),
    "P · ‖v_k W_O^h‖; backward: dP / ‖v_k W_O^h‖",
    _write_norm_by_pair,
    backward=True,
    at=_AT,
)
WRITE_NORM = declare(
    "attn_write_norm",
    (PAIRS, H),
    "P · ‖v_k W_O^h‖ by token pair; backward: dP / ‖v_k W_O^h‖",
    lambda derivers: derivers["unflattened_attn_write_norm"].transform(
        flatten_pairs, derivers.dst("attn_write_norm"), transform_gradient=True
    ),
    backward=True,
    at=_AT,
)
FLATTENED_PROBS = declare(
    "flattened_attn_post_softmax",
    (PAIRS, H),
    "P by token pair",
    lambda derivers: derivers["attn_qk_probs"].transform(
        flatten_pairs, derivers.dst("flattened_attn_post_softmax"), transform_gradient=True
    ),
    backward=True,
    at=_AT,
)
UNFLATTENED_ACT_TIMES_GRAD = declare(
    "unflattened_attn_act_times_grad",
    (T, S, H),
    "P · dP",
    _act_times_grad_by_pair,
    requires=(Requirement.GRADIENT,),
    at=_AT,
)
ACT_TIMES_GRAD = declare(
    "attn_act_times_grad",
    (PAIRS, H),
    "P · dP by token pair",
    lambda derivers: derivers["unflattened_attn_act_times_grad"].transform(
        flatten_pairs, derivers.dst("attn_act_times_grad")
    ),
    requires=(Requirement.GRADIENT,),
    at=_AT,
)
ACT_TIMES_GRAD_PER_TOKEN = declare(
    "attn_act_times_grad_per_sequence_token",
    (T, H),
    "Σ_k P · dP",
    lambda derivers: derivers["unflattened_attn_act_times_grad"].transform(
        lambda products: products.sum(dim=1),
        derivers.dst("attn_act_times_grad_per_sequence_token"),
    ),
    requires=(Requirement.GRADIENT,),
    at=_AT,
)
WRITE_NORM_PER_TOKEN = declare(
    "attn_write_norm_per_sequence_token",
    (T, H),
    "‖(Σ_k P v) W_O^h‖",
    _write_norm_by_token,
    at=_AT,
)
DIRECT_EFFECT_PER_TOKEN = declare(
    "attn_write_to_final_residual_grad_per_sequence_token",
    (T, H),
    "(Σ_k P v) W_O^h · g",
    _direct_effect_by_token,
    requires=(Requirement.GRADIENT,),
    at=_AT,
)
UNFLATTENED_DIRECT_EFFECT = declare(
    "unflattened_attn_write_to_final_residual_grad",
    (T, S, H),
    "P (v_k W_O^h) · g_q",
    _direct_effect_by_pair,
    requires=(Requirement.GRADIENT,),
    at=_AT,
)
DIRECT_EFFECT = declare(
    "attn_write_to_final_residual_grad",
    (PAIRS, H),
    "P (v_k W_O^h) · g_q by token pair",
    lambda derivers: derivers["unflattened_attn_write_to_final_residual_grad"].transform(
        flatten_pairs, derivers.dst("attn_write_to_final_residual_grad")
    ),
    requires=(Requirement.GRADIENT,),
    at=_AT,
)

DECLARATIONS = (
    WRITE_NORM,
    FLATTENED_PROBS,
    ACT_TIMES_GRAD,
    WRITE_NORM_PER_TOKEN,
    DIRECT_EFFECT_PER_TOKEN,
    ACT_TIMES_GRAD_PER_TOKEN,
    UNFLATTENED_ACT_TIMES_GRAD,
    UNFLATTENED_WRITE_NORM,
    UNFLATTENED_DIRECT_EFFECT,
    DIRECT_EFFECT,
)
