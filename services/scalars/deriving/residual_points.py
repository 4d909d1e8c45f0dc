"""Places in the residual stream where gradients of scalars end."""

from __future__ import annotations

from dataclasses import dataclass

from services.scalars.model.locations import (
    ActivationLocationType,
    LayerIndex,
    LocationWithinLayer,
)


@dataclass(frozen=True)
class ResidualPoint:
    """A place in the residual stream.

    `location` and `layer` name the tensor. `before_layer` is set where the place is thought of as
    the entrance of a layer, though the tensor is the previous layer's, or the embedding.
    """

    location: ActivationLocationType
    layer: LayerIndex
    location_within_layer: LocationWithinLayer | None
    before_layer: int | None = None

    def is_after(self, layer: LayerIndex, within: LocationWithinLayer | None) -> bool:
        """Whether something at that layer and place is strictly upstream of this point.

        What has no layer is upstream of all. ValueError where two things of one layer can't be
        told apart because the place of one is unknown.
        """
        own = self.layer if self.before_layer is None else self.before_layer
        if layer is None:
            return True
        if own is None:
            return False
        if layer != own:
            return layer < own
        if within is None or self.location_within_layer is None:
            raise ValueError(f"the order of two places in layer {layer} is unknown")
        return within < self.location_within_layer


def entering_attention(layer: int) -> ResidualPoint:
    """The residual stream that a layer's attention reads; that layer's own tensors come after."""
    within = LocationWithinLayer.END_OF_PREVIOUS_LAYER
    if layer == 0:
        return ResidualPoint(ActivationLocationType.RESID_POST_EMBEDDING, None, within, 0)
    return ResidualPoint(ActivationLocationType.RESID_POST_MLP, layer - 1, within, layer)


def entering_mlp(layer: int) -> ResidualPoint:
    """The residual stream that a layer's MLP reads."""
    return ResidualPoint(
        ActivationLocationType.RESID_POST_ATTN, layer, LocationWithinLayer.RESID_POST_ATTN
    )


def leaving_last_layer(n_layers: int) -> ResidualPoint:
    """The residual stream after the last MLP, which the logits are made from."""
    return ResidualPoint(
        ActivationLocationType.RESID_POST_MLP, n_layers - 1, LocationWithinLayer.RESID_POST_MLP
    )
