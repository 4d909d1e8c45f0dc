"""What a deriver needs besides its name."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import (
    ActivationLocationType,
    LayerIndex,
    LocationWithinLayer,
)


@dataclass(frozen=True)
class ResidualPoint:
    """A place in the residual stream: where the gradient g of direct effects is taken."""

    location: ActivationLocationType
    layer: LayerIndex
    location_within_layer: LocationWithinLayer | None

    def is_after(self, layer: LayerIndex, within: LocationWithinLayer | None) -> bool:
        """Whether something at that layer and place is strictly upstream of this point.

        What has no layer is upstream of all. ValueError where two things of one layer can't be
        told apart because the place of one is unknown.
        """
        if layer is None:
            return True
        if self.layer is None:
            return False
        if layer != self.layer:
            return layer < self.layer
        if within is None or self.location_within_layer is None:
            raise ValueError(f"the order of two places in layer {layer} is unknown")
        return within < self.location_within_layer


@dataclass(frozen=True)
class DstConfig:
    """What a deriver needs besides its name.

    `layer_indices` are the layers wanted, None for all. `derive_gradients` says whether backward
    passes are wanted too. A backward pass is taken to start from a loss on the logits, so that the
    final residual stream is that after the last MLP.
    """

    model: SubjectModel
    layer_indices: tuple[int, ...] | None = None
    derive_gradients: bool = False

    @property
    def device(self) -> torch.device:
        """Where raw activations are."""
        return self.model.device

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.model.shape.layers

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers wanted, all of the model's by default."""
        return tuple(range(self.n_layers)) if self.layer_indices is None else self.layer_indices

    @property
    def final_residual(self) -> ResidualPoint:
        """The last point of the residual stream before what the backward pass starts from."""
        return ResidualPoint(
            ActivationLocationType.RESID_POST_MLP,
            self.n_layers - 1,
            LocationWithinLayer.RESID_POST_MLP,
        )
