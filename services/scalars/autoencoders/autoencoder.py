"""What a sparse autoencoder computes.

One autoencoder reads one place of every layer that it has: the MLP's neurons (`mlp.post_act`), the
MLP's output (`resid.delta_mlp`) or attention's output (`resid.delta_attn`). With I channels of that
place and A latents,

    z = activation((x - input_bias) · encoderᵀ + encoder_bias)
    decode(z) = z · decoder + output_bias

Everything here is differentiable by torch, backward and forward; weights take no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

from services.scalars.model.locations import (
    ActivationLocationType,
    LocationWithinLayer,
    NodeType,
)
from services.scalars.model.weights import WriteWeights, lasting

_CHUNK = 4096


class Activation(StrEnum):
    """From a latent's pre-activation to the latent; 0 wherever it is not active.

    All keep the positive part of a pre-activation p where the latent is active: relu always; topk
    for the k largest pre-activations of a token; jumprelu where p is above the latent's threshold;
    gated where a gate, computed from the same product, is open. A gate that shares the encoder's
    weights is a threshold on the magnitude, and is kept as one.
    """

    RELU = "relu"
    TOPK = "topk"
    JUMPRELU = "jumprelu"
    GATED = "gated"


@dataclass(frozen=True, eq=False)
class AutoencoderLayer:
    """Weights of one layer, for I channels and A latents.

    `encoder` and `decoder` have shape (A, I): rows are what a latent reads and writes.
    `input_bias` (I,) is subtracted before encoding, `output_bias` (I,) added after decoding.
    `threshold` (A,) is there for jumprelu and gated alone, `k`, how many latents of a token are
    active, for topk.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    input_bias: Tensor
    output_bias: Tensor
    threshold: Tensor | None = None
    k: int | None = None

    @property
    def latents(self) -> int:
        """A."""
        return int(self.encoder.shape[0])

    @property
    def weight_bytes(self) -> int:
        """Memory of its tensors."""
        tensors = (
            self.encoder,
            self.encoder_bias,
            self.decoder,
            self.input_bias,
            self.output_bias,
            self.threshold,
        )
        return sum(each.nbytes for each in tensors if each is not None)


@dataclass(frozen=True)
class _Place:
    node_type: NodeType
    latent: ActivationLocationType
    error: ActivationLocationType
    within_layer: LocationWithinLayer


_PLACES = {
    ActivationLocationType.MLP_POST_ACT: _Place(
        NodeType.MLP_AUTOENCODER_LATENT,
        ActivationLocationType.ONLINE_MLP_AUTOENCODER_LATENT,
        ActivationLocationType.ONLINE_MLP_AUTOENCODER_ERROR,
        LocationWithinLayer.MLP,
    ),
    ActivationLocationType.RESID_DELTA_MLP: _Place(
        NodeType.MLP_AUTOENCODER_LATENT,
        ActivationLocationType.ONLINE_MLP_AUTOENCODER_LATENT,
        ActivationLocationType.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR,
        LocationWithinLayer.MLP,
    ),
    ActivationLocationType.RESID_DELTA_ATTN: _Place(
        NodeType.ATTENTION_AUTOENCODER_LATENT,
        ActivationLocationType.ONLINE_ATTENTION_AUTOENCODER_LATENT,
        ActivationLocationType.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR,
        LocationWithinLayer.ATTN,
    ),
}


class Autoencoder:
    """An autoencoder at some layers of a model.

    `location` is the place that it reads and writes. ValueError where it is none that has
    autoencoders, or where a layer lacks what the activation needs.
    """

    def __init__(
        self,
        name: str,
        location: ActivationLocationType,
        activation: Activation,
        layers: Mapping[int, AutoencoderLayer],
    ) -> None:
        if location not in _PLACES:
            raise ValueError(f"{location.value} is no place that an autoencoder reads")
        with_threshold = activation in (Activation.JUMPRELU, Activation.GATED)
        for index, each in layers.items():
            if (each.k is not None) != (activation is Activation.TOPK):
                raise ValueError(f"layer {index}: k belongs to topk, and topk needs it")
            if (each.threshold is not None) != with_threshold:
                raise ValueError(f"layer {index}: {activation} and a threshold don't agree")
        self.name = name
        self.location = location
        self.activation = activation
        self._place = _PLACES[location]
        self._layers = dict(sorted(layers.items()))
        self._write_norms: dict[int, Tensor] = {}

    @property
    def node_type(self) -> NodeType:
        """Kind of its latents: of the MLP or of attention."""
        return self._place.node_type

    @property
    def latent_location(self) -> ActivationLocationType:
        """The name of its latents in a forward pass that says whose they are."""
        return self._place.latent

    @property
    def error_location(self) -> ActivationLocationType:
        """The name of x - decode(z) in a forward pass."""
        return self._place.error

    @property
    def location_within_layer(self) -> LocationWithinLayer:
        """Where in its layer it stands."""
        return self._place.within_layer

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have latents, ascending."""
        return tuple(self._layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def layer(self, layer: int) -> AutoencoderLayer:
        """The weights of a layer; KeyError where it has no latents."""
        return self._layers[layer]

    def latent_count(self, layer: int) -> int:
        """Latents of a layer, 0 where it has none."""
        return self._layers[layer].latents if layer in self._layers else 0

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(each.weight_bytes for each in self._layers.values())

    def encode_pre(self, layer: int, x: Tensor, latents: slice | Tensor | None = None) -> Tensor:
        """Pre-activations (T, A) of an input (T, I); of some latents alone where named."""
        weights = self._layers[layer]
        encoder, bias = weights.encoder, weights.encoder_bias
        if latents is not None:
            encoder, bias = encoder[latents], bias[latents]
        return functional.linear(x.to(encoder.dtype) - weights.input_bias, encoder, bias)

    def activate(self, layer: int, pre: Tensor, latents: slice | Tensor | None = None) -> Tensor:
        """Latents (T, A) of the pre-activations (T, A), of all latents or of those named.

        ValueError where only some are given to topk, which compares them all.
        """
        positive = torch.relu(pre)
        weights = self._layers[layer]
        if weights.k is not None:
            if latents is not None:
                raise ValueError("topk compares all latents")
            chosen = torch.topk(pre.detach(), weights.k, dim=-1).indices
            return positive * torch.zeros_like(pre.detach()).scatter(-1, chosen, 1.0)
        if weights.threshold is not None:
            threshold = weights.threshold if latents is None else weights.threshold[latents]
            return positive * (pre.detach() > threshold).to(positive.dtype)
        return positive

    def encode(self, layer: int, x: Tensor) -> Tensor:
        """Latents (T, A) of an input (T, I)."""
        return self.activate(layer, self.encode_pre(layer, x))

    def gradient(self, layer: int, x: Tensor, latent: int) -> Tensor:
        """Gradient (T, I) of one latent, summed over tokens, with respect to the input (T, I).

        Wherever a latent is active its activation has the slope 1, and 0 elsewhere: this is the
        row of the encoder at tokens where it is active.
        """
        weights = self._layers[layer]
        if weights.k is None:
            one = slice(latent, latent + 1)
            active = self.activate(layer, self.encode_pre(layer, x, one), one) > 0
        else:
            active = self.encode(layer, x)[:, latent : latent + 1] > 0
        return active.to(weights.encoder.dtype) * weights.encoder[latent]

    def decode(self, layer: int, latents: Tensor) -> Tensor:
        """The reconstruction (T, I) from latents (T, A)."""
        weights = self._layers[layer]
        return latents @ weights.decoder + weights.output_bias

    def encoder(self, layer: int) -> Tensor:
        """Read directions of the latents, (A, I)."""
        return self._layers[layer].encoder

    def decoder(self, layer: int) -> Tensor:
        """Write directions of the latents in the place that it reads, (A, I)."""
        return self._layers[layer].decoder

    def write_directions(
        self, layer: int, write: WriteWeights, latents: slice | Tensor | None = None
    ) -> Tensor:
        """Write vectors of the latents to the residual stream, (A, D), of all or of those named.

        Multiplied out on every call: they are as large as the decoder.
        """
        decoder = self._layers[layer].decoder
        if latents is not None:
            decoder = decoder[latents]
        if self.location is ActivationLocationType.MLP_POST_ACT:
            return decoder @ write.mlp[layer].to(decoder.dtype)
        return decoder

    def write_norms(self, layer: int, write: WriteWeights) -> Tensor:
        """Length of every latent's write vector, (A,); remembered."""
        if layer not in self._write_norms:
            count = self.latent_count(layer)
            with lasting():
                self._write_norms[layer] = torch.cat(
                    [
                        self.write_directions(layer, write, slice(first, first + _CHUNK)).norm(
                            dim=1
                        )
                        for first in range(0, count, _CHUNK)
                    ]
                )
        return self._write_norms[layer]

    def write_products(self, layer: int, write: WriteWeights, vectors: Tensor) -> Tensor:
        """w_n · v for every latent n and every vector v of the residual stream: (N, D) to (N, A).

        The write vectors are not multiplied out for it.
        """
        if self.location is ActivationLocationType.MLP_POST_ACT:
            vectors = vectors @ write.mlp[layer].T.to(vectors.dtype)
        decoder = self._layers[layer].decoder
        return vectors.to(decoder.dtype) @ decoder.T
