from buf.validate import validate_pb2 as _validate_pb2
from neuropil.common.v1 import component_pb2 as _component_pb2
from neuropil.common.v1 import derived_scalar_type_pb2 as _derived_scalar_type_pb2
from neuropil.common.v1 import sequences_pb2 as _sequences_pb2
from neuropil.common.v1 import tensor_pb2 as _tensor_pb2
from neuropil.scalars.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScalarRequirement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCALAR_REQUIREMENT_UNSPECIFIED: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_GRADIENT: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_NO_LAYER: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_SINGLE_AUTOENCODER: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_MLP_AUTOENCODER: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_ATTENTION_AUTOENCODER: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_TRACE: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_NODE_INDEX: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_ACTIVATION_INDEX: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_NEURON_AUTOENCODER: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_MLP_OUTPUT_AUTOENCODER: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_BLOCK_OUTPUT_AUTOENCODER: _ClassVar[ScalarRequirement]
    SCALAR_REQUIREMENT_WITHIN_LAYER_GRADIENT_INDEX: _ClassVar[ScalarRequirement]

class AttentionPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTENTION_PART_UNSPECIFIED: _ClassVar[AttentionPart]
    ATTENTION_PART_QUERY: _ClassVar[AttentionPart]
    ATTENTION_PART_KEY: _ClassVar[AttentionPart]
    ATTENTION_PART_VALUE: _ClassVar[AttentionPart]

class GroupId(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GROUP_ID_UNSPECIFIED: _ClassVar[GroupId]
    GROUP_ID_ACT_TIMES_GRAD: _ClassVar[GroupId]
    GROUP_ID_ACTIVATION: _ClassVar[GroupId]
    GROUP_ID_DIRECT_WRITE_TO_GRAD: _ClassVar[GroupId]
    GROUP_ID_DIRECTION_WRITE: _ClassVar[GroupId]
    GROUP_ID_LOGITS: _ClassVar[GroupId]
    GROUP_ID_MLP_LAYER_WRITE: _ClassVar[GroupId]
    GROUP_ID_SINGLETON: _ClassVar[GroupId]
    GROUP_ID_TOKEN_WRITE: _ClassVar[GroupId]
    GROUP_ID_TOKEN_READ: _ClassVar[GroupId]
    GROUP_ID_WRITE_NORM: _ClassVar[GroupId]
    GROUP_ID_TOKEN_PAIR_ATTRIBUTION: _ClassVar[GroupId]

class TokenScoring(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_SCORING_UNSPECIFIED: _ClassVar[TokenScoring]
    TOKEN_SCORING_UPVOTED_OUTPUT_TOKENS: _ClassVar[TokenScoring]
    TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_MLP: _ClassVar[TokenScoring]
    TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_ATTN_Q: _ClassVar[TokenScoring]
    TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_ATTN_K: _ClassVar[TokenScoring]
SCALAR_REQUIREMENT_UNSPECIFIED: ScalarRequirement
SCALAR_REQUIREMENT_GRADIENT: ScalarRequirement
SCALAR_REQUIREMENT_NO_LAYER: ScalarRequirement
SCALAR_REQUIREMENT_SINGLE_AUTOENCODER: ScalarRequirement
SCALAR_REQUIREMENT_MLP_AUTOENCODER: ScalarRequirement
SCALAR_REQUIREMENT_ATTENTION_AUTOENCODER: ScalarRequirement
SCALAR_REQUIREMENT_TRACE: ScalarRequirement
SCALAR_REQUIREMENT_NODE_INDEX: ScalarRequirement
SCALAR_REQUIREMENT_ACTIVATION_INDEX: ScalarRequirement
SCALAR_REQUIREMENT_NEURON_AUTOENCODER: ScalarRequirement
SCALAR_REQUIREMENT_MLP_OUTPUT_AUTOENCODER: ScalarRequirement
SCALAR_REQUIREMENT_BLOCK_OUTPUT_AUTOENCODER: ScalarRequirement
SCALAR_REQUIREMENT_WITHIN_LAYER_GRADIENT_INDEX: ScalarRequirement
ATTENTION_PART_UNSPECIFIED: AttentionPart
ATTENTION_PART_QUERY: AttentionPart
ATTENTION_PART_KEY: AttentionPart
ATTENTION_PART_VALUE: AttentionPart
GROUP_ID_UNSPECIFIED: GroupId
GROUP_ID_ACT_TIMES_GRAD: GroupId
GROUP_ID_ACTIVATION: GroupId
GROUP_ID_DIRECT_WRITE_TO_GRAD: GroupId
GROUP_ID_DIRECTION_WRITE: GroupId
GROUP_ID_LOGITS: GroupId
GROUP_ID_MLP_LAYER_WRITE: GroupId
GROUP_ID_SINGLETON: GroupId
GROUP_ID_TOKEN_WRITE: GroupId
GROUP_ID_TOKEN_READ: GroupId
GROUP_ID_WRITE_NORM: GroupId
GROUP_ID_TOKEN_PAIR_ATTRIBUTION: GroupId
TOKEN_SCORING_UNSPECIFIED: TokenScoring
TOKEN_SCORING_UPVOTED_OUTPUT_TOKENS: TokenScoring
TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_MLP: TokenScoring
TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_ATTN_Q: TokenScoring
TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_ATTN_K: TokenScoring

class GetModelInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AutoencoderInfo(_message.Message):
    __slots__ = ("name", "node_type", "input", "activation_function", "latent_counts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_TYPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    LATENT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    node_type: _component_pb2.NodeType
    input: _derived_scalar_type_pb2.DerivedScalarType
    activation_function: str
    latent_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., node_type: _Optional[_Union[_component_pb2.NodeType, str]] = ..., input: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., activation_function: _Optional[str] = ..., latent_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("name", "family", "layer_count", "residual_channel_count", "head_count", "head_channel_count", "neuron_count", "vocabulary_size", "context_size", "beginning_token", "autoencoders", "device")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_CHANNEL_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEAD_CHANNEL_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEURON_COUNT_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_SIZE_FIELD_NUMBER: _ClassVar[int]
    BEGINNING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    layer_count: int
    residual_channel_count: int
    head_count: int
    head_channel_count: int
    neuron_count: int
    vocabulary_size: int
    context_size: int
    beginning_token: str
    autoencoders: _containers.RepeatedCompositeFieldContainer[AutoencoderInfo]
    device: str
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., layer_count: _Optional[int] = ..., residual_channel_count: _Optional[int] = ..., head_count: _Optional[int] = ..., head_channel_count: _Optional[int] = ..., neuron_count: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., context_size: _Optional[int] = ..., beginning_token: _Optional[str] = ..., autoencoders: _Optional[_Iterable[_Union[AutoencoderInfo, _Mapping]]] = ..., device: _Optional[str] = ...) -> None: ...

class ListScalarTypesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScalarType(_message.Message):
    __slots__ = ("derived_scalar_type", "name", "dimensions", "node_type", "pass_types", "requirements", "formula", "available", "unavailable_reason")
    DERIVED_SCALAR_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    NODE_TYPE_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPES_FIELD_NUMBER: _ClassVar[int]
    REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    FORMULA_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_REASON_FIELD_NUMBER: _ClassVar[int]
    derived_scalar_type: _derived_scalar_type_pb2.DerivedScalarType
    name: str
    dimensions: _containers.RepeatedScalarFieldContainer[_component_pb2.Dimension]
    node_type: _component_pb2.NodeType
    pass_types: _containers.RepeatedScalarFieldContainer[_component_pb2.PassType]
    requirements: _containers.RepeatedScalarFieldContainer[ScalarRequirement]
    formula: str
    available: bool
    unavailable_reason: str
    def __init__(self, derived_scalar_type: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., name: _Optional[str] = ..., dimensions: _Optional[_Iterable[_Union[_component_pb2.Dimension, str]]] = ..., node_type: _Optional[_Union[_component_pb2.NodeType, str]] = ..., pass_types: _Optional[_Iterable[_Union[_component_pb2.PassType, str]]] = ..., requirements: _Optional[_Iterable[_Union[ScalarRequirement, str]]] = ..., formula: _Optional[str] = ..., available: _Optional[bool] = ..., unavailable_reason: _Optional[str] = ...) -> None: ...

class ListScalarTypesResponse(_message.Message):
    __slots__ = ("scalar_types",)
    SCALAR_TYPES_FIELD_NUMBER: _ClassVar[int]
    scalar_types: _containers.RepeatedCompositeFieldContainer[ScalarType]
    def __init__(self, scalar_types: _Optional[_Iterable[_Union[ScalarType, _Mapping]]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class TokenizedText(_message.Message):
    __slots__ = ("token_ids", "tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedCompositeFieldContainer[TokenizedText]
    def __init__(self, texts: _Optional[_Iterable[_Union[TokenizedText, _Mapping]]] = ...) -> None: ...

class DimensionRange(_message.Message):
    __slots__ = ("dimension", "start", "stop")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    dimension: _component_pb2.Dimension
    start: int
    stop: int
    def __init__(self, dimension: _Optional[_Union[_component_pb2.Dimension, str]] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class ScalarSelection(_message.Message):
    __slots__ = ("derived_scalar_type", "pass_type", "layer_indices", "ranges", "node_index", "activation_index", "attention_part", "detach_layer_norm_scale")
    DERIVED_SCALAR_TYPE_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    NODE_INDEX_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_INDEX_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_PART_FIELD_NUMBER: _ClassVar[int]
    DETACH_LAYER_NORM_SCALE_FIELD_NUMBER: _ClassVar[int]
    derived_scalar_type: _derived_scalar_type_pb2.DerivedScalarType
    pass_type: _component_pb2.PassType
    layer_indices: _containers.RepeatedScalarFieldContainer[int]
    ranges: _containers.RepeatedCompositeFieldContainer[DimensionRange]
    node_index: _component_pb2.NodeIndex
    activation_index: _component_pb2.ActivationIndex
    attention_part: AttentionPart
    detach_layer_norm_scale: bool
    def __init__(self, derived_scalar_type: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ..., layer_indices: _Optional[_Iterable[int]] = ..., ranges: _Optional[_Iterable[_Union[DimensionRange, _Mapping]]] = ..., node_index: _Optional[_Union[_component_pb2.NodeIndex, _Mapping]] = ..., activation_index: _Optional[_Union[_component_pb2.ActivationIndex, _Mapping]] = ..., attention_part: _Optional[_Union[AttentionPart, str]] = ..., detach_layer_norm_scale: _Optional[bool] = ...) -> None: ...

class DeriveRequest(_message.Message):
    __slots__ = ("inference", "selections")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    SELECTIONS_FIELD_NUMBER: _ClassVar[int]
    inference: _inference_pb2.InferenceSpec
    selections: _containers.RepeatedCompositeFieldContainer[ScalarSelection]
    def __init__(self, inference: _Optional[_Union[_inference_pb2.InferenceSpec, _Mapping]] = ..., selections: _Optional[_Iterable[_Union[ScalarSelection, _Mapping]]] = ...) -> None: ...

class TensorFrame(_message.Message):
    __slots__ = ("selection", "layer_index", "shape", "first_row", "rows")
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    selection: int
    layer_index: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    first_row: int
    rows: _tensor_pb2.Tensor
    def __init__(self, selection: _Optional[int] = ..., layer_index: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ..., first_row: _Optional[int] = ..., rows: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class DeriveResponse(_message.Message):
    __slots__ = ("inference", "frame")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    inference: _inference_pb2.InferenceResult
    frame: TensorFrame
    def __init__(self, inference: _Optional[_Union[_inference_pb2.InferenceResult, _Mapping]] = ..., frame: _Optional[_Union[TensorFrame, _Mapping]] = ...) -> None: ...

class ComponentSpec(_message.Message):
    __slots__ = ("component", "pass_type", "top_token_count")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    component: _component_pb2.ComponentId
    pass_type: _component_pb2.PassType
    top_token_count: int
    def __init__(self, component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ..., top_token_count: _Optional[int] = ...) -> None: ...

class DeriveComponentRequest(_message.Message):
    __slots__ = ("inference", "spec")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    inference: _inference_pb2.InferenceSpec
    spec: ComponentSpec
    def __init__(self, inference: _Optional[_Union[_inference_pb2.InferenceSpec, _Mapping]] = ..., spec: _Optional[_Union[ComponentSpec, _Mapping]] = ...) -> None: ...

class ScoredToken(_message.Message):
    __slots__ = ("token", "scalar", "normalized_scalar")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SCALAR_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_SCALAR_FIELD_NUMBER: _ClassVar[int]
    token: str
    scalar: float
    normalized_scalar: float
    def __init__(self, token: _Optional[str] = ..., scalar: _Optional[float] = ..., normalized_scalar: _Optional[float] = ...) -> None: ...

class TopTokens(_message.Message):
    __slots__ = ("top", "bottom")
    TOP_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    top: _containers.RepeatedCompositeFieldContainer[ScoredToken]
    bottom: _containers.RepeatedCompositeFieldContainer[ScoredToken]
    def __init__(self, top: _Optional[_Iterable[_Union[ScoredToken, _Mapping]]] = ..., bottom: _Optional[_Iterable[_Union[ScoredToken, _Mapping]]] = ...) -> None: ...

class ComponentScalars(_message.Message):
    __slots__ = ("activations", "nodes", "top_tokens")
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    activations: _tensor_pb2.Tensor
    nodes: _inference_pb2.NodeTable
    top_tokens: TopTokens
    def __init__(self, activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., nodes: _Optional[_Union[_inference_pb2.NodeTable, _Mapping]] = ..., top_tokens: _Optional[_Union[TopTokens, _Mapping]] = ...) -> None: ...

class DeriveComponentResponse(_message.Message):
    __slots__ = ("inference", "scalars")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    inference: _inference_pb2.InferenceResult
    scalars: ComponentScalars
    def __init__(self, inference: _Optional[_Union[_inference_pb2.InferenceResult, _Mapping]] = ..., scalars: _Optional[_Union[ComponentScalars, _Mapping]] = ...) -> None: ...

class ComponentByTokenPairSpec(_message.Message):
    __slots__ = ("component",)
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    component: _component_pb2.ComponentId
    def __init__(self, component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ...) -> None: ...

class DeriveComponentByTokenPairRequest(_message.Message):
    __slots__ = ("inference", "spec")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    inference: _inference_pb2.InferenceSpec
    spec: ComponentByTokenPairSpec
    def __init__(self, inference: _Optional[_Union[_inference_pb2.InferenceSpec, _Mapping]] = ..., spec: _Optional[_Union[ComponentByTokenPairSpec, _Mapping]] = ...) -> None: ...

class DeriveComponentByTokenPairResponse(_message.Message):
    __slots__ = ("inference", "scalars")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    inference: _inference_pb2.InferenceResult
    scalars: _sequences_pb2.TokenPairSequences
    def __init__(self, inference: _Optional[_Union[_inference_pb2.InferenceResult, _Mapping]] = ..., scalars: _Optional[_Union[_sequences_pb2.TokenPairSequences, _Mapping]] = ...) -> None: ...

class ScalarGroup(_message.Message):
    __slots__ = ("group_id", "derived_scalar_types")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    DERIVED_SCALAR_TYPES_FIELD_NUMBER: _ClassVar[int]
    group_id: GroupId
    derived_scalar_types: _containers.RepeatedScalarFieldContainer[_derived_scalar_type_pb2.DerivedScalarType]
    def __init__(self, group_id: _Optional[_Union[GroupId, str]] = ..., derived_scalar_types: _Optional[_Iterable[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]]] = ...) -> None: ...

class TopNodesSpec(_message.Message):
    __slots__ = ("groups", "token_index", "top_and_bottom_count", "pass_type", "sum_dimensions", "exclude_bottom", "first_layer")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOP_AND_BOTTOM_COUNT_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    SUM_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_BOTTOM_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[ScalarGroup]
    token_index: int
    top_and_bottom_count: int
    pass_type: _component_pb2.PassType
    sum_dimensions: DimensionList
    exclude_bottom: bool
    first_layer: int
    def __init__(self, groups: _Optional[_Iterable[_Union[ScalarGroup, _Mapping]]] = ..., token_index: _Optional[int] = ..., top_and_bottom_count: _Optional[int] = ..., pass_type: _Optional[_Union[_component_pb2.PassType, str]] = ..., sum_dimensions: _Optional[_Union[DimensionList, _Mapping]] = ..., exclude_bottom: _Optional[bool] = ..., first_layer: _Optional[int] = ...) -> None: ...

class DimensionList(_message.Message):
    __slots__ = ("dimensions",)
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    dimensions: _containers.RepeatedScalarFieldContainer[_component_pb2.Dimension]
    def __init__(self, dimensions: _Optional[_Iterable[_Union[_component_pb2.Dimension, str]]] = ...) -> None: ...

class ListTopNodesRequest(_message.Message):
    __slots__ = ("inference", "spec")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    inference: _inference_pb2.InferenceSpec
    spec: TopNodesSpec
    def __init__(self, inference: _Optional[_Union[_inference_pb2.InferenceSpec, _Mapping]] = ..., spec: _Optional[_Union[TopNodesSpec, _Mapping]] = ...) -> None: ...

class GroupScalars(_message.Message):
    __slots__ = ("group_id", "values")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    group_id: GroupId
    values: _tensor_pb2.Tensor
    def __init__(self, group_id: _Optional[_Union[GroupId, str]] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class IntermediateSum(_message.Message):
    __slots__ = ("group_id", "derived_scalar_type", "values")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    DERIVED_SCALAR_TYPE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    group_id: GroupId
    derived_scalar_type: _derived_scalar_type_pb2.DerivedScalarType
    values: _tensor_pb2.Tensor
    def __init__(self, group_id: _Optional[_Union[GroupId, str]] = ..., derived_scalar_type: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class TopNodes(_message.Message):
    __slots__ = ("nodes", "groups", "sums", "vocabulary_tokens")
    NODES_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    nodes: _inference_pb2.NodeTable
    groups: _containers.RepeatedCompositeFieldContainer[GroupScalars]
    sums: _containers.RepeatedCompositeFieldContainer[IntermediateSum]
    vocabulary_tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nodes: _Optional[_Union[_inference_pb2.NodeTable, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[GroupScalars, _Mapping]]] = ..., sums: _Optional[_Iterable[_Union[IntermediateSum, _Mapping]]] = ..., vocabulary_tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class ListTopNodesResponse(_message.Message):
    __slots__ = ("inference", "top_nodes")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    TOP_NODES_FIELD_NUMBER: _ClassVar[int]
    inference: _inference_pb2.InferenceResult
    top_nodes: TopNodes
    def __init__(self, inference: _Optional[_Union[_inference_pb2.InferenceResult, _Mapping]] = ..., top_nodes: _Optional[_Union[TopNodes, _Mapping]] = ...) -> None: ...

class ScoredTokensSpec(_message.Message):
    __slots__ = ("scoring", "token_count", "depends_on")
    SCORING_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_FIELD_NUMBER: _ClassVar[int]
    scoring: TokenScoring
    token_count: int
    depends_on: str
    def __init__(self, scoring: _Optional[_Union[TokenScoring, str]] = ..., token_count: _Optional[int] = ..., depends_on: _Optional[str] = ...) -> None: ...

class ScoredTokens(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[TopTokens]
    def __init__(self, nodes: _Optional[_Iterable[_Union[TopTokens, _Mapping]]] = ...) -> None: ...

class TokenPairAttributionSpec(_message.Message):
    __slots__ = ("attended_to_token_count", "depends_on")
    ATTENDED_TO_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEPENDS_ON_FIELD_NUMBER: _ClassVar[int]
    attended_to_token_count: int
    depends_on: str
    def __init__(self, attended_to_token_count: _Optional[int] = ..., depends_on: _Optional[str] = ...) -> None: ...

class TokenPairAttribution(_message.Message):
    __slots__ = ("top_tokens", "top_values", "bottom_tokens", "bottom_values")
    TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP_VALUES_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_VALUES_FIELD_NUMBER: _ClassVar[int]
    top_tokens: _containers.RepeatedScalarFieldContainer[int]
    top_values: _containers.RepeatedScalarFieldContainer[float]
    bottom_tokens: _containers.RepeatedScalarFieldContainer[int]
    bottom_values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, top_tokens: _Optional[_Iterable[int]] = ..., top_values: _Optional[_Iterable[float]] = ..., bottom_tokens: _Optional[_Iterable[int]] = ..., bottom_values: _Optional[_Iterable[float]] = ...) -> None: ...

class TokenPairAttributions(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[TokenPairAttribution]
    def __init__(self, nodes: _Optional[_Iterable[_Union[TokenPairAttribution, _Mapping]]] = ...) -> None: ...

class NamedSpec(_message.Message):
    __slots__ = ("name", "component", "component_by_token_pair", "top_nodes", "scored_tokens", "token_pair_attribution", "selection")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_BY_TOKEN_PAIR_FIELD_NUMBER: _ClassVar[int]
    TOP_NODES_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_PAIR_ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    component: ComponentSpec
    component_by_token_pair: ComponentByTokenPairSpec
    top_nodes: TopNodesSpec
    scored_tokens: ScoredTokensSpec
    token_pair_attribution: TokenPairAttributionSpec
    selection: ScalarSelection
    def __init__(self, name: _Optional[str] = ..., component: _Optional[_Union[ComponentSpec, _Mapping]] = ..., component_by_token_pair: _Optional[_Union[ComponentByTokenPairSpec, _Mapping]] = ..., top_nodes: _Optional[_Union[TopNodesSpec, _Mapping]] = ..., scored_tokens: _Optional[_Union[ScoredTokensSpec, _Mapping]] = ..., token_pair_attribution: _Optional[_Union[TokenPairAttributionSpec, _Mapping]] = ..., selection: _Optional[_Union[ScalarSelection, _Mapping]] = ...) -> None: ...

class BatchInference(_message.Message):
    __slots__ = ("inference", "specs")
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    SPECS_FIELD_NUMBER: _ClassVar[int]
    inference: _inference_pb2.InferenceSpec
    specs: _containers.RepeatedCompositeFieldContainer[NamedSpec]
    def __init__(self, inference: _Optional[_Union[_inference_pb2.InferenceSpec, _Mapping]] = ..., specs: _Optional[_Iterable[_Union[NamedSpec, _Mapping]]] = ...) -> None: ...

class BatchDeriveRequest(_message.Message):
    __slots__ = ("inferences",)
    INFERENCES_FIELD_NUMBER: _ClassVar[int]
    inferences: _containers.RepeatedCompositeFieldContainer[BatchInference]
    def __init__(self, inferences: _Optional[_Iterable[_Union[BatchInference, _Mapping]]] = ...) -> None: ...

class NamedResult(_message.Message):
    __slots__ = ("name", "component", "component_by_token_pair", "top_nodes", "scored_tokens", "token_pair_attribution", "selection")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_BY_TOKEN_PAIR_FIELD_NUMBER: _ClassVar[int]
    TOP_NODES_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_PAIR_ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    component: ComponentScalars
    component_by_token_pair: _sequences_pb2.TokenPairSequences
    top_nodes: TopNodes
    scored_tokens: ScoredTokens
    token_pair_attribution: TokenPairAttributions
    selection: _tensor_pb2.Tensor
    def __init__(self, name: _Optional[str] = ..., component: _Optional[_Union[ComponentScalars, _Mapping]] = ..., component_by_token_pair: _Optional[_Union[_sequences_pb2.TokenPairSequences, _Mapping]] = ..., top_nodes: _Optional[_Union[TopNodes, _Mapping]] = ..., scored_tokens: _Optional[_Union[ScoredTokens, _Mapping]] = ..., token_pair_attribution: _Optional[_Union[TokenPairAttributions, _Mapping]] = ..., selection: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class BatchDeriveResponse(_message.Message):
    __slots__ = ("position", "inference", "results")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    position: int
    inference: _inference_pb2.InferenceResult
    results: _containers.RepeatedCompositeFieldContainer[NamedResult]
    def __init__(self, position: _Optional[int] = ..., inference: _Optional[_Union[_inference_pb2.InferenceResult, _Mapping]] = ..., results: _Optional[_Iterable[_Union[NamedResult, _Mapping]]] = ...) -> None: ...
