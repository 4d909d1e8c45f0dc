"""The latent whose gradient within its own layer attributes it to attention."""

from __future__ import annotations

from dataclasses import dataclass

from services.scalars.autoencoders.autoencoder_set import AutoencoderSet
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.model.locations import ActivationLocationType, NodeType, PassType
from shared.errors import InvalidArgument

_GENERIC = ActivationLocationType.ONLINE_AUTOENCODER_LATENT
_LATENTS = (
    _GENERIC,
    ActivationLocationType.ONLINE_MLP_AUTOENCODER_LATENT,
    ActivationLocationType.ONLINE_ATTENTION_AUTOENCODER_LATENT,
)


@dataclass(frozen=True)
class WithinLayerLatent:
    """One latent at every token of a layer; `node_type` says whose it is."""

    node_type: NodeType
    layer: int
    latent: int


def resolve_within_layer_latent(
    index: ActivationIndex, autoencoders: AutoencoderSet, field: str
) -> WithinLayerLatent:
    """Checks which latent is meant; errors name the field after the prefix `field`.

    The generic name means the latents of the only autoencoder, or of two those of attention: it is
    to attention that most of such attribution is.

    Raises InvalidArgument for a place that holds no latents of this deployment, a gradient, a layer
    without latents, and indices that are not [all tokens, one latent].
    """
    location = index.activation_location_type
    if location not in _LATENTS:
        raise InvalidArgument(
            f"{location.value} holds no latents; one of {', '.join(_LATENTS)} is needed",
            field=f"{field}.location_type",
        )
    if index.pass_type is not PassType.FORWARD:
        raise InvalidArgument(
            "the latent's activation is needed, not its gradient", field=f"{field}.pass_type"
        )
    if index.layer_index is None:
        raise InvalidArgument(f"{location.value} needs a layer index", field=f"{field}.layer_index")
    if location is _GENERIC and autoencoders.single is None and autoencoders.attention is not None:
        location = autoencoders.attention.latent_location
    autoencoder = autoencoders.resolve_location(location, index.layer_index, field)
    count = autoencoder.latent_count(index.layer_index)
    match index.tensor_indices:
        case (None, int(latent)) if 0 <= latent < count:
            return WithinLayerLatent(autoencoder.node_type, index.layer_index, latent)
        case (None, int(latent)):
            raise InvalidArgument(
                f"index {latent} is not in autoencoder_latents, which has {count}",
                field=f"{field}.tensor_indices[1]",
            )
        case _:
            raise InvalidArgument(
                "one latent at all tokens is needed: all, then the latent's index",
                field=f"{field}.tensor_indices",
            )
