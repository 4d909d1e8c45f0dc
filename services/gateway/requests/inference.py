"""What to run on the model, as bodies say it."""

from __future__ import annotations

from typing import Annotated

from services.gateway.names import (
    ActivationLocationType,
    AttentionTraceType,
    LossFnName,
    NodeType,
    PassType,
    PreOrPostAct,
)
from services.gateway.requests.fields import Body, Index, IndexOrAll, Text, at_most


class MirroredActivationIndex(Body):
    """An activation, or a slice of activations, by place."""

    activation_location_type: ActivationLocationType
    tensor_indices: Annotated[list[IndexOrAll], at_most(4)]
    layer_index: Index | None = None
    pass_type: PassType


class MirroredNodeIndex(Body):
    """A node; a null index means all of the dimension."""

    node_type: NodeType
    tensor_indices: Annotated[list[Index | None], at_most(4)]
    layer_index: Index | None = None
    pass_type: PassType


class AblationSpec(Body):
    """What to overwrite, with which value."""

    index: MirroredActivationIndex
    value: float


class LossFnConfig(Body):
    """What the backward pass starts from."""

    name: LossFnName
    target_tokens: Annotated[list[Text], at_most(1000)] | None = None
    distractor_tokens: Annotated[list[Text], at_most(1000)] | None = None


class MirroredTraceConfig(Body):
    """A node that the backward pass starts from."""

    node_index: MirroredNodeIndex
    pre_or_post_act: PreOrPostAct
    detach_layer_norm_scale: bool
    attention_trace_type: AttentionTraceType | None = None
    downstream_trace_config: MirroredTraceConfig | None = None


class InferenceRequestSpec(Body):
    """What to run on the model."""

    prompt: Text
    ablation_specs: Annotated[list[AblationSpec], at_most(1000)] | None = None
    loss_fn_config: LossFnConfig | None = None
    trace_config: MirroredTraceConfig | None = None
    activation_index_for_within_layer_grad: MirroredActivationIndex | None = None
