"""Autoencoders in Neuropil's own layout: one safetensors file for all layers.

Tensors `layers.<i>.pre_bias` (I,), `.encoder.weight` (A, I), `.latent_bias` (A,) and
`.decoder.weight` (I, A), and metadata `dst` and `activation`. topk has its k in the metadata;
jumprelu its threshold there, or a tensor `.threshold` (A,). gated has tensors `.gate_bias` (A,) and
`.magnitude_scale` (A,): with p = (x - pre_bias) · Wᵀ the gate of a latent is open where
p + gate_bias > 0, and its magnitude is p · exp(magnitude_scale) + latent_bias.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from services.scalars.autoencoders.autoencoder import Activation, Autoencoder, AutoencoderLayer
from services.scalars.autoencoders.gating import gated_as_threshold
from services.scalars.autoencoders.tensor_file import TensorFile, opened_tensors
from services.scalars.model.locations import ActivationLocationType, ModelShape

LOCATIONS = {
    "mlp_post_act": ActivationLocationType.MLP_POST_ACT,
    "resid_delta_mlp": ActivationLocationType.RESID_DELTA_MLP,
    "resid_delta_attn": ActivationLocationType.RESID_DELTA_ATTN,
}
_TENSOR = re.compile(r"layers\.(0|[1-9][0-9]{0,8})\.(.+)")
_STATISTICS = {"latents_activation_frequency", "latents_mean_square", "stats_last_nonzero"}
"""What training leaves beside the weights; nothing is computed from it."""
_COMMON = {"pre_bias", "encoder.weight", "latent_bias", "decoder.weight"}
_OF_ACTIVATION = {
    Activation.RELU: set[str](),
    Activation.TOPK: set[str](),
    Activation.JUMPRELU: {"threshold"},
    Activation.GATED: {"gate_bias", "magnitude_scale"},
}


def read_own_layout(
    name: str, path: Path, key: str, shape: ModelShape, device: torch.device
) -> Autoencoder:
    """Reads and checks a file; ConfigurationError naming `key` for everything that is wrong."""
    with opened_tensors(path, key, device) as file:
        dst = file.metadata.get("dst", "")
        if dst not in LOCATIONS:
            raise file.fault(f"metadata dst is {dst!r}; it must be one of {', '.join(LOCATIONS)}")
        activation = _activation(file)
        location = LOCATIONS[dst]
        layers = {
            layer: _layer(file, layer, shape.size(location.dimensions[-1], 1), activation)
            for layer in _layers(file, shape, activation)
        }
    return Autoencoder(name, location, activation, layers)


def _activation(file: TensorFile) -> Activation:
    named = file.metadata.get("activation")
    try:
        return Activation((named or "").lower())
    except ValueError:
        raise file.fault(
            f"metadata activation is {named!r}; it must be one of {', '.join(Activation)}"
        ) from None


def _layers(file: TensorFile, shape: ModelShape, activation: Activation) -> list[int]:
    """The layers that the file has; every tensor must be one that is understood."""
    layers: set[int] = set()
    for name in sorted(file.names):
        matched = _TENSOR.fullmatch(name)
        if matched is None:
            raise file.fault(f"tensor {name} is unknown; names are layers.<i>.encoder.weight etc.")
        layer, part = int(matched.group(1)), matched.group(2)
        if part in _STATISTICS:
            continue
        if part not in _COMMON | _OF_ACTIVATION[activation]:
            raise file.fault(f"tensor {name} is unknown for {activation}")
        if layer >= shape.layers:
            raise file.fault(
                f"tensor {name} is of layer {layer}; the model has layers 0 to {shape.layers - 1}"
            )
        layers.add(layer)
    if not layers:
        raise file.fault("there is no layers.<i>.encoder.weight")
    return sorted(layers)


def _layer(file: TensorFile, layer: int, width: int, activation: Activation) -> AutoencoderLayer:
    at = f"layers.{layer}"
    found = file.shape(f"{at}.encoder.weight")
    if len(found) != 2 or found[0] < 1:
        raise file.fault(
            f"tensor {at}.encoder.weight has shape {list(found)}; latents by channels are needed"
        )
    latents = found[0]
    encoder = file.tensor(f"{at}.encoder.weight", (latents, width))
    encoder_bias = file.tensor(f"{at}.latent_bias", (latents,))
    threshold: Tensor | None = None
    if activation is Activation.JUMPRELU:
        threshold = _threshold(file, layer, latents)
    elif activation is Activation.GATED:
        encoder, threshold = gated_as_threshold(
            encoder,
            encoder_bias,
            file.tensor(f"{at}.gate_bias", (latents,)),
            file.tensor(f"{at}.magnitude_scale", (latents,)),
        )
    bias = file.tensor(f"{at}.pre_bias", (width,))
    return AutoencoderLayer(
        encoder=encoder,
        encoder_bias=encoder_bias,
        decoder=file.tensor(f"{at}.decoder.weight", (width, latents)).T,
        input_bias=bias,
        output_bias=bias,
        threshold=threshold,
        k=_k(file, latents) if activation is Activation.TOPK else None,
    )


def _k(file: TensorFile, latents: int) -> int:
    given = file.metadata.get("k", "")
    if (
        not (given.isascii() and given.isdigit())
        or len(given) > 9
        or not 1 <= int(given) <= latents
    ):
        raise file.fault(
            f"metadata k is {given!r}; topk needs a whole number from 1 to the {latents} latents"
        )
    return int(given)


def _threshold(file: TensorFile, layer: int, latents: int) -> Tensor:
    given = file.metadata.get("threshold", "")
    name = f"layers.{layer}.threshold"
    if (given != "") == (name in file.names):
        raise file.fault(
            f"jumprelu needs its threshold either as metadata or as tensor {name}; "
            f"{'both are' if given else 'neither is'} there"
        )
    if not given:
        tensor = file.tensor(name, (latents,))
        if bool((tensor < 0).any()):
            raise file.fault(f"tensor {name} holds negative thresholds")
        return tensor
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise file.fault(f"metadata threshold is {given!r}; a number from 0 is needed")
    return torch.full((latents,), value, device=file.device)
