"""How much each entry of the vocabulary would drive a node of the MLP."""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.catalogue.declaration import Derivers, Requirement, T, V, declare
from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.passes.nodes import autoencoder_input

_NAME = "vocab_token_write_to_input_direction"
_CHUNK = 2048
"""Entries at a time: what a latent reads is as wide as the MLP, and the vocabulary is long."""

READABLE = (
    Location.MLP_PRE_ACT,
    Location.MLP_POST_ACT,
    Location.ONLINE_AUTOENCODER_LATENT,
    Location.ONLINE_MLP_AUTOENCODER_LATENT,
)
"""Places whose elements read a residual stream without a mixture of tokens."""


def _pre_activations(config: DstConfig) -> Tensor:
    """(V,): the pre-activation, for a block that reads each token's embedding."""
    index = config.activation_index
    if index is None or index.layer_index is None or index.tensor_indices[1] is None:
        raise ValueError("one activation at a layer is needed")
    model, layer, column = config.model, index.layer_index, index.tensor_indices[1]
    autoencoder = config.autoencoders.for_location(index.activation_location_type)
    chosen = torch.tensor([column], device=model.device)
    parts = []
    for embeddings in torch.split(model.token_embedding, _CHUNK):
        if autoencoder is None:
            part = model.mlp_neurons(layer, embeddings, neurons=chosen).pre_act
        else:
            read = autoencoder_input(
                model, autoencoder.location, layer, embeddings, detach_scale=False
            )
            part = autoencoder.encode_pre(layer, read, chosen)
        parts.append(part[:, 0])
    return torch.cat(parts)


def _vocabulary_write(derivers: Derivers) -> ScalarDeriver:
    config = derivers.config
    return derivers["resid_post_embedding"].transform(
        lambda embedding: _pre_activations(config).expand(embedding.shape[0], -1),
        derivers.dst(_NAME),
    )


DECLARATIONS = (
    declare(
        _NAME,
        (T, V),
        "pre-activation of one neuron or latent if its block's input were wte[v]",
        _vocabulary_write,
        requires=(Requirement.ACTIVATION_INDEX, Requirement.NO_LAYER),
    ),
)
