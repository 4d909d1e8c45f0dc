"""What attributes latents to the heads of their layer, and their gradients at what they read.

The latent is the one that a request names beside its prompt. Where it is active, its gradient is
its row of the encoder; so the sum over a layer's heads, of all latents at once, needs no gradient
and no vector of residual width for every token pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.autoencoders import Autoencoder, WithinLayerLatent
from services.scalars.catalogue.attention import flatten_pairs
from services.scalars.catalogue.autoencoders import ATTENTION, autoencoder_of, layer_of
from services.scalars.catalogue.declaration import (
    ONE,
    PAIRS,
    A,
    D,
    Derivers,
    F,
    H,
    Requirement,
    S,
    T,
    declare,
)
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.deriving.sources import DerivedScalarSource, RawScalarSource
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, LocationWithinLayer, PassType

_PROBS = RawScalarSource(Location.ATTN_QK_PROBS, PassType.FORWARD)
_VALUES = RawScalarSource(Location.ATTN_VALUE, PassType.FORWARD)
_MIXED_VALUES = RawScalarSource(Location.ATTN_WEIGHTED_SUM_OF_VALUES, PassType.FORWARD)
_GRADIENT = DerivedScalarType("gradient_of_within_layer_latent", (T, D))


def _latent_of(derivers: Derivers) -> tuple[Autoencoder, WithinLayerLatent]:
    latent = derivers.config.within_layer_latent
    if latent is None:
        raise ValueError("a gradient within a layer needs its latent")
    return autoencoder_of(derivers, latent.node_type), latent


def _gradient(derivers: Derivers, dst: DerivedScalarType) -> ScalarDeriver:
    """∇_x Σ_t z[t, n] at what the latent's autoencoder reads."""
    autoencoder, latent = _latent_of(derivers)

    def at_input(tensors: tuple[Tensor, ...], layer: LayerIndex, _: PassType) -> Tensor:
        if layer != latent.layer:
            raise ValueError(f"the latent is in layer {latent.layer}, not in layer {layer}")
        return autoencoder.gradient(latent.layer, tensors[0], latent.latent)

    return ScalarDeriver(
        dst=dst,
        dst_config=derivers.config,
        sources=(RawScalarSource(autoencoder.location, PassType.FORWARD),),
        function=at_input,
        specified_location_within_layer=autoencoder.location_within_layer,
    )


def _gradient_source(derivers: Derivers) -> DerivedScalarSource:
    return DerivedScalarSource(
        derivers.shared(_GRADIENT.name, lambda: _gradient(derivers, _GRADIENT)), PassType.FORWARD
    )


def _by_pair(derivers: Derivers) -> ScalarDeriver:
    weights = derivers.config.model.write.attn

    def attribute(tensors: tuple[Tensor, ...], layer: LayerIndex, _: PassType) -> Tensor:
        probs, values, gradient = tensors
        directions = torch.einsum("hed,td->the", weights[layer_of(layer)], gradient)
        return probs * torch.einsum("she,the->tsh", values, directions)

    return ScalarDeriver(
        dst=derivers.dst("attn_write_to_latent"),
        dst_config=derivers.config,
        sources=(_PROBS, _VALUES, _gradient_source(derivers)),
        function=attribute,
    )


def _by_token(derivers: Derivers) -> ScalarDeriver:
    weights = derivers.config.model.write.attn

    def attribute(tensors: tuple[Tensor, ...], layer: LayerIndex, _: PassType) -> Tensor:
        mixed, gradient = tensors
        directions = torch.einsum("hed,td->the", weights[layer_of(layer)], gradient)
        return (mixed * directions).sum(dim=-1)

    return ScalarDeriver(
        dst=derivers.dst("attn_write_to_latent_per_sequence_token"),
        dst_config=derivers.config,
        sources=(_MIXED_VALUES, _gradient_source(derivers)),
        function=attribute,
    )


def _heads_to_latents(derivers: Derivers, autoencoder: Autoencoder, layer: int) -> Tensor:
    """What a head's value channels write along each latent's read direction, (H, dh, A)."""
    return derivers.config.model.write.attn[layer] @ autoencoder.encoder(layer).T


def _by_pair_batched(derivers: Derivers) -> ScalarDeriver:
    autoencoder = autoencoder_of(derivers, ATTENTION.node_type)

    def attribute(tensors: tuple[Tensor, ...], layer: LayerIndex, _: PassType) -> Tensor:
        probs, values, latents = tensors
        through = _heads_to_latents(derivers, autoencoder, layer_of(layer))
        active = (latents > 0).to(probs.dtype)
        n_tokens, n_latents = latents.shape
        result = probs.new_empty(n_tokens * (n_tokens + 1) // 2, n_latents)
        queries = torch.arange(n_tokens, device=probs.device)
        # Key by key: nothing is as large as all pairs of tokens and heads times latents.
        for key in range(n_tokens):
            written = torch.einsum("he,hea->ha", values[key], through)
            rows = queries[key:]
            result[rows * (rows + 1) // 2 + key] = (probs[key:, key] @ written) * active[key:]
        return result

    return ScalarDeriver(
        dst=derivers.dst("flattened_attn_write_to_latent_summed_over_heads_batched"),
        dst_config=derivers.config,
        sources=(
            _PROBS,
            _VALUES,
            DerivedScalarSource(derivers[ATTENTION.offline], PassType.FORWARD),
        ),
        function=attribute,
    )


def _by_token_batched(derivers: Derivers) -> ScalarDeriver:
    autoencoder = autoencoder_of(derivers, ATTENTION.node_type)

    def attribute(tensors: tuple[Tensor, ...], layer: LayerIndex, _: PassType) -> Tensor:
        mixed, latents = tensors
        through = _heads_to_latents(derivers, autoencoder, layer_of(layer))
        active = (latents > 0).to(mixed.dtype)
        return torch.einsum("the,hea->tha", mixed, through) * active[:, None]

    return ScalarDeriver(
        dst=derivers.dst("attn_write_to_latent_per_sequence_token_batched"),
        dst_config=derivers.config,
        sources=(
            _MIXED_VALUES,
            DerivedScalarSource(derivers[ATTENTION.offline], PassType.FORWARD),
        ),
        function=attribute,
    )


_LATENT = Requirement.WITHIN_LAYER_LATENT
_ATTENTION = Requirement.ATTENTION_AUTOENCODER
_AT = LocationWithinLayer.ATTN

DECLARATIONS = (
    declare(
        "autoencoder_latent_grad_wrt_residual_input",
        (T, D),
        "∇_x Σ_t z[t, n], x what the autoencoder reads",
        lambda derivers: _gradient(
            derivers, derivers.dst("autoencoder_latent_grad_wrt_residual_input")
        ),
        requires=(Requirement.BLOCK_OUTPUT_AUTOENCODER, _LATENT),
    ),
    declare(
        "autoencoder_latent_grad_wrt_mlp_post_act_input",
        (T, F),
        "∇_f Σ_t z[t, n]",
        lambda derivers: _gradient(
            derivers, derivers.dst("autoencoder_latent_grad_wrt_mlp_post_act_input")
        ),
        requires=(Requirement.NEURON_AUTOENCODER, _LATENT),
        at=LocationWithinLayer.MLP,
    ),
    declare(
        "attn_write_to_latent",
        (T, S, H),
        "P v_k W_O^h · ∇_x z_n[q]",
        _by_pair,
        requires=(_ATTENTION, _LATENT),
        at=_AT,
    ),
    declare(
        "attn_write_to_latent_summed_over_heads",
        (T, S, ONE),
        "Σ_h P v_k W_O^h · ∇_x z_n[q]",
        lambda derivers: derivers["attn_write_to_latent"].transform(
            lambda by_head: by_head.sum(dim=-1, keepdim=True),
            derivers.dst("attn_write_to_latent_summed_over_heads"),
        ),
        requires=(_ATTENTION, _LATENT),
        at=_AT,
    ),
    declare(
        "flattened_attn_write_to_latent_summed_over_heads",
        (PAIRS, ONE),
        "Σ_h P v_k W_O^h · ∇_x z_n[q] by token pair",
        lambda derivers: derivers["attn_write_to_latent_summed_over_heads"].transform(
            flatten_pairs, derivers.dst("flattened_attn_write_to_latent_summed_over_heads")
        ),
        requires=(_ATTENTION, _LATENT),
        at=_AT,
    ),
    declare(
        "flattened_attn_write_to_latent_summed_over_heads_batched",
        (PAIRS, A),
        "Σ_h P v_k W_O^h · ∇_x z[q] by token pair, for every latent",
        _by_pair_batched,
        requires=(_ATTENTION,),
        at=_AT,
    ),
    declare(
        "attn_write_to_latent_per_sequence_token",
        (T, H),
        "Σ_k P v_k W_O^h · ∇_x z_n[q]",
        _by_token,
        requires=(Requirement.BLOCK_OUTPUT_AUTOENCODER, _LATENT),
        at=_AT,
    ),
    declare(
        "attn_write_to_latent_per_sequence_token_batched",
        (T, H, A),
        "Σ_k P v_k W_O^h · ∇_x z[q], for every latent",
        _by_token_batched,
        requires=(_ATTENTION,),
        at=_AT,
    ),
)
