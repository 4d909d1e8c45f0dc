"""The autoencoders of a deployment: at most one on the MLP and one on attention."""

from __future__ import annotations

from collections.abc import Sequence

from services.scalars.autoencoders.autoencoder import Autoencoder
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    LayerIndex,
    ModelShape,
    NodeType,
)
from shared.errors import InvalidArgument

_GENERIC = ActivationLocationType.ONLINE_AUTOENCODER_LATENT


class AutoencoderSet:
    """At most one autoencoder on the MLP and one on attention.

    ValueError where two are of one kind.
    """

    def __init__(self, autoencoders: Sequence[Autoencoder] = ()) -> None:
        self.all = tuple(autoencoders)
        self._by_node_type = {each.node_type: each for each in self.all}
        if len(self._by_node_type) != len(self.all):
            raise ValueError("two autoencoders are of one kind")

    @property
    def mlp(self) -> Autoencoder | None:
        """The one on the MLP's neurons or output."""
        return self._by_node_type.get(NodeType.MLP_AUTOENCODER_LATENT)

    @property
    def attention(self) -> Autoencoder | None:
        """The one on attention's output."""
        return self._by_node_type.get(NodeType.ATTENTION_AUTOENCODER_LATENT)

    @property
    def single(self) -> Autoencoder | None:
        """The only one; None where there are none or two."""
        return self.all[0] if len(self.all) == 1 else None

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(each.weight_bytes for each in self.all)

    def at(self, location: ActivationLocationType, layer: LayerIndex) -> Autoencoder | None:
        """The one that reads this place and has latents at this layer."""
        for each in self.all:
            if each.location is location and layer in each:
                return each
        return None

    def for_node_type(self, node_type: NodeType) -> Autoencoder | None:
        """The one whose latents are nodes of this type; the generic type means the only one."""
        if node_type is NodeType.AUTOENCODER_LATENT:
            return self.single
        return self._by_node_type.get(node_type)

    def for_location(self, location: ActivationLocationType) -> Autoencoder | None:
        """The one whose latents or error a name in a forward pass stands for."""
        if location is _GENERIC:
            return self.single
        for each in self.all:
            if location in (each.latent_location, each.error_location):
                return each
        return None

    def canonical(self, location: ActivationLocationType) -> ActivationLocationType:
        """The name that says whose latents they are, in place of the generic one."""
        if location is _GENERIC and self.single is not None:
            return self.single.latent_location
        return location

    def resolve_location(
        self, location: ActivationLocationType, layer: LayerIndex, field: str
    ) -> Autoencoder:
        """The autoencoder that makes a place exist at a layer.

        Raises InvalidArgument, for `field`.location_type where no configured autoencoder makes it,
        for `field`.layer_index where that one has no latents at the layer.
        """
        found = self.for_location(location)
        if found is None:
            raise InvalidArgument(
                f"{location.value} does not exist here: {self.missing(location)}",
                field=f"{field}.location_type",
                reason="AUTOENCODER_NEEDED",
            )
        check_latents(found, layer, f"{field}.layer_index")
        return found

    def missing(self, location: ActivationLocationType) -> str:
        """Why a place of an autoencoder does not exist, for people."""
        if location is _GENERIC and len(self.all) > 1:
            return "there are two autoencoders; name the one that is meant"
        if not self.all:
            return "no autoencoder is configured"
        there = ", ".join(f"{each.name} reads {each.location.value}" for each in self.all)
        return f"it takes another autoencoder than the configured one ({there})"


NO_AUTOENCODERS = AutoencoderSet()


def check_latents(autoencoder: Autoencoder, layer: LayerIndex, field: str) -> None:
    """Refuses a layer without latents, naming those that have some."""
    if layer not in autoencoder:
        raise InvalidArgument(
            f"layer {layer} has no latents of the autoencoder {autoencoder.name}; "
            f"it has some at {_listed(autoencoder.layers)}",
            field=field,
            reason="NO_LATENTS_AT_LAYER",
        )


def _listed(layers: tuple[int, ...]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def sizes_at(
    dimensions: tuple[Dimension, ...],
    shape: ModelShape,
    n_tokens: int,
    autoencoder: Autoencoder | None = None,
    layer: LayerIndex = None,
) -> tuple[int, ...]:
    """Shape of a tensor with these axes at a layer, an axis of latents included.

    KeyError where an axis counts latents and no autoencoder is given.
    """
    if Dimension.AUTOENCODER_LATENTS not in dimensions:
        return shape.sizes(dimensions, n_tokens)
    if autoencoder is None or layer is None:
        raise KeyError(Dimension.AUTOENCODER_LATENTS)
    latents = autoencoder.latent_count(layer)
    return tuple(
        latents if each is Dimension.AUTOENCODER_LATENTS else shape.size(each, n_tokens)
        for each in dimensions
    )
