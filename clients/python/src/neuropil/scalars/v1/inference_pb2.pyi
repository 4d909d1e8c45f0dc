from buf.validate import validate_pb2 as _validate_pb2
from neuropil.common.v1 import component_pb2 as _component_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LossKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOSS_KIND_UNSPECIFIED: _ClassVar[LossKind]
    LOSS_KIND_LOGIT_DIFF: _ClassVar[LossKind]
    LOSS_KIND_LOGIT_MINUS_MEAN: _ClassVar[LossKind]
    LOSS_KIND_PROBS: _ClassVar[LossKind]
    LOSS_KIND_ZERO: _ClassVar[LossKind]

class AttentionTraceType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTENTION_TRACE_TYPE_UNSPECIFIED: _ClassVar[AttentionTraceType]
    ATTENTION_TRACE_TYPE_Q: _ClassVar[AttentionTraceType]
    ATTENTION_TRACE_TYPE_K: _ClassVar[AttentionTraceType]
    ATTENTION_TRACE_TYPE_QK: _ClassVar[AttentionTraceType]
    ATTENTION_TRACE_TYPE_V: _ClassVar[AttentionTraceType]

class NonlinearitySide(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONLINEARITY_SIDE_UNSPECIFIED: _ClassVar[NonlinearitySide]
    NONLINEARITY_SIDE_PRE_ACT: _ClassVar[NonlinearitySide]
    NONLINEARITY_SIDE_POST_ACT: _ClassVar[NonlinearitySide]
LOSS_KIND_UNSPECIFIED: LossKind
LOSS_KIND_LOGIT_DIFF: LossKind
LOSS_KIND_LOGIT_MINUS_MEAN: LossKind
LOSS_KIND_PROBS: LossKind
LOSS_KIND_ZERO: LossKind
ATTENTION_TRACE_TYPE_UNSPECIFIED: AttentionTraceType
ATTENTION_TRACE_TYPE_Q: AttentionTraceType
ATTENTION_TRACE_TYPE_K: AttentionTraceType
ATTENTION_TRACE_TYPE_QK: AttentionTraceType
ATTENTION_TRACE_TYPE_V: AttentionTraceType
NONLINEARITY_SIDE_UNSPECIFIED: NonlinearitySide
NONLINEARITY_SIDE_PRE_ACT: NonlinearitySide
NONLINEARITY_SIDE_POST_ACT: NonlinearitySide

class LossFunction(_message.Message):
    __slots__ = ("kind", "target_tokens", "distractor_tokens", "position")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISTRACTOR_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    kind: LossKind
    target_tokens: _containers.RepeatedScalarFieldContainer[str]
    distractor_tokens: _containers.RepeatedScalarFieldContainer[str]
    position: int
    def __init__(self, kind: _Optional[_Union[LossKind, str]] = ..., target_tokens: _Optional[_Iterable[str]] = ..., distractor_tokens: _Optional[_Iterable[str]] = ..., position: _Optional[int] = ...) -> None: ...

class Ablation(_message.Message):
    __slots__ = ("index", "value")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    index: _component_pb2.ActivationIndex
    value: float
    def __init__(self, index: _Optional[_Union[_component_pb2.ActivationIndex, _Mapping]] = ..., value: _Optional[float] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("node_index", "side", "detach_layer_norm_scale", "attention_trace_type", "downstream")
    NODE_INDEX_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    DETACH_LAYER_NORM_SCALE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_TRACE_TYPE_FIELD_NUMBER: _ClassVar[int]
    DOWNSTREAM_FIELD_NUMBER: _ClassVar[int]
    node_index: _component_pb2.NodeIndex
    side: NonlinearitySide
    detach_layer_norm_scale: bool
    attention_trace_type: AttentionTraceType
    downstream: Trace
    def __init__(self, node_index: _Optional[_Union[_component_pb2.NodeIndex, _Mapping]] = ..., side: _Optional[_Union[NonlinearitySide, str]] = ..., detach_layer_norm_scale: _Optional[bool] = ..., attention_trace_type: _Optional[_Union[AttentionTraceType, str]] = ..., downstream: _Optional[_Union[Trace, _Mapping]] = ...) -> None: ...

class InferenceSpec(_message.Message):
    __slots__ = ("prompt", "ablations", "loss", "trace", "within_layer_gradient_index", "prepend_beginning_token")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ABLATIONS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    WITHIN_LAYER_GRADIENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BEGINNING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    ablations: _containers.RepeatedCompositeFieldContainer[Ablation]
    loss: LossFunction
    trace: Trace
    within_layer_gradient_index: _component_pb2.ActivationIndex
    prepend_beginning_token: bool
    def __init__(self, prompt: _Optional[str] = ..., ablations: _Optional[_Iterable[_Union[Ablation, _Mapping]]] = ..., loss: _Optional[_Union[LossFunction, _Mapping]] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ..., within_layer_gradient_index: _Optional[_Union[_component_pb2.ActivationIndex, _Mapping]] = ..., prepend_beginning_token: _Optional[bool] = ...) -> None: ...

class InferenceResult(_message.Message):
    __slots__ = ("seconds", "memory_used_before", "memory_used_after", "loss", "traced_activation", "token_ids", "tokens")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_AFTER_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TRACED_ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    memory_used_before: int
    memory_used_after: int
    loss: float
    traced_activation: float
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, seconds: _Optional[float] = ..., memory_used_before: _Optional[int] = ..., memory_used_after: _Optional[int] = ..., loss: _Optional[float] = ..., traced_activation: _Optional[float] = ..., token_ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class NodeTable(_message.Message):
    __slots__ = ("node_types", "tensor_indices", "layer_indices", "pass_type")
    NODE_TYPES_FIELD_NUMBER: _ClassVar[int]
    TENSOR_INDICES_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    node_types: _containers.RepeatedScalarFieldContainer[_component_pb2.NodeType]
    tensor_indices: _containers.RepeatedScalarFieldContainer[int]
    layer_indices: _containers.RepeatedScalarFieldContainer[int]
    pass_type: _component_pb2.PassType
    def __init__(self, node_types: _Optional[_Iterable[_Union[_component_pb2.NodeType, str]]] = ..., tensor_indices: _Optional[_Iterable[int]] = ..., layer_indices: _Optional[_Iterable[int]] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ...) -> None: ...
