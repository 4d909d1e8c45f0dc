"""The model and the catalogue, as the contract's messages."""

from __future__ import annotations

from neuropil import names
from neuropil.scalars import v1 as scalars
from services.scalars.autoencoders import AutoencoderSet
from services.scalars.catalogue import Declaration, Requirement
from services.scalars.catalogue.availability import unavailable_reason
from services.scalars.deriving.scalar_types import RAW_SCALAR_NAMES
from services.scalars.model.subject import Subject

_REQUIREMENTS = {
    Requirement.GRADIENT: scalars.SCALAR_REQUIREMENT_GRADIENT,
    Requirement.NO_LAYER: scalars.SCALAR_REQUIREMENT_NO_LAYER,
    Requirement.SINGLE_AUTOENCODER: scalars.SCALAR_REQUIREMENT_SINGLE_AUTOENCODER,
    Requirement.MLP_AUTOENCODER: scalars.SCALAR_REQUIREMENT_MLP_AUTOENCODER,
    Requirement.ATTENTION_AUTOENCODER: scalars.SCALAR_REQUIREMENT_ATTENTION_AUTOENCODER,
    Requirement.TRACE: scalars.SCALAR_REQUIREMENT_TRACE,
    Requirement.NODE_INDEX: scalars.SCALAR_REQUIREMENT_NODE_INDEX,
    Requirement.ACTIVATION_INDEX: scalars.SCALAR_REQUIREMENT_ACTIVATION_INDEX,
    Requirement.NEURON_AUTOENCODER: scalars.SCALAR_REQUIREMENT_NEURON_AUTOENCODER,
    Requirement.MLP_OUTPUT_AUTOENCODER: scalars.SCALAR_REQUIREMENT_MLP_OUTPUT_AUTOENCODER,
    Requirement.BLOCK_OUTPUT_AUTOENCODER: scalars.SCALAR_REQUIREMENT_BLOCK_OUTPUT_AUTOENCODER,
    Requirement.WITHIN_LAYER_LATENT: scalars.SCALAR_REQUIREMENT_WITHIN_LAYER_GRADIENT_INDEX,
}


def model_info(subject: Subject) -> scalars.GetModelInfoResponse:
    """The model and its autoencoders."""
    shape = subject.model.shape
    return scalars.GetModelInfoResponse(
        name=subject.name,
        family=subject.family,
        layer_count=shape.layers,
        residual_channel_count=shape.residual_stream_channels,
        head_count=shape.attn_heads,
        head_channel_count=shape.value_channels,
        neuron_count=shape.mlp_acts,
        vocabulary_size=shape.vocab_size,
        context_size=shape.context,
        beginning_token=subject.beginning_token,
        autoencoders=[
            scalars.AutoencoderInfo(
                name=each.name,
                node_type=names.NODE_TYPES.value(each.node_type),
                input=names.DERIVED_SCALAR_TYPES.value(RAW_SCALAR_NAMES[each.location]),
                activation_function=each.activation,
                latent_counts=[each.latent_count(layer) for layer in range(shape.layers)],
            )
            for each in subject.autoencoders.all
        ],
        device=str(subject.model.device),
    )


def scalar_type(declaration: Declaration, autoencoders: AutoencoderSet) -> scalars.ScalarType:
    """A row of the catalogue."""
    dst = declaration.dst
    reason = unavailable_reason(declaration, autoencoders)
    return scalars.ScalarType(
        derived_scalar_type=names.DERIVED_SCALAR_TYPES.value(dst.name),
        name=dst.name,
        dimensions=[names.DIMENSIONS.value(each) for each in dst.dimensions],
        node_type=names.NODE_TYPES.value(dst.node_type),
        pass_types=[names.PASS_TYPES.value(each) for each in declaration.pass_types],
        requirements=[
            _REQUIREMENTS[each] for each in Requirement if each in declaration.requirements
        ],
        formula=declaration.formula,
        available=not reason,
        unavailable_reason=reason,
    )
