from neuropil.common.v1 import tensor_pb2 as _tensor_pb2
from neuropil.simulation.v1 import simulation_pb2 as _simulation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Judgement(_message.Message):
    __slots__ = ("tokens", "marked_positions", "label", "probability", "issue")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MARKED_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ISSUE_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    marked_positions: _containers.RepeatedScalarFieldContainer[int]
    label: bool
    probability: float
    issue: str
    def __init__(self, tokens: _Optional[_Iterable[str]] = ..., marked_positions: _Optional[_Iterable[int]] = ..., label: _Optional[bool] = ..., probability: _Optional[float] = ..., issue: _Optional[str] = ...) -> None: ...

class ScoredJudgements(_message.Message):
    __slots__ = ("judgements", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "validity")
    JUDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    BALANCED_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    F1_FIELD_NUMBER: _ClassVar[int]
    ROC_AUC_FIELD_NUMBER: _ClassVar[int]
    VALIDITY_FIELD_NUMBER: _ClassVar[int]
    judgements: _containers.RepeatedCompositeFieldContainer[Judgement]
    balanced_accuracy: _simulation_pb2.Score
    precision: _simulation_pb2.Score
    recall: _simulation_pb2.Score
    f1: _simulation_pb2.Score
    roc_auc: _simulation_pb2.Score
    validity: _simulation_pb2.ValidityReport
    def __init__(self, judgements: _Optional[_Iterable[_Union[Judgement, _Mapping]]] = ..., balanced_accuracy: _Optional[_Union[_simulation_pb2.Score, _Mapping]] = ..., precision: _Optional[_Union[_simulation_pb2.Score, _Mapping]] = ..., recall: _Optional[_Union[_simulation_pb2.Score, _Mapping]] = ..., f1: _Optional[_Union[_simulation_pb2.Score, _Mapping]] = ..., roc_auc: _Optional[_Union[_simulation_pb2.Score, _Mapping]] = ..., validity: _Optional[_Union[_simulation_pb2.ValidityReport, _Mapping]] = ...) -> None: ...

class ScoredAttentionSequence(_message.Message):
    __slots__ = ("tokens", "pairs", "labels", "predictions", "issues")
    class IssuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    ISSUES_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    pairs: _tensor_pb2.Tensor
    labels: _tensor_pb2.Tensor
    predictions: _tensor_pb2.Tensor
    issues: _containers.ScalarMap[int, str]
    def __init__(self, tokens: _Optional[_Iterable[str]] = ..., pairs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., labels: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., predictions: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., issues: _Optional[_Mapping[int, str]] = ...) -> None: ...

class ScoredAttentionPairs(_message.Message):
    __slots__ = ("sequences", "roc_auc", "validity")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    ROC_AUC_FIELD_NUMBER: _ClassVar[int]
    VALIDITY_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[ScoredAttentionSequence]
    roc_auc: _simulation_pb2.Score
    validity: _simulation_pb2.ValidityReport
    def __init__(self, sequences: _Optional[_Iterable[_Union[ScoredAttentionSequence, _Mapping]]] = ..., roc_auc: _Optional[_Union[_simulation_pb2.Score, _Mapping]] = ..., validity: _Optional[_Union[_simulation_pb2.ValidityReport, _Mapping]] = ...) -> None: ...
