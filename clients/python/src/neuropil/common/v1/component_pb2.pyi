from buf.validate import validate_pb2 as _validate_pb2
from neuropil.common.v1 import derived_scalar_type_pb2 as _derived_scalar_type_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PassType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PASS_TYPE_UNSPECIFIED: _ClassVar[PassType]
    PASS_TYPE_FORWARD: _ClassVar[PassType]
    PASS_TYPE_BACKWARD: _ClassVar[PassType]

class NodeType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_TYPE_UNSPECIFIED: _ClassVar[NodeType]
    NODE_TYPE_ATTENTION_HEAD: _ClassVar[NodeType]
    NODE_TYPE_MLP_NEURON: _ClassVar[NodeType]
    NODE_TYPE_AUTOENCODER_LATENT: _ClassVar[NodeType]
    NODE_TYPE_MLP_AUTOENCODER_LATENT: _ClassVar[NodeType]
    NODE_TYPE_ATTENTION_AUTOENCODER_LATENT: _ClassVar[NodeType]
    NODE_TYPE_LAYER: _ClassVar[NodeType]
    NODE_TYPE_RESIDUAL_STREAM_CHANNEL: _ClassVar[NodeType]
    NODE_TYPE_VOCAB_TOKEN: _ClassVar[NodeType]
    NODE_TYPE_QK_CHANNEL: _ClassVar[NodeType]
    NODE_TYPE_V_CHANNEL: _ClassVar[NodeType]
    NODE_TYPE_AUTOENCODER_LATENT_BY_TOKEN_PAIR: _ClassVar[NodeType]

class Dimension(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIMENSION_UNSPECIFIED: _ClassVar[Dimension]
    DIMENSION_SEQUENCE_TOKENS: _ClassVar[Dimension]
    DIMENSION_ATTENDED_TO_SEQUENCE_TOKENS: _ClassVar[Dimension]
    DIMENSION_SEQUENCE_TOKEN_PAIRS: _ClassVar[Dimension]
    DIMENSION_ATTN_HEADS: _ClassVar[Dimension]
    DIMENSION_MLP_ACTS: _ClassVar[Dimension]
    DIMENSION_AUTOENCODER_LATENTS: _ClassVar[Dimension]
    DIMENSION_RESIDUAL_STREAM_CHANNELS: _ClassVar[Dimension]
    DIMENSION_QUERY_AND_KEY_CHANNELS: _ClassVar[Dimension]
    DIMENSION_VALUE_CHANNELS: _ClassVar[Dimension]
    DIMENSION_VOCAB_SIZE: _ClassVar[Dimension]
    DIMENSION_SINGLETON: _ClassVar[Dimension]

class ActivationLocationType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVATION_LOCATION_TYPE_UNSPECIFIED: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_RESID_POST_EMB: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_RESID_DELTA_ATTN: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_RESID_POST_ATTN: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_RESID_DELTA_MLP: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_RESID_POST_MLP: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_RESID_POST_MLP_LN: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_RESID_POST_ATTN_LN: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_RESID_POST_LN_F: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_MLP_LN_SCALE: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ATTN_LN_SCALE: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_RESID_LN_F_SCALE: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ATTN_Q: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ATTN_K: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ATTN_V: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ATTN_QK_LOGITS: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ATTN_QK_PROBS: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ATTN_V_OUT: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_MLP_PRE_ACT: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_MLP_POST_ACT: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_LOGITS: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ONLINE_AUTOENCODER_LATENT: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ONLINE_MLP_AUTOENCODER_LATENT: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ONLINE_ATTENTION_AUTOENCODER_LATENT: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ONLINE_MLP_AUTOENCODER_ERROR: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR: _ClassVar[ActivationLocationType]
    ACTIVATION_LOCATION_TYPE_ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR: _ClassVar[ActivationLocationType]
PASS_TYPE_UNSPECIFIED: PassType
PASS_TYPE_FORWARD: PassType
PASS_TYPE_BACKWARD: PassType
NODE_TYPE_UNSPECIFIED: NodeType
NODE_TYPE_ATTENTION_HEAD: NodeType
NODE_TYPE_MLP_NEURON: NodeType
NODE_TYPE_AUTOENCODER_LATENT: NodeType
NODE_TYPE_MLP_AUTOENCODER_LATENT: NodeType
NODE_TYPE_ATTENTION_AUTOENCODER_LATENT: NodeType
NODE_TYPE_LAYER: NodeType
NODE_TYPE_RESIDUAL_STREAM_CHANNEL: NodeType
NODE_TYPE_VOCAB_TOKEN: NodeType
NODE_TYPE_QK_CHANNEL: NodeType
NODE_TYPE_V_CHANNEL: NodeType
NODE_TYPE_AUTOENCODER_LATENT_BY_TOKEN_PAIR: NodeType
DIMENSION_UNSPECIFIED: Dimension
DIMENSION_SEQUENCE_TOKENS: Dimension
DIMENSION_ATTENDED_TO_SEQUENCE_TOKENS: Dimension
DIMENSION_SEQUENCE_TOKEN_PAIRS: Dimension
DIMENSION_ATTN_HEADS: Dimension
DIMENSION_MLP_ACTS: Dimension
DIMENSION_AUTOENCODER_LATENTS: Dimension
DIMENSION_RESIDUAL_STREAM_CHANNELS: Dimension
DIMENSION_QUERY_AND_KEY_CHANNELS: Dimension
DIMENSION_VALUE_CHANNELS: Dimension
DIMENSION_VOCAB_SIZE: Dimension
DIMENSION_SINGLETON: Dimension
ACTIVATION_LOCATION_TYPE_UNSPECIFIED: ActivationLocationType
ACTIVATION_LOCATION_TYPE_RESID_POST_EMB: ActivationLocationType
ACTIVATION_LOCATION_TYPE_RESID_DELTA_ATTN: ActivationLocationType
ACTIVATION_LOCATION_TYPE_RESID_POST_ATTN: ActivationLocationType
ACTIVATION_LOCATION_TYPE_RESID_DELTA_MLP: ActivationLocationType
ACTIVATION_LOCATION_TYPE_RESID_POST_MLP: ActivationLocationType
ACTIVATION_LOCATION_TYPE_RESID_POST_MLP_LN: ActivationLocationType
ACTIVATION_LOCATION_TYPE_RESID_POST_ATTN_LN: ActivationLocationType
ACTIVATION_LOCATION_TYPE_RESID_POST_LN_F: ActivationLocationType
ACTIVATION_LOCATION_TYPE_MLP_LN_SCALE: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ATTN_LN_SCALE: ActivationLocationType
ACTIVATION_LOCATION_TYPE_RESID_LN_F_SCALE: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ATTN_Q: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ATTN_K: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ATTN_V: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ATTN_QK_LOGITS: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ATTN_QK_PROBS: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ATTN_V_OUT: ActivationLocationType
ACTIVATION_LOCATION_TYPE_MLP_PRE_ACT: ActivationLocationType
ACTIVATION_LOCATION_TYPE_MLP_POST_ACT: ActivationLocationType
ACTIVATION_LOCATION_TYPE_LOGITS: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ONLINE_AUTOENCODER_LATENT: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ONLINE_MLP_AUTOENCODER_LATENT: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ONLINE_ATTENTION_AUTOENCODER_LATENT: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ONLINE_MLP_AUTOENCODER_ERROR: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR: ActivationLocationType
ACTIVATION_LOCATION_TYPE_ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR: ActivationLocationType

class ComponentId(_message.Message):
    __slots__ = ("derived_scalar_type", "layer_index", "component_index")
    DERIVED_SCALAR_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    derived_scalar_type: _derived_scalar_type_pb2.DerivedScalarType
    layer_index: int
    component_index: int
    def __init__(self, derived_scalar_type: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., layer_index: _Optional[int] = ..., component_index: _Optional[int] = ...) -> None: ...

class DimensionIndex(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class ActivationIndex(_message.Message):
    __slots__ = ("location_type", "layer_index", "tensor_indices", "pass_type")
    LOCATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    TENSOR_INDICES_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    location_type: ActivationLocationType
    layer_index: int
    tensor_indices: _containers.RepeatedCompositeFieldContainer[DimensionIndex]
    pass_type: PassType
    def __init__(self, location_type: _Optional[_Union[ActivationLocationType, str]] = ..., layer_index: _Optional[int] = ..., tensor_indices: _Optional[_Iterable[_Union[DimensionIndex, _Mapping]]] = ..., pass_type: _Optional[_Union[PassType, str]] = ...) -> None: ...

class NodeIndex(_message.Message):
    __slots__ = ("node_type", "layer_index", "tensor_indices", "pass_type")
    NODE_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    TENSOR_INDICES_FIELD_NUMBER: _ClassVar[int]
    PASS_TYPE_FIELD_NUMBER: _ClassVar[int]
    node_type: NodeType
    layer_index: int
    tensor_indices: _containers.RepeatedCompositeFieldContainer[DimensionIndex]
    pass_type: PassType
    def __init__(self, node_type: _Optional[_Union[NodeType, str]] = ..., layer_index: _Optional[int] = ..., tensor_indices: _Optional[_Iterable[_Union[DimensionIndex, _Mapping]]] = ..., pass_type: _Optional[_Union[PassType, str]] = ...) -> None: ...
