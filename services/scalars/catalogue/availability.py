"""Which types a deployment can derive, at which layers, and how large they are there.

That depends on its autoencoders: which it has, what they read, and how many latents each layer has.
"""

from __future__ import annotations

from services.scalars.autoencoders import Autoencoder, AutoencoderSet, WithinLayerLatent
from services.scalars.autoencoders.autoencoder_set import check_latents, sizes_at
from services.scalars.catalogue.declaration import Declaration, Requirement
from services.scalars.model.locations import ActivationLocationType, LayerIndex, ModelShape
from shared.errors import InvalidArgument

_KINDS = (
    Requirement.SINGLE_AUTOENCODER,
    Requirement.MLP_AUTOENCODER,
    Requirement.ATTENTION_AUTOENCODER,
    Requirement.NEURON_AUTOENCODER,
    Requirement.MLP_OUTPUT_AUTOENCODER,
    Requirement.BLOCK_OUTPUT_AUTOENCODER,
)
_BLOCK_OUTPUTS = (
    ActivationLocationType.RESID_DELTA_MLP,
    ActivationLocationType.RESID_DELTA_ATTN,
)


def autoencoders_for(
    declaration: Declaration, autoencoders: AutoencoderSet
) -> tuple[Autoencoder, ...] | None:
    """The autoencoders that a type can be derived with; None where it needs none."""
    needed = [each for each in _KINDS if each in declaration.requirements]
    if not needed:
        return None
    return tuple(
        each for each in autoencoders.all if all(_is(each, kind, autoencoders) for kind in needed)
    )


def _is(autoencoder: Autoencoder, kind: Requirement, autoencoders: AutoencoderSet) -> bool:
    match kind:
        case Requirement.SINGLE_AUTOENCODER:
            return autoencoders.single is autoencoder
        case Requirement.MLP_AUTOENCODER:
            return autoencoders.mlp is autoencoder
        case Requirement.ATTENTION_AUTOENCODER:
            return autoencoders.attention is autoencoder
        case Requirement.NEURON_AUTOENCODER:
            return autoencoder.location is ActivationLocationType.MLP_POST_ACT
        case Requirement.MLP_OUTPUT_AUTOENCODER:
            return autoencoder.location is ActivationLocationType.RESID_DELTA_MLP
        case _:
            return autoencoder.location in _BLOCK_OUTPUTS


def unavailable_reason(declaration: Declaration, autoencoders: AutoencoderSet) -> str:
    """Why this deployment can't derive a type; empty where it can."""
    found = autoencoders_for(declaration, autoencoders)
    if found is None or found:
        return ""
    needs = " and ".join(each.value for each in _KINDS if each in declaration.requirements)
    there = ", ".join(f"{each.name} on {each.location.value}" for each in autoencoders.all)
    return f"it needs {needs}; the deployment has {there or 'none'}"


def autoencoder_for(
    declaration: Declaration,
    autoencoders: AutoencoderSet,
    latent: WithinLayerLatent | None,
    *,
    field: str,
    latent_field: str,
) -> Autoencoder | None:
    """The autoencoder that a type is derived with; None where it needs none.

    Raises InvalidArgument for `field` where the deployment has none that fits, and for
    `latent_field` where a type needs the latent whose gradient within its layer is taken, and that
    is not given or is of an autoencoder that doesn't fit.
    """
    name = declaration.dst.name
    found = autoencoders_for(declaration, autoencoders)
    if found is None:
        return None
    if not found:
        raise InvalidArgument(
            f"{name} can't be derived here: {unavailable_reason(declaration, autoencoders)}",
            field=field,
            reason="AUTOENCODER_NEEDED",
        )
    if Requirement.WITHIN_LAYER_LATENT not in declaration.requirements:
        return found[0]
    if latent is None:
        raise InvalidArgument(
            f"{name} is of one latent; give the within-layer gradient index that names it",
            field=latent_field,
            reason="WITHIN_LAYER_GRADIENT_INDEX_NEEDED",
        )
    meant = autoencoders.for_node_type(latent.node_type)
    if meant not in found:
        raise InvalidArgument(
            f"{name} is of a latent of {' or '.join(each.name for each in found)}, "
            f"not of {meant.name if meant else latent.node_type}",
            field=latent_field,
        )
    return meant


def layers_of(
    declaration: Declaration,
    shape: ModelShape,
    autoencoder: Autoencoder | None,
    latent: WithinLayerLatent | None,
) -> tuple[LayerIndex, ...]:
    """The layers that a type exists at; (None,) where it has no layers.

    Those that have latents of its autoencoder; that of the latent whose gradient is taken.
    """
    if not declaration.dst.has_layers:
        return (None,)
    if Requirement.WITHIN_LAYER_LATENT in declaration.requirements and latent is not None:
        return (latent.layer,)
    return tuple(range(shape.layers)) if autoencoder is None else autoencoder.layers


def check_exists_at(
    declaration: Declaration,
    layer: LayerIndex,
    autoencoder: Autoencoder | None,
    latent: WithinLayerLatent | None,
    field: str,
) -> None:
    """Refuses a layer of the model that a type does not exist at."""
    if layer is None or autoencoder is None:
        return
    check_latents(autoencoder, layer, field)
    if (
        Requirement.WITHIN_LAYER_LATENT in declaration.requirements
        and latent is not None
        and layer != latent.layer
    ):
        raise InvalidArgument(
            f"{declaration.dst.name} exists at the layer of its latent alone, layer {latent.layer}",
            field=field,
        )


def sizes_of(
    declaration: Declaration,
    shape: ModelShape,
    n_tokens: int,
    autoencoder: Autoencoder | None,
    layer: LayerIndex,
) -> tuple[int, ...]:
    """Shape of a type's tensor at a layer; an axis of latents is as long as the layer has some."""
    return sizes_at(declaration.dst.dimensions, shape, n_tokens, autoencoder, layer)
