"""What requests ask for, as the domain's objects.

Requests have passed the contract's own rules: no enum is unset where one is needed.
"""

from __future__ import annotations

from collections.abc import Iterable

from neuropil import names
from neuropil.channel import DEFAULT_MESSAGE_BYTES
from neuropil.common import v1 as common
from neuropil.scalars import v1 as scalars
from services.scalars.answers.components import ComponentByTokenPairSpec
from services.scalars.answers.token_pair_attribution import TokenPairAttributionSpec
from services.scalars.deriving.indexing import ActivationIndex, NodeIndex
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    NodeType,
    PassType,
)
from services.scalars.passes.ablations import AblationSpec
from services.scalars.passes.inference import InferenceSpec
from services.scalars.passes.losses import LossKind, LossSpec
from services.scalars.passes.nodes import NonlinearitySide
from services.scalars.passes.traces import AttentionTraceType, TraceSpec
from services.scalars.requests.batches import AnySpec, BatchInference, NamedSpec
from services.scalars.requests.components import ComponentSpec
from services.scalars.requests.selected_nodes import NodeSelection
from services.scalars.requests.selections import DimensionRange, Selection
from services.scalars.requests.top_nodes import ScalarGroup, TopNodesSpec
from services.scalars.vocabulary.scored_tokens import ScoredTokensSpec, TokenScoring

_ATTENTION_PARTS = {
    scalars.ATTENTION_PART_UNSPECIFIED: None,
    scalars.ATTENTION_PART_QUERY: AttentionPart.QUERY,
    scalars.ATTENTION_PART_KEY: AttentionPart.KEY,
    scalars.ATTENTION_PART_VALUE: AttentionPart.VALUE,
}


def inference_spec(message: scalars.InferenceSpec, field: str = "inference") -> InferenceSpec:
    """What to run."""
    return InferenceSpec(
        prompt=message.prompt,
        ablations=tuple(
            AblationSpec(activation_index(each.index), each.value) for each in message.ablations
        ),
        loss=_loss(message.loss) if message.HasField("loss") else None,
        trace=_trace(message.trace) if message.HasField("trace") else None,
        within_layer_gradient_index=activation_index(message.within_layer_gradient_index)
        if message.HasField("within_layer_gradient_index")
        else None,
        prepend_beginning_token=message.prepend_beginning_token,
    )


def _loss(message: scalars.LossFunction) -> LossSpec:
    return LossSpec(
        kind=LossKind(names.LOSS_KINDS.name(message.kind)),
        target_tokens=tuple(message.target_tokens),
        distractor_tokens=tuple(message.distractor_tokens),
        position=message.position if message.HasField("position") else None,
    )


def _trace(message: scalars.Trace) -> TraceSpec:
    kind = message.attention_trace_type
    return TraceSpec(
        node=node_index(message.node_index),
        side=NonlinearitySide(names.NONLINEARITY_SIDES.name(message.side))
        if message.side
        else NonlinearitySide.PRE_ACT,
        detach_layer_norm_scale=message.detach_layer_norm_scale,
        attention_trace_type=AttentionTraceType(names.ATTENTION_TRACE_TYPES.name(kind))
        if kind
        else None,
        downstream=_trace(message.downstream) if message.HasField("downstream") else None,
    )


def pass_type(number: int) -> PassType:
    """A pass type, forward where none is set."""
    return PassType(names.PASS_TYPES.name(number)) if number else PassType.FORWARD


def activation_index(message: common.ActivationIndex) -> ActivationIndex:
    """Elements of an activation or gradient."""
    return ActivationIndex(
        ActivationLocationType(names.ACTIVATION_LOCATION_TYPES.name(message.location_type)),
        _indices(message.tensor_indices),
        message.layer_index if message.HasField("layer_index") else None,
        pass_type(message.pass_type),
    )


def node_index(message: common.NodeIndex) -> NodeIndex:
    """A node, or the slice of nodes that an open index stands for."""
    return NodeIndex(
        NodeType(names.NODE_TYPES.name(message.node_type)),
        _indices(message.tensor_indices),
        message.layer_index if message.HasField("layer_index") else None,
        pass_type(message.pass_type),
    )


def _indices(messages: Iterable[common.DimensionIndex]) -> tuple[int | None, ...]:
    return tuple(each.index if each.HasField("index") else None for each in messages)


def selection(message: scalars.ScalarSelection) -> Selection:
    """What to derive."""
    return Selection(
        dst=names.DERIVED_SCALAR_TYPES.name(message.derived_scalar_type),
        pass_type=pass_type(message.pass_type),
        layer_indices=tuple(message.layer_indices),
        ranges=tuple(
            DimensionRange(
                Dimension(names.DIMENSIONS.name(each.dimension)),
                each.start,
                each.stop if each.HasField("stop") else None,
            )
            for each in message.ranges
        ),
        node=NodeSelection(
            node_index=node_index(message.node_index) if message.HasField("node_index") else None,
            attention_part=_ATTENTION_PARTS[message.attention_part],
            activation_index=activation_index(message.activation_index)
            if message.HasField("activation_index")
            else None,
            detach_layer_norm_scale=message.detach_layer_norm_scale,
        ),
    )


def component_spec(
    component: common.ComponentId, pass_number: int, top_token_count: int
) -> ComponentSpec:
    """Which component to derive."""
    return ComponentSpec(
        dst=names.DERIVED_SCALAR_TYPES.name(component.derived_scalar_type),
        layer_index=component.layer_index if component.HasField("layer_index") else None,
        component_index=component.component_index,
        pass_type=pass_type(pass_number),
        top_token_count=top_token_count,
    )


def top_nodes_spec(message: scalars.TopNodesSpec) -> TopNodesSpec:
    """Which nodes to list."""
    return TopNodesSpec(
        groups=tuple(
            ScalarGroup(
                names.GROUP_IDS.name(group.group_id),
                tuple(
                    names.DERIVED_SCALAR_TYPES.name(number) for number in group.derived_scalar_types
                ),
            )
            for group in message.groups
        ),
        token_index=message.token_index if message.HasField("token_index") else None,
        count=message.top_and_bottom_count if message.HasField("top_and_bottom_count") else None,
        pass_type=pass_type(message.pass_type),
        sum_dimensions=tuple(
            Dimension(names.DIMENSIONS.name(number)) for number in message.sum_dimensions.dimensions
        )
        if message.HasField("sum_dimensions")
        else None,
        exclude_bottom=message.exclude_bottom,
        first_layer=message.first_layer if message.HasField("first_layer") else None,
    )


def component_by_token_pair_spec(
    message: scalars.ComponentByTokenPairSpec,
) -> ComponentByTokenPairSpec:
    """Which component to derive by token pair."""
    component = message.component
    return ComponentByTokenPairSpec(
        dst=names.DERIVED_SCALAR_TYPES.name(component.derived_scalar_type),
        layer_index=component.layer_index if component.HasField("layer_index") else None,
        component_index=component.component_index,
    )


def batch_inferences(
    request: scalars.BatchDeriveRequest, message_bytes: int = DEFAULT_MESSAGE_BYTES
) -> list[BatchInference]:
    """Inferences with their named requests, each answered in a message of so many bytes."""
    found = []
    for position, each in enumerate(request.inferences):
        here = f"inferences[{position}]"
        specs = tuple(
            NamedSpec(
                named.name,
                _any_spec(named),
                f"{here}.specs[{number}].{named.WhichOneof('spec')}",
            )
            for number, named in enumerate(each.specs)
        )
        field = f"{here}.inference"
        spec = inference_spec(each.inference, field)
        found.append(BatchInference(spec, specs, field, message_bytes))
    return found


def _any_spec(message: scalars.NamedSpec) -> AnySpec:
    match message.WhichOneof("spec"):
        case "component":
            spec = message.component
            return component_spec(spec.component, spec.pass_type, spec.top_token_count)
        case "component_by_token_pair":
            return component_by_token_pair_spec(message.component_by_token_pair)
        case "top_nodes":
            return top_nodes_spec(message.top_nodes)
        case "scored_tokens":
            scored = message.scored_tokens
            return ScoredTokensSpec(
                TokenScoring(names.TOKEN_SCORINGS.name(scored.scoring)),
                scored.token_count,
                scored.depends_on,
            )
        case "token_pair_attribution":
            attribution = message.token_pair_attribution
            return TokenPairAttributionSpec(
                attribution.attended_to_token_count, attribution.depends_on
            )
        case _:
            return selection(message.selection)
