"""Scalars of autoencoder latents, and of what autoencoders fail to reconstruct.

Each type of latents has three names: one for the only autoencoder of a deployment, one for that on
the MLP, one for that on attention. The write vector of a latent at a token, z w_n, is made only for
those who ask for it whole: its length follows from lengths that are computed once, its product with
a direction from the direction's product with the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.autoencoders import Autoencoder
from services.scalars.catalogue.declaration import (
    A,
    D,
    Declaration,
    Derivers,
    F,
    Make,
    Requirement,
    T,
    declare,
)
from services.scalars.catalogue.gradients import (
    final_activation_residual_gradient,
    final_residual_gradient,
    rows_with_gradient,
)
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.residual_points import ResidualPoint
from services.scalars.deriving.sources import RawScalarSource, ScalarSource
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, LocationWithinLayer, NodeType, PassType


def layer_of(layer: LayerIndex) -> int:
    """The layer of a latent, which always has one."""
    if layer is None:
        raise ValueError("a latent has a layer")
    return layer


def autoencoder_of(derivers: Derivers, node_type: NodeType) -> Autoencoder:
    """The autoencoder whose latents are nodes of a type; ValueError where there is none."""
    found = derivers.config.autoencoders.for_node_type(node_type)
    if found is None:
        raise ValueError(f"no autoencoder of this deployment has nodes {node_type.value}")
    return found


class _Names:
    """The names of one of the three kinds, and its node type."""

    def __init__(self, kind: str, node_type: NodeType) -> None:
        prefix = f"{kind}_" if kind else ""
        self.node_type = node_type
        self.latent = f"online_{prefix}autoencoder_latent"
        self.offline = f"{prefix}autoencoder_latent"
        self.offline_write_norm = f"{prefix}autoencoder_write_norm"
        self.write = f"online_{prefix}autoencoder_write"
        self.write_norm = f"online_{prefix}autoencoder_write_norm"
        self.act_times_grad = f"online_{prefix}autoencoder_act_times_grad"
        self.effect = f"online_{prefix}autoencoder_write_to_final_residual_grad"
        self.local_effect = f"online_{prefix}autoencoder_write_to_final_activation_residual_grad"


GENERIC = _Names("", NodeType.AUTOENCODER_LATENT)
MLP = _Names("mlp", NodeType.MLP_AUTOENCODER_LATENT)
ATTENTION = _Names("attention", NodeType.ATTENTION_AUTOENCODER_LATENT)


def _online(names: _Names) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        autoencoder = autoencoder_of(derivers, names.node_type)
        return ScalarDeriver(
            dst=derivers.dst(names.latent),
            dst_config=derivers.config,
            sources=(RawScalarSource(autoencoder.latent_location, PassType.FORWARD),),
            function=lambda tensors, layer, _: tensors[0],
            specified_location_within_layer=autoencoder.location_within_layer,
        )

    return make


def _offline(names: _Names) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        autoencoder = autoencoder_of(derivers, names.node_type)
        return ScalarDeriver(
            dst=derivers.dst(names.offline),
            dst_config=derivers.config,
            sources=(RawScalarSource(autoencoder.location, PassType.FORWARD),),
            function=lambda tensors, layer, _: autoencoder.encode(layer_of(layer), tensors[0]),
            specified_location_within_layer=autoencoder.location_within_layer,
        )

    return make


def _write(names: _Names) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        autoencoder = autoencoder_of(derivers, names.node_type)
        weights = derivers.config.model.write
        return derivers[names.latent].transform_by_layer(
            lambda latents, layer, _: (
                latents[..., None] * autoencoder.write_directions(layer_of(layer), weights)
            ),
            derivers.dst(names.write),
        )

    return make


def _write_norm(names: _Names, source: str, name: str) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        autoencoder = autoencoder_of(derivers, names.node_type)
        weights = derivers.config.model.write
        return derivers[source].transform_by_layer(
            lambda latents, layer, _: latents * autoencoder.write_norms(layer_of(layer), weights),
            derivers.dst(name),
        )

    return make


def _act_times_grad(names: _Names) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        location = autoencoder_of(derivers, names.node_type).latent_location
        return derivers[names.latent].combine(
            lambda latents, gradient, layer: latents * gradient,
            RawScalarSource(location, PassType.BACKWARD),
            derivers.dst(names.act_times_grad),
        )

    return make


def effect_of_latents(
    derivers: Derivers,
    node_type: NodeType,
    name: str,
    direction: ScalarSource,
    point: ResidualPoint,
) -> ScalarDeriver:
    """z · (w_n · d), for a direction d (T, D) at a point; 0 where not upstream of it.

    Latents are those of the forward pass, of the autoencoder that `node_type` names.
    """
    autoencoder = autoencoder_of(derivers, node_type)
    weights = derivers.config.model.write
    latent = next(each for each in (GENERIC, MLP, ATTENTION) if each.node_type is node_type).latent

    def effect(latents: Tensor, vectors: Tensor, layer: LayerIndex) -> Tensor:
        result = torch.zeros_like(latents)
        if point.is_after(layer, autoencoder.location_within_layer):
            rows = rows_with_gradient(vectors)
            products = autoencoder.write_products(layer_of(layer), weights, vectors[rows])
            result[rows] = latents[rows] * products
        return result

    return derivers[latent].combine(effect, direction, derivers.dst(name))


def _effect(names: _Names) -> Make:
    return lambda derivers: effect_of_latents(
        derivers,
        names.node_type,
        names.effect,
        final_residual_gradient(derivers.config),
        derivers.config.final_residual,
    )


def _local_effect(names: _Names) -> Make:
    return lambda derivers: effect_of_latents(
        derivers,
        names.node_type,
        names.local_effect,
        final_activation_residual_gradient(derivers),
        derivers.config.final_residual,
    )


def _declared(
    names: _Names, requirement: Requirement, at: LocationWithinLayer | None
) -> tuple[Declaration, ...]:
    """The eight types of one kind."""

    def row(
        name: str, formula: str, make: Make, *requires: Requirement, whole: bool = False
    ) -> Declaration:
        return declare(
            name,
            (T, A, D) if whole else (T, A),
            formula,
            make,
            requires=(requirement, *requires),
            at=at,
            node_type=None if whole else names.node_type,
        )

    offline_norm = _write_norm(names, names.offline, names.offline_write_norm)
    online_norm = _write_norm(names, names.latent, names.write_norm)
    return (
        row(names.latent, "z, read during the forward pass", _online(names)),
        row(names.offline, "z, from saved activations", _offline(names)),
        row(names.offline_write_norm, "z · ‖w_n‖, z from saved activations", offline_norm),
        row(names.act_times_grad, "z · dz", _act_times_grad(names), Requirement.GRADIENT),
        row(names.write_norm, "z · ‖w_n‖", online_norm),
        row(names.effect, "z · (w_n · g)", _effect(names), Requirement.GRADIENT),
        row(names.local_effect, "z · (w_n · g~)", _local_effect(names), Requirement.TRACE),
        row(names.write, "z · w_n", _write(names), whole=True),
    )


def _error(location: Location) -> Make:
    def make(derivers: Derivers) -> ScalarDeriver:
        return ScalarDeriver(
            dst=derivers.dst(location.value),
            dst_config=derivers.config,
            sources=(RawScalarSource(location, PassType.FORWARD),),
            function=lambda tensors, layer, _: tensors[0],
        )

    return make


_NEURON_ERROR = Location.ONLINE_MLP_AUTOENCODER_ERROR.value


def _error_act_times_grad(derivers: Derivers) -> ScalarDeriver:
    return derivers[_NEURON_ERROR].combine(
        lambda error, gradient, layer: error * gradient,
        RawScalarSource(Location.ONLINE_MLP_AUTOENCODER_ERROR, PassType.BACKWARD),
        derivers.dst(f"{_NEURON_ERROR}_act_times_grad"),
    )


def _error_write_norm(derivers: Derivers) -> ScalarDeriver:
    write = derivers.config.model.write
    return derivers[_NEURON_ERROR].transform_by_layer(
        lambda error, layer, _: error * write.mlp_norms(layer_of(layer)),
        derivers.dst(f"{_NEURON_ERROR}_write_norm"),
    )


def _error_effect(derivers: Derivers) -> ScalarDeriver:
    weights = derivers.config.model.write.mlp
    point = derivers.config.final_residual

    def effect(error: Tensor, gradient: Tensor, layer: LayerIndex) -> Tensor:
        result = torch.zeros_like(error)
        if point.is_after(layer, LocationWithinLayer.MLP):
            rows = rows_with_gradient(gradient)
            result[rows] = error[rows] * (gradient[rows] @ weights[layer_of(layer)].T)
        return result

    return derivers[_NEURON_ERROR].combine(
        effect,
        final_residual_gradient(derivers.config),
        derivers.dst(f"{_NEURON_ERROR}_write_to_final_residual_grad"),
    )


_ERRORS = (
    declare(
        _NEURON_ERROR,
        (T, F),
        "f - decode(z)",
        _error(Location.ONLINE_MLP_AUTOENCODER_ERROR),
        requires=(Requirement.NEURON_AUTOENCODER,),
        at=LocationWithinLayer.MLP,
    ),
    declare(
        Location.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR.value,
        (T, D),
        "x - decode(z), x the MLP's output",
        _error(Location.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR),
        requires=(Requirement.MLP_OUTPUT_AUTOENCODER,),
        at=LocationWithinLayer.MLP,
    ),
    declare(
        Location.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR.value,
        (T, D),
        "x - decode(z), x attention's output",
        _error(Location.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR),
        requires=(Requirement.ATTENTION_AUTOENCODER,),
        at=LocationWithinLayer.ATTN,
    ),
    declare(
        f"{_NEURON_ERROR}_act_times_grad",
        (T, F),
        "(f - decode(z)) · df",
        _error_act_times_grad,
        requires=(Requirement.NEURON_AUTOENCODER, Requirement.GRADIENT),
        at=LocationWithinLayer.MLP,
    ),
    declare(
        f"{_NEURON_ERROR}_write_norm",
        (T, F),
        "(f - decode(z)) · ‖W_out[n]‖",
        _error_write_norm,
        requires=(Requirement.NEURON_AUTOENCODER,),
        at=LocationWithinLayer.MLP,
    ),
    declare(
        f"{_NEURON_ERROR}_write_to_final_residual_grad",
        (T, F),
        "(f - decode(z)) · (W_out[n] · g)",
        _error_effect,
        requires=(Requirement.NEURON_AUTOENCODER, Requirement.GRADIENT),
        at=LocationWithinLayer.MLP,
    ),
)

DECLARATIONS = (
    *_declared(GENERIC, Requirement.SINGLE_AUTOENCODER, None),
    *_declared(MLP, Requirement.MLP_AUTOENCODER, LocationWithinLayer.MLP),
    *_declared(ATTENTION, Requirement.ATTENTION_AUTOENCODER, LocationWithinLayer.ATTN),
    *_ERRORS,
)
