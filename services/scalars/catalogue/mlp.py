"""Scalars of MLP neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.catalogue.declaration import D, Derivers, F, Requirement, T, declare
from services.scalars.catalogue.gradients import (
    final_residual_gradient,
    is_upstream,
    rows_with_gradient,
)
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.sources import RawScalarSource
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, LocationWithinLayer, PassType


def _layer(layer: LayerIndex) -> int:
    if layer is None:
        raise ValueError("an MLP neuron has a layer")
    return layer


def _write(derivers: Derivers) -> ScalarDeriver:
    weights = derivers.config.model.write.mlp
    return derivers["mlp_post_act"].transform_by_layer(
        lambda post, layer, _: post @ weights[_layer(layer)],
        derivers.dst("resid_delta_mlp_from_mlp_post_act"),
    )


def _write_norm(derivers: Derivers) -> ScalarDeriver:
    write = derivers.config.model.write
    return derivers["mlp_post_act"].transform_by_layer(
        lambda post, layer, _: post * write.mlp_norms(_layer(layer)),
        derivers.dst("mlp_write_norm"),
    )


def _act_times_grad(derivers: Derivers) -> ScalarDeriver:
    return derivers["mlp_post_act"].combine(
        lambda post, gradient, layer: post * gradient,
        RawScalarSource(Location.MLP_POST_ACT, PassType.BACKWARD),
        derivers.dst("mlp_act_times_grad"),
    )


def _direct_effect(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    weights = config.model.write.mlp

    def effect(post: Tensor, gradient: Tensor, layer: LayerIndex) -> Tensor:
        result = torch.zeros_like(post)
        if is_upstream(config, layer, LocationWithinLayer.MLP):
            rows = rows_with_gradient(gradient)
            result[rows] = post[rows] * (gradient[rows] @ weights[_layer(layer)].T)
        return result

    return derivers["mlp_post_act"].combine(
        effect,
        final_residual_gradient(config),
        derivers.dst("mlp_write_to_final_residual_grad"),
    )


MLP_OUTPUT = declare(
    "resid_delta_mlp_from_mlp_post_act",
    (T, D),
    "f · W_out, without the bias",
    _write,
    at=LocationWithinLayer.MLP,
)
MLP_WRITE_NORM = declare(
    "mlp_write_norm",
    (T, F),
    "f · ‖W_out[n]‖, with the sign of f",
    _write_norm,
    at=LocationWithinLayer.MLP,
)
MLP_ACT_TIMES_GRAD = declare(
    "mlp_act_times_grad",
    (T, F),
    "f · df",
    _act_times_grad,
    requires=(Requirement.GRADIENT,),
    at=LocationWithinLayer.MLP,
)
MLP_DIRECT_EFFECT = declare(
    "mlp_write_to_final_residual_grad",
    (T, F),
    "f · (W_out[n] · g)",
    _direct_effect,
    requires=(Requirement.GRADIENT,),
    at=LocationWithinLayer.MLP,
)

DECLARATIONS = (MLP_OUTPUT, MLP_WRITE_NORM, MLP_ACT_TIMES_GRAD, MLP_DIRECT_EFFECT)
