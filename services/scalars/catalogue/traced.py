"""Direct effects on a traced activation, by its gradient recomputed at its own residual stream.

They need no backward pass through the model: only the forward pass up to the traced node.
"""

from __future__ import annotations

from services.scalars.catalogue.attention import effect_by_pair
from services.scalars.catalogue.declaration import (
    ONE,
    Derivers,
    F,
    H,
    Requirement,
    S,
    T,
    declare,
)
from services.scalars.catalogue.gradients import final_activation_residual_gradient
from services.scalars.catalogue.mlp import effect_of_neurons
from services.scalars.catalogue.residual import projection_to
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.model.locations import LocationWithinLayer

_NEURONS = "mlp_write_to_final_activation_residual_grad"
_HEADS = "unflattened_attn_write_to_final_activation_residual_grad"
_EMBEDDING = "resid_post_embedding_proj_to_final_activation_residual_grad"


def _neurons(derivers: Derivers) -> ScalarDeriver:
    return effect_of_neurons(
        derivers,
        _NEURONS,
        final_activation_residual_gradient(derivers),
        derivers.config.final_residual,
    )


def _heads(derivers: Derivers) -> ScalarDeriver:
    return effect_by_pair(
        derivers,
        _HEADS,
        final_activation_residual_gradient(derivers),
        derivers.config.final_residual,
    )


def _embedding(derivers: Derivers) -> ScalarDeriver:
    return projection_to(
        derivers,
        _EMBEDDING,
        "resid_post_embedding",
        final_activation_residual_gradient(derivers),
        derivers.config.final_residual,
    )


DECLARATIONS = (
    declare(
        _NEURONS,
        (T, F),
        "f · (W_out[n] · g~)",
        _neurons,
        requires=(Requirement.TRACE,),
        at=LocationWithinLayer.MLP,
    ),
    declare(
        _HEADS,
        (T, S, H),
        "P v_k W_O^h · g~_q",
        _heads,
        requires=(Requirement.TRACE,),
        at=LocationWithinLayer.ATTN,
    ),
    declare(
        _EMBEDDING,
        (T, ONE),
        "x0 · g~",
        _embedding,
        requires=(Requirement.TRACE, Requirement.NO_LAYER),
    ),
)
