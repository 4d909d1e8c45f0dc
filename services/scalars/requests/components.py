"""One component of a scalar at every token, checked against the model and its inference."""

from __future__ import annotations

from dataclasses import dataclass

from services.scalars.catalogue import CATALOGUE, Requirement
from services.scalars.catalogue.availability import check_exists_at, sizes_of
from services.scalars.model.locations import Dimension, LayerIndex, PassType
from services.scalars.model.subject import Subject
from services.scalars.passes.inference import PreparedInference
from services.scalars.passes.layers import check_layer
from services.scalars.requests.selections import (
    ResolvedSelection,
    autoencoder_of,
    check_pass,
    find_scalar,
    refuse_single_node,
)
from shared.errors import InvalidArgument


@dataclass(frozen=True)
class ComponentSpec:
    """One component at every token, and how many top tokens of it are wanted beside."""

    dst: str
    layer_index: LayerIndex
    component_index: int
    pass_type: PassType = PassType.FORWARD
    top_token_count: int = 0


def resolve_component(
    spec: ComponentSpec,
    subject: Subject,
    prepared: PreparedInference,
    *,
    field: str,
    inference_field: str,
    by_token_pair: bool = False,
) -> ResolvedSelection:
    """Checks a component; the selection answered is its own scalars at its layer.

    Raises InvalidArgument for a type that is not indexed by token (or token pair of a flattened
    triangle) and component; with `by_token_pair`, by query, key and component.
    """
    component = f"{field}.component"
    declaration = find_scalar(spec.dst, f"{component}.derived_scalar_type")
    dst = declaration.dst
    refuse_single_node(declaration, f"{component}.derived_scalar_type")
    tokens = (Dimension.SEQUENCE_TOKENS,)
    allowed = (
        [(*tokens, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)]
        if by_token_pair
        else [tokens, (Dimension.SEQUENCE_TOKEN_PAIRS,)]
    )
    if dst.dimensions[:-1] not in allowed:
        needed = "query, key and component" if by_token_pair else "token and component"
        instead = CATALOGUE.unflattened(dst.name) if by_token_pair else None
        raise InvalidArgument(
            f"{dst.name} has the dimensions {', '.join(d.value for d in dst.dimensions)}; one "
            f"that is indexed by {needed} is needed{f', as {instead} is' if instead else ''}",
            field=f"{component}.derived_scalar_type",
        )
    check_pass(
        declaration,
        spec.pass_type,
        prepared,
        field=f"{field}.pass_type",
        inference_field=inference_field,
    )
    shape, latent = subject.model.shape, prepared.within_layer_latent
    check_layer(spec.layer_index, dst.name, dst.has_layers, shape, component)
    autoencoder = autoencoder_of(
        declaration, subject, prepared, f"{component}.derived_scalar_type", inference_field
    )
    here = f"{component}.layer_index"
    check_exists_at(declaration, spec.layer_index, autoencoder, latent, here)
    sizes = sizes_of(declaration, shape, len(prepared.tokens), autoencoder, spec.layer_index)
    index = spec.component_index
    of_latent = Requirement.WITHIN_LAYER_LATENT in declaration.requirements
    alone = of_latent and dst.dimensions[-1] is Dimension.SINGLETON
    if alone and latent is not None and index == latent.latent:
        # What is derived of one latent alone has it as its only component.
        index = 0
    if not 0 <= index < sizes[-1]:
        raise InvalidArgument(
            f"component {index} is not in {dst.dimensions[-1].value}, which has {sizes[-1]}",
            field=f"{component}.component_index",
        )
    return ResolvedSelection(
        declaration=declaration,
        pass_type=spec.pass_type,
        layers=(spec.layer_index,),
        slices=(
            *(slice(None) for _ in sizes[:-1]),
            slice(index, index + 1),
        ),
        shapes=(sizes,),
    )
