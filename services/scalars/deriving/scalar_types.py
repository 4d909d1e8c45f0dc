"""Names and shapes of derived scalar types."""

from __future__ import annotations

from dataclasses import dataclass

from services.scalars.model.locations import (
    NODE_TYPE_OF_DIMENSION,
    ActivationLocationType,
    Dimension,
    LocationWithinLayer,
    NodeType,
)


@dataclass(frozen=True)
class DerivedScalarType:
    """A named quantity that a model's activations and gradients determine.

    `dimensions` says what each axis counts. `has_layers` is false for what exists once a model.
    `node_type` is what the last axis indexes, unless the type says otherwise.
    """

    name: str
    dimensions: tuple[Dimension, ...]
    has_layers: bool = True
    location_within_layer: LocationWithinLayer | None = None
    declared_node_type: NodeType | None = None

    @property
    def node_type(self) -> NodeType:
        """What the last axis indexes."""
        return self.declared_node_type or NODE_TYPE_OF_DIMENSION[self.dimensions[-1]]

    def __str__(self) -> str:
        return self.name


RAW_SCALAR_NAMES: dict[ActivationLocationType, str] = {
    ActivationLocationType.LOGITS: "logits",
    ActivationLocationType.RESID_POST_EMBEDDING: "resid_post_embedding",
    ActivationLocationType.MLP_PRE_ACT: "mlp_pre_act",
    ActivationLocationType.MLP_POST_ACT: "mlp_post_act",
    ActivationLocationType.RESID_DELTA_MLP: "resid_delta_mlp",
    ActivationLocationType.RESID_POST_MLP: "resid_post_mlp",
    ActivationLocationType.ATTN_QUERY: "attn_query",
    ActivationLocationType.ATTN_KEY: "attn_key",
    ActivationLocationType.ATTN_VALUE: "attn_value",
    ActivationLocationType.ATTN_QK_LOGITS: "attn_qk_logits",
    ActivationLocationType.ATTN_QK_PROBS: "attn_qk_probs",
    ActivationLocationType.ATTN_WEIGHTED_SUM_OF_VALUES: "attn_weighted_sum_of_values",
    ActivationLocationType.RESID_DELTA_ATTN: "resid_delta_attn",
    ActivationLocationType.RESID_POST_ATTN: "resid_post_attn",
    ActivationLocationType.RESID_FINAL_LAYER_NORM_SCALE: "resid_final_layer_norm_scale",
    ActivationLocationType.ATTN_INPUT_LAYER_NORM_SCALE: "attn_input_layer_norm_scale",
    ActivationLocationType.MLP_INPUT_LAYER_NORM_SCALE: "mlp_input_layer_norm_scale",
}
"""The derived scalar types that are an activation location's own tensor."""


def raw_scalar_type(location: ActivationLocationType) -> DerivedScalarType:
    """The type of a location's own tensor."""
    return DerivedScalarType(
        name=RAW_SCALAR_NAMES.get(location, location.value),
        dimensions=location.dimensions,
        has_layers=location.has_layers,
        location_within_layer=location.location_within_layer,
    )
