from buf.validate import validate_pb2 as _validate_pb2
from neuropil.common.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenSequences(_message.Message):
    __slots__ = ("tokens", "sequence_lengths", "activations", "normalized_activations")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    sequence_lengths: _containers.RepeatedScalarFieldContainer[int]
    activations: _tensor_pb2.Tensor
    normalized_activations: _tensor_pb2.Tensor
    def __init__(self, tokens: _Optional[_Iterable[str]] = ..., sequence_lengths: _Optional[_Iterable[int]] = ..., activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., normalized_activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class TokenPairSequences(_message.Message):
    __slots__ = ("tokens", "sequence_lengths", "attended_to_caps", "activations", "normalized_activations", "total_in", "max_in", "total_out", "max_out")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    ATTENDED_TO_CAPS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_IN_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_OUT_FIELD_NUMBER: _ClassVar[int]
    MAX_OUT_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    sequence_lengths: _containers.RepeatedScalarFieldContainer[int]
    attended_to_caps: _containers.RepeatedScalarFieldContainer[int]
    activations: _tensor_pb2.Tensor
    normalized_activations: _tensor_pb2.Tensor
    total_in: TokenPairSummary
    max_in: TokenPairSummary
    total_out: TokenPairSummary
    max_out: TokenPairSummary
    def __init__(self, tokens: _Optional[_Iterable[str]] = ..., sequence_lengths: _Optional[_Iterable[int]] = ..., attended_to_caps: _Optional[_Iterable[int]] = ..., activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., normalized_activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., total_in: _Optional[_Union[TokenPairSummary, _Mapping]] = ..., max_in: _Optional[_Union[TokenPairSummary, _Mapping]] = ..., total_out: _Optional[_Union[TokenPairSummary, _Mapping]] = ..., max_out: _Optional[_Union[TokenPairSummary, _Mapping]] = ...) -> None: ...

class TokenPairSummary(_message.Message):
    __slots__ = ("values", "normalized_values")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _tensor_pb2.Tensor
    normalized_values: _tensor_pb2.Tensor
    def __init__(self, values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., normalized_values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
