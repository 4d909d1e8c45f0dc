"""What clients ask to be run on the model, as messages of the contract."""

from __future__ import annotations

from collections.abc import Sequence

from neuropil import names
from neuropil.common import v1 as common
from neuropil.scalars import v1
from services.gateway.names import ATTENTION_TRACES, FOREIGN_DIMENSIONS, NONLINEARITY_SIDES
from services.gateway.requests.inference import (
    InferenceRequestSpec,
    LossFnConfig,
    MirroredActivationIndex,
    MirroredNodeIndex,
    MirroredTraceConfig,
)
from services.gateway.requests.specs import (
    DEFAULT_SUM_DIMENSIONS,
    DerivedAttentionScalarsRequestSpec,
    DerivedScalarsRequestSpec,
    MultipleTopKDerivedScalarsRequestSpec,
)
from shared.errors import InvalidArgument

# A trace may have a downstream node, which can't have another one. The rest is refused by the
# service, with the reason; this bound only keeps nesting within what a message may have.
_MAX_TRACE_DEPTH = 4


def inference_message(body: InferenceRequestSpec) -> v1.InferenceSpec:
    """What to run."""
    within_layer = body.activation_index_for_within_layer_grad
    return v1.InferenceSpec(
        prompt=body.prompt,
        ablations=[
            v1.Ablation(index=_activation_index(each.index), value=each.value)
            for each in body.ablation_specs or ()
        ],
        loss=None if body.loss_fn_config is None else _loss(body.loss_fn_config),
        trace=None if body.trace_config is None else _trace(body.trace_config),
        within_layer_gradient_index=(
            None if within_layer is None else _activation_index(within_layer)
        ),
    )


def component_spec(body: DerivedScalarsRequestSpec) -> v1.ComponentSpec:
    """One component by token."""
    return v1.ComponentSpec(
        component=_component(body),
        pass_type=names.PASS_TYPES.value(body.pass_type.value),
        top_token_count=body.num_top_tokens or 0,
    )


def component_by_token_pair_spec(
    body: DerivedAttentionScalarsRequestSpec,
) -> v1.ComponentByTokenPairSpec:
    """One component by token pair."""
    return v1.ComponentByTokenPairSpec(component=_component(body))


def top_nodes_spec(body: MultipleTopKDerivedScalarsRequestSpec) -> v1.TopNodesSpec:
    """The strongest nodes of groups."""
    spec = v1.TopNodesSpec(
        groups=[
            v1.ScalarGroup(
                group_id=names.GROUP_IDS.value(group.value),
                derived_scalar_types=[names.DERIVED_SCALAR_TYPES.value(dst.value) for dst in dsts],
            )
            for group, dsts in body.dst_list_by_group_id.items()
        ],
        token_index=body.token_index,
        top_and_bottom_count=body.top_and_bottom_k,
        pass_type=names.PASS_TYPES.value(body.pass_type.value),
        exclude_bottom=body.exclude_bottom_k,
    )
    kept = [each.value for each in body.dimensions_to_keep_for_intermediate_sum]
    if kept != list(DEFAULT_SUM_DIMENSIONS):
        # Set although it may be empty: to keep none is not to leave it to the service.
        spec.sum_dimensions.SetInParent()
        spec.sum_dimensions.dimensions.extend(
            names.DIMENSIONS.value(name) for name in kept if name not in FOREIGN_DIMENSIONS
        )
    return spec


def _component(
    body: DerivedScalarsRequestSpec | DerivedAttentionScalarsRequestSpec,
) -> common.ComponentId:
    return names.component_id(body.dst.value, body.layer_index, body.activation_index)


def _dimension_indices(indices: Sequence[int | str | None]) -> list[common.DimensionIndex]:
    return [
        common.DimensionIndex(index=index if isinstance(index, int) else None) for index in indices
    ]


def _activation_index(body: MirroredActivationIndex) -> common.ActivationIndex:
    return common.ActivationIndex(
        location_type=names.ACTIVATION_LOCATION_TYPES.value(body.activation_location_type.value),
        layer_index=body.layer_index,
        tensor_indices=_dimension_indices(body.tensor_indices),
        pass_type=names.PASS_TYPES.value(body.pass_type.value),
    )


def _node_index(body: MirroredNodeIndex) -> common.NodeIndex:
    return common.NodeIndex(
        node_type=names.NODE_TYPES.value(body.node_type.value),
        layer_index=body.layer_index,
        tensor_indices=_dimension_indices(body.tensor_indices),
        pass_type=names.PASS_TYPES.value(body.pass_type.value),
    )


def _loss(body: LossFnConfig) -> v1.LossFunction:
    return v1.LossFunction(
        kind=names.LOSS_KINDS.value(body.name.value),
        target_tokens=body.target_tokens or (),
        distractor_tokens=body.distractor_tokens or (),
    )


def _trace(body: MirroredTraceConfig, depth: int = 1) -> v1.Trace:
    if depth > _MAX_TRACE_DEPTH:
        raise InvalidArgument(
            "a downstream node of a trace can't have a downstream node",
            field="inferenceRequestSpec.traceConfig",
        )
    downstream = body.downstream_trace_config
    kind = body.attention_trace_type
    return v1.Trace(
        node_index=_node_index(body.node_index),
        side=NONLINEARITY_SIDES[body.pre_or_post_act.value],
        detach_layer_norm_scale=body.detach_layer_norm_scale,
        attention_trace_type=(
            v1.ATTENTION_TRACE_TYPE_UNSPECIFIED if kind is None else ATTENTION_TRACES[kind.value]
        ),
        downstream=None if downstream is None else _trace(downstream, depth + 1),
    )
