"""Scalars of MLP neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.catalogue.declaration import D, Derivers, F, Requirement, T, declare
from services.scalars.catalogue.gradients import final_residual_gradient, rows_with_gradient
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.residual_points import ResidualPoint
from services.scalars.deriving.sources import RawScalarSource, ScalarSource
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


def effect_of_neurons(
    derivers: Derivers, name: str, direction: ScalarSource, point: ResidualPoint
) -> ScalarDeriver:
    """f · (W_out[n] · d), for a direction d (T, D) at a point; 0 where not upstream of it."""
    weights = derivers.config.model.write.mlp

    def effect(post: Tensor, vectors: Tensor, layer: LayerIndex) -> Tensor:
        result = torch.zeros_like(post)
        if point.is_after(layer, LocationWithinLayer.MLP):
            rows = rows_with_gradient(vectors)
            result[rows] = post[rows] * (vectors[rows] @ weights[_layer(layer)].T)
        return result

    return derivers["mlp_post_act"].combine(effect, direction, derivers.dst(name))


def _direct_effect(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    return effect_of_neurons(
        derivers,
        "mlp_write_to_final_residual_grad",
        final_residual_gradient(config),
        config.final_residual,
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
