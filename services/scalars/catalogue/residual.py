"""Scalars of whole layers and of the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.catalogue.declaration import (
    ONE,
    Declaration,
    Derivers,
    Make,
    Requirement,
    T,
    declare,
)
from services.scalars.catalogue.gradients import final_residual_gradient
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.layer_indexers import NO_LAYERS
from services.scalars.deriving.residual_points import ResidualPoint
from services.scalars.deriving.sources import RawScalarSource, ScalarSource
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, LocationWithinLayer, PassType


def _norm(name: str, source: str) -> Make:
    return lambda derivers: derivers[source].transform(
        lambda tensor: tensor.norm(dim=-1, keepdim=True), derivers.dst(name)
    )


def projection_to(
    derivers: Derivers, name: str, source: str, direction: ScalarSource, point: ResidualPoint
) -> ScalarDeriver:
    """x · d by token, for a direction d (T, D) at a point; 0 where x is not upstream of it."""
    deriver = derivers[source]

    def project(tensor: Tensor, vectors: Tensor, layer: LayerIndex) -> Tensor:
        if not point.is_after(layer, deriver.location_within_layer):
            return torch.zeros_like(tensor[:, :1])
        return (tensor * vectors).sum(dim=-1, keepdim=True)

    return deriver.combine(project, direction, derivers.dst(name))


def _projection(name: str, source: str) -> Make:
    return lambda derivers: projection_to(
        derivers,
        name,
        source,
        final_residual_gradient(derivers.config),
        derivers.config.final_residual,
    )


def _token_attribution(derivers: Derivers) -> ScalarDeriver:
    return derivers["resid_post_embedding"].combine(
        lambda embedding, gradient, layer: (embedding * gradient).sum(dim=-1, keepdim=True),
        RawScalarSource(Location.RESID_POST_EMBEDDING, PassType.BACKWARD, NO_LAYERS),
        derivers.dst("token_attribution"),
    )


def _layer_scalar(
    name: str,
    formula: str,
    make: Make,
    at: LocationWithinLayer | None,
    *requires: Requirement,
) -> Declaration:
    return declare(name, (T, ONE), formula, make, requires=requires, at=at)


_WITHIN = LocationWithinLayer
_EMBEDDING = "resid_post_embedding"
_SOURCES: tuple[tuple[str, str, LocationWithinLayer | None, str, str], ...] = (
    (_EMBEDDING, "x0", None, f"{_EMBEDDING}_norm", f"{_EMBEDDING}_proj_to_final_residual_grad"),
    (
        "resid_post_mlp",
        "x_l",
        _WITHIN.RESID_POST_MLP,
        "resid_post_mlp_norm",
        "resid_post_mlp_proj_to_final_residual_grad",
    ),
    (
        "resid_delta_mlp",
        "(f · W_out + b_out)",
        _WITHIN.MLP,
        "mlp_layer_write_norm",
        "mlp_layer_write_to_final_residual_grad",
    ),
    (
        "resid_post_attn",
        "x_mid",
        _WITHIN.RESID_POST_ATTN,
        "resid_post_attn_norm",
        "resid_post_attn_proj_to_final_residual_grad",
    ),
    (
        "resid_delta_attn",
        "(concat_h(Σ_k P v) · W_O + b_O)",
        _WITHIN.ATTN,
        "attn_layer_write_norm",
        "attn_layer_write_to_final_residual_grad",
    ),
)


def _without_layers(source: str) -> tuple[Requirement, ...]:
    return (Requirement.NO_LAYER,) if source == _EMBEDDING else ()


NORMS = tuple(
    _layer_scalar(norm, f"‖{symbol}‖", _norm(norm, source), at, *_without_layers(source))
    for source, symbol, at, norm, _ in _SOURCES
)

PROJECTIONS = tuple(
    _layer_scalar(
        projection,
        f"{symbol} · g; 0 where it is not upstream of g",
        _projection(projection, source),
        at,
        Requirement.GRADIENT,
        *_without_layers(source),
    )
    for source, symbol, at, _, projection in _SOURCES
)

TOKEN_ATTRIBUTION = _layer_scalar(
    "token_attribution",
    "Σ_d x0 · dx0",
    _token_attribution,
    None,
    Requirement.GRADIENT,
    Requirement.NO_LAYER,
)

ALWAYS_ONE = _layer_scalar(
    "always_one",
    "1",
    lambda derivers: derivers[_EMBEDDING].transform(
        lambda embedding: torch.ones_like(embedding[:, :1]), derivers.dst("always_one")
    ),
    None,
    Requirement.NO_LAYER,
)

DECLARATIONS = (*NORMS, *PROJECTIONS, TOKEN_ATTRIBUTION, ALWAYS_ONE)
