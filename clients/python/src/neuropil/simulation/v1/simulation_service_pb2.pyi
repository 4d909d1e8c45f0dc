from buf.validate import validate_pb2 as _validate_pb2
from neuropil.common.v1 import component_pb2 as _component_pb2
from neuropil.common.v1 import sequences_pb2 as _sequences_pb2
from neuropil.common.v1 import tensor_pb2 as _tensor_pb2
from neuropil.simulation.v1 import simulation_pb2 as _simulation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListSimulatorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Simulator(_message.Message):
    __slots__ = ("name", "kind", "model", "has_exact_probabilities", "is_default", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HAS_EXACT_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    model: str
    has_exact_probabilities: bool
    is_default: bool
    description: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., model: _Optional[str] = ..., has_exact_probabilities: _Optional[bool] = ..., is_default: _Optional[bool] = ..., description: _Optional[str] = ...) -> None: ...

class ListSimulatorsResponse(_message.Message):
    __slots__ = ("simulators",)
    SIMULATORS_FIELD_NUMBER: _ClassVar[int]
    simulators: _containers.RepeatedCompositeFieldContainer[Simulator]
    def __init__(self, simulators: _Optional[_Iterable[_Union[Simulator, _Mapping]]] = ...) -> None: ...

class SimulateRequest(_message.Message):
    __slots__ = ("simulator", "explanation", "sequences", "calibration")
    SIMULATOR_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    simulator: str
    explanation: str
    sequences: _sequences_pb2.TokenSequences
    calibration: _simulation_pb2.Calibration
    def __init__(self, simulator: _Optional[str] = ..., explanation: _Optional[str] = ..., sequences: _Optional[_Union[_sequences_pb2.TokenSequences, _Mapping]] = ..., calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ...) -> None: ...

class SimulateResponse(_message.Message):
    __slots__ = ("position", "simulation", "cost")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SIMULATION_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    position: int
    simulation: _simulation_pb2.SequenceSimulation
    cost: _simulation_pb2.SimulationCost
    def __init__(self, position: _Optional[int] = ..., simulation: _Optional[_Union[_simulation_pb2.SequenceSimulation, _Mapping]] = ..., cost: _Optional[_Union[_simulation_pb2.SimulationCost, _Mapping]] = ...) -> None: ...

class FitCalibrationRequest(_message.Message):
    __slots__ = ("kind", "simulated", "true_activations")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    TRUE_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    kind: _simulation_pb2.CalibrationKind
    simulated: _tensor_pb2.Tensor
    true_activations: _tensor_pb2.Tensor
    def __init__(self, kind: _Optional[_Union[_simulation_pb2.CalibrationKind, str]] = ..., simulated: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., true_activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class FitCalibrationResponse(_message.Message):
    __slots__ = ("calibration",)
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    calibration: _simulation_pb2.Calibration
    def __init__(self, calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ...) -> None: ...

class ApplyCalibrationRequest(_message.Message):
    __slots__ = ("calibration", "values")
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    calibration: _simulation_pb2.Calibration
    values: _tensor_pb2.Tensor
    def __init__(self, calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ApplyCalibrationResponse(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _tensor_pb2.Tensor
    def __init__(self, values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class RecordedComponent(_message.Message):
    __slots__ = ("component", "datasets")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    component: _component_pb2.ComponentId
    datasets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, component: _Optional[_Union[_component_pb2.ComponentId, _Mapping]] = ..., datasets: _Optional[_Iterable[str]] = ...) -> None: ...

class LabeledSequences(_message.Message):
    __slots__ = ("calibration_sequences", "scored_sequences")
    CALIBRATION_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SCORED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    calibration_sequences: _sequences_pb2.TokenSequences
    scored_sequences: _sequences_pb2.TokenSequences
    def __init__(self, calibration_sequences: _Optional[_Union[_sequences_pb2.TokenSequences, _Mapping]] = ..., scored_sequences: _Optional[_Union[_sequences_pb2.TokenSequences, _Mapping]] = ...) -> None: ...

class ScoreExplanationRequest(_message.Message):
    __slots__ = ("recorded_component", "sequences", "explanation", "simulator", "calibration_kind", "max_sequences", "seed", "min_coverage")
    RECORDED_COMPONENT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    SIMULATOR_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_KIND_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIN_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    recorded_component: RecordedComponent
    sequences: LabeledSequences
    explanation: str
    simulator: str
    calibration_kind: _simulation_pb2.CalibrationKind
    max_sequences: int
    seed: int
    min_coverage: float
    def __init__(self, recorded_component: _Optional[_Union[RecordedComponent, _Mapping]] = ..., sequences: _Optional[_Union[LabeledSequences, _Mapping]] = ..., explanation: _Optional[str] = ..., simulator: _Optional[str] = ..., calibration_kind: _Optional[_Union[_simulation_pb2.CalibrationKind, str]] = ..., max_sequences: _Optional[int] = ..., seed: _Optional[int] = ..., min_coverage: _Optional[float] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("completed", "total", "stage")
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    completed: int
    total: int
    stage: str
    def __init__(self, completed: _Optional[int] = ..., total: _Optional[int] = ..., stage: _Optional[str] = ...) -> None: ...

class ScoredExplanation(_message.Message):
    __slots__ = ("explanation", "scored_simulation", "uncalibrated_scores", "provenance", "preferred_score")
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    SCORED_SIMULATION_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_SCORES_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_SCORE_FIELD_NUMBER: _ClassVar[int]
    explanation: str
    scored_simulation: _simulation_pb2.ScoredSimulation
    uncalibrated_scores: _simulation_pb2.Scores
    provenance: _simulation_pb2.ScoreProvenance
    preferred_score: _simulation_pb2.Score
    def __init__(self, explanation: _Optional[str] = ..., scored_simulation: _Optional[_Union[_simulation_pb2.ScoredSimulation, _Mapping]] = ..., uncalibrated_scores: _Optional[_Union[_simulation_pb2.Scores, _Mapping]] = ..., provenance: _Optional[_Union[_simulation_pb2.ScoreProvenance, _Mapping]] = ..., preferred_score: _Optional[_Union[_simulation_pb2.Score, _Mapping]] = ...) -> None: ...

class ScoreExplanationResponse(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    result: ScoredExplanation
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[ScoredExplanation, _Mapping]] = ...) -> None: ...

class ScoreSimulationsRequest(_message.Message):
    __slots__ = ("sequence_lengths", "expected_activations", "true_activations")
    SEQUENCE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    TRUE_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    sequence_lengths: _containers.RepeatedScalarFieldContainer[int]
    expected_activations: _tensor_pb2.Tensor
    true_activations: _tensor_pb2.Tensor
    def __init__(self, sequence_lengths: _Optional[_Iterable[int]] = ..., expected_activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., true_activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ScoreSimulationsResponse(_message.Message):
    __slots__ = ("sequence_scores", "scores")
    SEQUENCE_SCORES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    sequence_scores: _containers.RepeatedCompositeFieldContainer[_simulation_pb2.Scores]
    scores: _simulation_pb2.Scores
    def __init__(self, sequence_scores: _Optional[_Iterable[_Union[_simulation_pb2.Scores, _Mapping]]] = ..., scores: _Optional[_Union[_simulation_pb2.Scores, _Mapping]] = ...) -> None: ...

class ProposeExplanationsRequest(_message.Message):
    __slots__ = ("recorded_component", "explainer", "count", "seed")
    RECORDED_COMPONENT_FIELD_NUMBER: _ClassVar[int]
    EXPLAINER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    recorded_component: RecordedComponent
    explainer: str
    count: int
    seed: int
    def __init__(self, recorded_component: _Optional[_Union[RecordedComponent, _Mapping]] = ..., explainer: _Optional[str] = ..., count: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class ProposeExplanationsResponse(_message.Message):
    __slots__ = ("explanations", "dataset", "cost")
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    explanations: _containers.RepeatedScalarFieldContainer[str]
    dataset: str
    cost: _simulation_pb2.SimulationCost
    def __init__(self, explanations: _Optional[_Iterable[str]] = ..., dataset: _Optional[str] = ..., cost: _Optional[_Union[_simulation_pb2.SimulationCost, _Mapping]] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("max_tokens", "max_calls")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    max_calls: int
    def __init__(self, max_tokens: _Optional[int] = ..., max_calls: _Optional[int] = ...) -> None: ...

class BulkScoreExplanationsRequest(_message.Message):
    __slots__ = ("resume_key", "requests", "budget", "explanation_dataset")
    RESUME_KEY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_DATASET_FIELD_NUMBER: _ClassVar[int]
    resume_key: str
    requests: _containers.RepeatedCompositeFieldContainer[ScoreExplanationRequest]
    budget: Budget
    explanation_dataset: str
    def __init__(self, resume_key: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[ScoreExplanationRequest, _Mapping]]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., explanation_dataset: _Optional[str] = ...) -> None: ...

class BulkScoreExplanationsResponse(_message.Message):
    __slots__ = ("progress", "result", "spent")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    result: BulkResult
    spent: _simulation_pb2.SimulationCost
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[BulkResult, _Mapping]] = ..., spent: _Optional[_Union[_simulation_pb2.SimulationCost, _Mapping]] = ...) -> None: ...

class BulkResult(_message.Message):
    __slots__ = ("position", "scored_explanation", "failure")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SCORED_EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    position: int
    scored_explanation: ScoredExplanation
    failure: str
    def __init__(self, position: _Optional[int] = ..., scored_explanation: _Optional[_Union[ScoredExplanation, _Mapping]] = ..., failure: _Optional[str] = ...) -> None: ...
