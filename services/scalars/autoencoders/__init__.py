"""Sparse autoencoders beside the subject model: their arithmetic, and reading their files."""

from __future__ import annotations

from services.scalars.autoencoders.autoencoder import (
    Activation,
    Autoencoder,
    AutoencoderLayer,
)
from services.scalars.autoencoders.autoencoder_set import NO_AUTOENCODERS, AutoencoderSet
from services.scalars.autoencoders.within_layer import WithinLayerLatent

__all__ = [
    "NO_AUTOENCODERS",
    "Activation",
    "Autoencoder",
    "AutoencoderLayer",
    "AutoencoderSet",
    "WithinLayerLatent",
]
