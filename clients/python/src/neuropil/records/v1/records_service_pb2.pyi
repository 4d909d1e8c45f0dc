from buf.validate import validate_pb2 as _validate_pb2
from neuropil.common.v1 import component_pb2 as _component_pb2
from neuropil.common.v1 import derived_scalar_type_pb2 as _derived_scalar_type_pb2
from neuropil.common.v1 import sequences_pb2 as _sequences_pb2
from neuropil.common.v1 import tensor_pb2 as _tensor_pb2
from neuropil.simulation.v1 import simulation_pb2 as _simulation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEARCH_MODE_UNSPECIFIED: _ClassVar[SearchMode]
    SEARCH_MODE_TEXT: _ClassVar[SearchMode]
    SEARCH_MODE_SEMANTIC: _ClassVar[SearchMode]
SEARCH_MODE_UNSPECIFIED: SearchMode
SEARCH_MODE_TEXT: SearchMode
SEARCH_MODE_SEMANTIC: SearchMode

class Dataset(_message.Message):
    __slots__ = ("short_name", "derived_scalar_type", "user_visible_name", "neuron_dataset_path", "explanation_dataset_paths", "derived_scalar_type_name")
    SHORT_NAME_FIELD_NUMBER: _ClassVar[int]
    DERIVED_SCALAR_TYPE_FIELD_NUMBER: _ClassVar[int]
    USER_VISIBLE_NAME_FIELD_NUMBER: _ClassVar[int]
    NEURON_DATASET_PATH_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_DATASET_PATHS_FIELD_NUMBER: _ClassVar[int]
    DERIVED_SCALAR_TYPE_NAME_FIELD_NUMBER: _ClassVar[int]
    short_name: str
    derived_scalar_type: _derived_scalar_type_pb2.DerivedScalarType
    user_visible_name: str
    neuron_dataset_path: str
    explanation_dataset_paths: _containers.RepeatedScalarFieldContainer[str]
    derived_scalar_type_name: str
    def __init__(self, short_name: _Optional[str] = ..., derived_scalar_type: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ..., user_visible_name: _Optional[str] = ..., neuron_dataset_path: _Optional[str] = ..., explanation_dataset_paths: _Optional[_Iterable[str]] = ..., derived_scalar_type_name: _Optional[str] = ...) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets",)
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ...) -> None: ...

class DatasetId(_message.Message):
    __slots__ = ("dataset", "derived_scalar_type")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    DERIVED_SCALAR_TYPE_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    derived_scalar_type: _derived_scalar_type_pb2.DerivedScalarType
    def __init__(self, dataset: _Optional[str] = ..., derived_scalar_type: _Optional[_Union[_derived_scalar_type_pb2.DerivedScalarType, str]] = ...) -> None: ...

class ListLayersRequest(_message.Message):
    __slots__ = ("dataset", "page_size", "page_token")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    dataset: DatasetId
    page_size: int
    page_token: str
    def __init__(self, dataset: _Optional[_Union[DatasetId, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListLayersResponse(_message.Message):
    __slots__ = ("layer_indices", "next_page_token")
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    layer_indices: _containers.RepeatedScalarFieldContainer[int]
    next_page_token: str
    def __init__(self, layer_indices: _Optional[_Iterable[int]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListComponentsRequest(_message.Message):
    __slots__ = ("dataset", "layer_index", "page_size", "page_token")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDEX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    dataset: DatasetId
    layer_index: int
    page_size: int
    page_token: str
    def __init__(self, dataset: _Optional[_Union[DatasetId, _Mapping]] = ..., layer_index: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListComponentsResponse(_message.Message):
    __slots__ = ("component_indices", "next_page_token")
    COMPONENT_INDICES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    component_indices: _containers.RepeatedScalarFieldContainer[int]
    next_page_token: str
    def __init__(self, component_indices: _Optional[_Iterable[int]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RecordView(_message.Message):
    __slots__ = ("include_quantile_samples", "include_moments")
    INCLUDE_QUANTILE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_MOMENTS_FIELD_NUMBER: _ClassVar[int]
    include_quantile_samples: bool
    include_moments: bool
    def __init__(self, include_quantile_samples: _Optional[bool] = ..., include_moments: _Optional[bool] = ...) -> None: ...

class Moments(_message.Message):
    __slots__ = ("mean", "variance", "skewness", "kurtosis")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_FIELD_NUMBER: _ClassVar[int]
    SKEWNESS_FIELD_NUMBER: _ClassVar[int]
    KURTOSIS_FIELD_NUMBER: _ClassVar[int]
    mean: float
    variance: float
    skewness: float
    kurtosis: float
    def __init__(self, mean: _Optional[float] = ..., variance: _Optional[float] = ..., skewness: _Optional[float] = ..., kurtosis: _Optional[float] = ...) -> None: ...

class GetTokenRecordRequest(_message.Message):
    __slots__ = ("component", "datasets", "view")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    component: _component_pb2.ComponentId
    datasets: _containers.RepeatedScalarFieldContainer[str]
    view: RecordView
    def __init__(self, component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., datasets: _Optional[_Iterable[str]] = ..., view: _Optional[_Union[RecordView, _Mapping]] = ...) -> None: ...

class GetTokenRecordResponse(_message.Message):
    __slots__ = ("dataset", "component", "max_activation", "top_sequences", "random_sequences", "quantile_sequences", "quantile_boundaries", "moments")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    MAX_ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    TOP_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    RANDOM_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    QUANTILE_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    QUANTILE_BOUNDARIES_FIELD_NUMBER: _ClassVar[int]
    MOMENTS_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    component: _component_pb2.ComponentId
    max_activation: float
    top_sequences: _sequences_pb2.TokenSequences
    random_sequences: _sequences_pb2.TokenSequences
    quantile_sequences: _containers.RepeatedCompositeFieldContainer[_sequences_pb2.TokenSequences]
    quantile_boundaries: _containers.RepeatedScalarFieldContainer[float]
    moments: Moments
    def __init__(self, dataset: _Optional[str] = ..., component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., max_activation: _Optional[float] = ..., top_sequences: _Optional[_Union[_sequences_pb2.TokenSequences, _Mapping]] = ..., random_sequences: _Optional[_Union[_sequences_pb2.TokenSequences, _Mapping]] = ..., quantile_sequences: _Optional[_Iterable[_Union[_sequences_pb2.TokenSequences, _Mapping]]] = ..., quantile_boundaries: _Optional[_Iterable[float]] = ..., moments: _Optional[_Union[Moments, _Mapping]] = ...) -> None: ...

class GetTokenPairRecordRequest(_message.Message):
    __slots__ = ("component", "datasets", "view")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    component: _component_pb2.ComponentId
    datasets: _containers.RepeatedScalarFieldContainer[str]
    view: RecordView
    def __init__(self, component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., datasets: _Optional[_Iterable[str]] = ..., view: _Optional[_Union[RecordView, _Mapping]] = ...) -> None: ...

class GetTokenPairRecordResponse(_message.Message):
    __slots__ = ("dataset", "component", "max_activation", "top_sequences", "random_sequences", "quantile_sequences", "quantile_boundaries", "moments")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    MAX_ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    TOP_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    RANDOM_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    QUANTILE_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    QUANTILE_BOUNDARIES_FIELD_NUMBER: _ClassVar[int]
    MOMENTS_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    component: _component_pb2.ComponentId
    max_activation: float
    top_sequences: _sequences_pb2.TokenPairSequences
    random_sequences: _sequences_pb2.TokenPairSequences
    quantile_sequences: _containers.RepeatedCompositeFieldContainer[_sequences_pb2.TokenPairSequences]
    quantile_boundaries: _containers.RepeatedScalarFieldContainer[float]
    moments: Moments
    def __init__(self, dataset: _Optional[str] = ..., component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., max_activation: _Optional[float] = ..., top_sequences: _Optional[_Union[_sequences_pb2.TokenPairSequences, _Mapping]] = ..., random_sequences: _Optional[_Union[_sequences_pb2.TokenPairSequences, _Mapping]] = ..., quantile_sequences: _Optional[_Iterable[_Union[_sequences_pb2.TokenPairSequences, _Mapping]]] = ..., quantile_boundaries: _Optional[_Iterable[float]] = ..., moments: _Optional[_Union[Moments, _Mapping]] = ...) -> None: ...

class BatchGetRecordsRequest(_message.Message):
    __slots__ = ("components", "datasets", "view", "max_records_per_message")
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    MAX_RECORDS_PER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    components: _containers.RepeatedCompositeFieldContainer[_component_pb2.ComponentId]
    datasets: _containers.RepeatedScalarFieldContainer[str]
    view: RecordView
    max_records_per_message: int
    def __init__(self, components: _Optional[_Iterable[_Union[_component_pb2.ComponentId, _Mapping]]] = ..., datasets: _Optional[_Iterable[str]] = ..., view: _Optional[_Union[RecordView, _Mapping]] = ..., max_records_per_message: _Optional[int] = ...) -> None: ...

class BatchGetRecordsResponse(_message.Message):
    __slots__ = ("position", "token_record", "token_pair_record", "failure", "following")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_RECORD_FIELD_NUMBER: _ClassVar[int]
    TOKEN_PAIR_RECORD_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWING_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_record: GetTokenRecordResponse
    token_pair_record: GetTokenPairRecordResponse
    failure: Failure
    following: _containers.RepeatedCompositeFieldContainer[BatchGetRecordsResponse]
    def __init__(self, position: _Optional[int] = ..., token_record: _Optional[_Union[GetTokenRecordResponse, _Mapping]] = ..., token_pair_record: _Optional[_Union[GetTokenPairRecordResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., following: _Optional[_Iterable[_Union[BatchGetRecordsResponse, _Mapping]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "reason", "message", "dataset", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    code: str
    reason: str
    message: str
    dataset: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., dataset: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ExplanationDatasets(_message.Message):
    __slots__ = ("paths",)
    PATHS_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, paths: _Optional[_Iterable[str]] = ...) -> None: ...

class ListExplanationsRequest(_message.Message):
    __slots__ = ("component", "explanation_datasets", "neuron_dataset")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_DATASETS_FIELD_NUMBER: _ClassVar[int]
    NEURON_DATASET_FIELD_NUMBER: _ClassVar[int]
    component: _component_pb2.ComponentId
    explanation_datasets: ExplanationDatasets
    neuron_dataset: str
    def __init__(self, component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., explanation_datasets: _Optional[_Union[ExplanationDatasets, _Mapping]] = ..., neuron_dataset: _Optional[str] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("text", "score", "dataset_name", "dataset")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DATASET_NAME_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    text: str
    score: float
    dataset_name: str
    dataset: str
    def __init__(self, text: _Optional[str] = ..., score: _Optional[float] = ..., dataset_name: _Optional[str] = ..., dataset: _Optional[str] = ...) -> None: ...

class ListExplanationsResponse(_message.Message):
    __slots__ = ("explanations", "failures")
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    explanations: _containers.RepeatedCompositeFieldContainer[Explanation]
    failures: _containers.RepeatedCompositeFieldContainer[Failure]
    def __init__(self, explanations: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[Failure, _Mapping]]] = ...) -> None: ...

class GetScoredSimulationsRequest(_message.Message):
    __slots__ = ("component", "explanation_dataset")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_DATASET_FIELD_NUMBER: _ClassVar[int]
    component: _component_pb2.ComponentId
    explanation_dataset: str
    def __init__(self, component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., explanation_dataset: _Optional[str] = ...) -> None: ...

class GetScoredSimulationsResponse(_message.Message):
    __slots__ = ("explanation", "scored_simulation", "scored_attention_simulation")
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    SCORED_SIMULATION_FIELD_NUMBER: _ClassVar[int]
    SCORED_ATTENTION_SIMULATION_FIELD_NUMBER: _ClassVar[int]
    explanation: Explanation
    scored_simulation: _simulation_pb2.ScoredSimulation
    scored_attention_simulation: ScoredAttentionSimulation
    def __init__(self, explanation: _Optional[_Union[Explanation, _Mapping]] = ..., scored_simulation: _Optional[_Union[_simulation_pb2.ScoredSimulation, _Mapping]] = ..., scored_attention_simulation: _Optional[_Union[ScoredAttentionSimulation, _Mapping]] = ...) -> None: ...

class ScoredAttentionSimulation(_message.Message):
    __slots__ = ("attention_simulations", "roc_auc_score")
    ATTENTION_SIMULATIONS_FIELD_NUMBER: _ClassVar[int]
    ROC_AUC_SCORE_FIELD_NUMBER: _ClassVar[int]
    attention_simulations: _containers.RepeatedCompositeFieldContainer[AttentionSimulation]
    roc_auc_score: float
    def __init__(self, attention_simulations: _Optional[_Iterable[_Union[AttentionSimulation, _Mapping]]] = ..., roc_auc_score: _Optional[float] = ...) -> None: ...

class AttentionSimulation(_message.Message):
    __slots__ = ("tokens", "token_pair_coordinates", "token_pair_labels", "predictions")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_PAIR_COORDINATES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_PAIR_LABELS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    token_pair_coordinates: _tensor_pb2.Tensor
    token_pair_labels: _tensor_pb2.Tensor
    predictions: _tensor_pb2.Tensor
    def __init__(self, tokens: _Optional[_Iterable[str]] = ..., token_pair_coordinates: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., token_pair_labels: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., predictions: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class PutExplanationRequest(_message.Message):
    __slots__ = ("component", "explanation_dataset", "explanation", "scored_simulation", "scored_attention_simulation")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_DATASET_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    SCORED_SIMULATION_FIELD_NUMBER: _ClassVar[int]
    SCORED_ATTENTION_SIMULATION_FIELD_NUMBER: _ClassVar[int]
    component: _component_pb2.ComponentId
    explanation_dataset: str
    explanation: str
    scored_simulation: _simulation_pb2.ScoredSimulation
    scored_attention_simulation: ScoredAttentionSimulation
    def __init__(self, component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., explanation_dataset: _Optional[str] = ..., explanation: _Optional[str] = ..., scored_simulation: _Optional[_Union[_simulation_pb2.ScoredSimulation, _Mapping]] = ..., scored_attention_simulation: _Optional[_Union[ScoredAttentionSimulation, _Mapping]] = ...) -> None: ...

class PutExplanationResponse(_message.Message):
    __slots__ = ("replaced",)
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    replaced: bool
    def __init__(self, replaced: _Optional[bool] = ...) -> None: ...

class SearchExplanationsRequest(_message.Message):
    __slots__ = ("dataset", "query", "mode", "page_size", "page_token", "layer_indices", "min_score")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    dataset: DatasetId
    query: str
    mode: SearchMode
    page_size: int
    page_token: str
    layer_indices: _containers.RepeatedScalarFieldContainer[int]
    min_score: float
    def __init__(self, dataset: _Optional[_Union[DatasetId, _Mapping]] = ..., query: _Optional[str] = ..., mode: _Optional[_Union[SearchMode, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., layer_indices: _Optional[_Iterable[int]] = ..., min_score: _Optional[float] = ...) -> None: ...

class SearchHit(_message.Message):
    __slots__ = ("component", "explanation", "relevance")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    RELEVANCE_FIELD_NUMBER: _ClassVar[int]
    component: _component_pb2.ComponentId
    explanation: Explanation
    relevance: float
    def __init__(self, component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., relevance: _Optional[float] = ...) -> None: ...

class SearchIndex(_message.Message):
    __slots__ = ("num_explanations", "num_indexed", "complete", "num_unreadable_files")
    NUM_EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_INDEXED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    NUM_UNREADABLE_FILES_FIELD_NUMBER: _ClassVar[int]
    num_explanations: int
    num_indexed: int
    complete: bool
    num_unreadable_files: int
    def __init__(self, num_explanations: _Optional[int] = ..., num_indexed: _Optional[int] = ..., complete: _Optional[bool] = ..., num_unreadable_files: _Optional[int] = ...) -> None: ...

class SearchExplanationsResponse(_message.Message):
    __slots__ = ("hits", "next_page_token", "index", "num_matches")
    HITS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_MATCHES_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[SearchHit]
    next_page_token: str
    index: SearchIndex
    num_matches: int
    def __init__(self, hits: _Optional[_Iterable[_Union[SearchHit, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., index: _Optional[_Union[SearchIndex, _Mapping]] = ..., num_matches: _Optional[int] = ...) -> None: ...
