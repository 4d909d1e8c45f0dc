"""One row's passes in float64, every place tapped literally as it is defined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from services.scalars.autoencoders import Activation, Autoencoder, AutoencoderLayer, AutoencoderSet
from services.scalars.deriving.scalar_types import raw_scalar_type
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, PassType
from services.scalars.model.taps import Overwrite, RawTensorId
from tests.unit.scalars_checkpoint import LAYERS, NEURONS, WIDTH
from tests.unit.scalars_float64 import Float64Model

FORWARD, BACKWARD = PassType.FORWARD, PassType.BACKWARD
NO_SCALARS = (
    Location.RESID_POST_ATTN_LAYER_NORM,
    Location.RESID_POST_MLP_LAYER_NORM,
    Location.RESID_POST_FINAL_LAYER_NORM,
)
ORDINARY = tuple(place for place in Location if place.exists_by_default)
_NAMES = {
    place.value if place in NO_SCALARS else raw_scalar_type(place).name: place for place in ORDINARY
}
WIDTHS = {
    Location.MLP_POST_ACT: NEURONS,
    Location.RESID_DELTA_MLP: WIDTH,
    Location.RESID_DELTA_ATTN: WIDTH,
}


def make_autoencoder(
    location: Location,
    activation: Activation = Activation.RELU,
    latents: int = 14,
    dtype: torch.dtype = torch.float32,
    seed: int = 5,
) -> Autoencoder:
    """A random autoencoder at all layers but one, the same weights in any precision."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return (torch.randn(*sizes, generator=generator) * 0.4).to(dtype)

    def layer() -> AutoencoderLayer:
        width = WIDTHS[location]
        threshold = normal(latents).abs()
        return AutoencoderLayer(
            encoder=normal(latents, width),
            encoder_bias=normal(latents),
            decoder=normal(latents, width),
            input_bias=normal(width),
            output_bias=normal(width),
            threshold=(
                threshold if activation in (Activation.JUMPRELU, Activation.GATED) else None
            ),
            k=3 if activation is Activation.TOPK else None,
        )

    name = f"random-{location.value}"
    return Autoencoder(name, location, activation, {index: layer() for index in range(1, LAYERS)})


class ReferencePass:
    """What one row's forward and backward pass are by definition.

    `activations` and `gradients` hold every place, after its ablations.
    """

    def __init__(
        self,
        model: Float64Model,
        tokens: Sequence[int],
        overwrites: Sequence[Overwrite],
        autoencoders: AutoencoderSet,
        loss: Callable[[Tensor], Tensor],
    ) -> None:
        self._overwrites = overwrites
        self._autoencoders = autoencoders
        self.activations: dict[tuple[Location, LayerIndex], Tensor] = {}
        self.gradients: dict[tuple[Location, LayerIndex], Tensor] = {}
        logits = model.forward(list(tokens), self._replace)["logits"][None]
        self.loss = loss(logits)
        self.loss.backward()  # type: ignore[no-untyped-call]

    def _replace(self, name: str, layer: int | None, x: Tensor) -> Tensor:
        location = _NAMES[name]
        x = self._tap(x if x.requires_grad else x.requires_grad_(), location, layer)
        autoencoder = self._autoencoders.at(location, layer)
        if autoencoder is None or layer is None:
            return x
        latents = autoencoder.encode(layer, x)
        error = x - autoencoder.decode(layer, latents)
        latents = self._tap(latents.clone(), autoencoder.latent_location, layer)
        error = self._tap(error, autoencoder.error_location, layer)
        return autoencoder.decode(layer, latents) + error

    def _tap(self, x: Tensor, location: Location, layer: int | None) -> Tensor:
        x = x.clone()
        for overwrite in self._of(location, layer, FORWARD):
            x[overwrite.index] = overwrite.value

        def flows(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            for overwrite in self._of(location, layer, BACKWARD):
                gradient[overwrite.index] = overwrite.value
            self.gradients[location, layer] = gradient
            return gradient

        x.register_hook(flows)  # type: ignore[no-untyped-call]
        self.activations[location, layer] = x.detach()
        return x

    def _of(self, location: Location, layer: int | None, which: PassType) -> list[Overwrite]:
        return [
            each
            for each in self._overwrites
            if each.target.layer == layer
            and each.target.pass_type is which
            and self._autoencoders.canonical(each.target.location) is location
        ]


def every_target(autoencoders: AutoencoderSet) -> frozenset[RawTensorId]:
    """All activations and gradients that exist."""
    places: list[tuple[Location, LayerIndex]] = [
        (location, layer)
        for location in ORDINARY
        for layer in (range(LAYERS) if location.has_layers else (None,))
    ]
    for each in autoencoders.all:
        for location in (each.latent_location, each.error_location):
            places += [(location, layer) for layer in each.layers]
    return frozenset(RawTensorId(*place, which) for place in places for which in PassType)
