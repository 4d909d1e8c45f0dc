from buf.validate import validate_pb2 as _validate_pb2
from neuropil.common.v1 import component_pb2 as _component_pb2
from neuropil.common.v1 import sequences_pb2 as _sequences_pb2
from neuropil.common.v1 import tensor_pb2 as _tensor_pb2
from neuropil.simulation.v1 import scoring_pb2 as _scoring_pb2
from neuropil.simulation.v1 import simulation_pb2 as _simulation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PutOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PUT_OUTCOME_UNSPECIFIED: _ClassVar[PutOutcome]
    PUT_OUTCOME_NOT_ASKED: _ClassVar[PutOutcome]
    PUT_OUTCOME_STORED: _ClassVar[PutOutcome]
    PUT_OUTCOME_FAILED: _ClassVar[PutOutcome]

class BudgetLimit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUDGET_LIMIT_UNSPECIFIED: _ClassVar[BudgetLimit]
    BUDGET_LIMIT_TOKENS: _ClassVar[BudgetLimit]
    BUDGET_LIMIT_CALLS: _ClassVar[BudgetLimit]
PUT_OUTCOME_UNSPECIFIED: PutOutcome
PUT_OUTCOME_NOT_ASKED: PutOutcome
PUT_OUTCOME_STORED: PutOutcome
PUT_OUTCOME_FAILED: PutOutcome
BUDGET_LIMIT_UNSPECIFIED: BudgetLimit
BUDGET_LIMIT_TOKENS: BudgetLimit
BUDGET_LIMIT_CALLS: BudgetLimit

class ListSimulatorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Simulator(_message.Message):
    __slots__ = ("name", "kind", "model", "has_exact_probabilities", "is_default", "description", "prompt_version", "capabilities", "state", "runs_language_model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HAS_EXACT_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUNS_LANGUAGE_MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    model: str
    has_exact_probabilities: bool
    is_default: bool
    description: str
    prompt_version: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    state: str
    runs_language_model: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., model: _Optional[str] = ..., has_exact_probabilities: _Optional[bool] = ..., is_default: _Optional[bool] = ..., description: _Optional[str] = ..., prompt_version: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., state: _Optional[str] = ..., runs_language_model: _Optional[bool] = ...) -> None: ...

class ListSimulatorsResponse(_message.Message):
    __slots__ = ("simulators",)
    SIMULATORS_FIELD_NUMBER: _ClassVar[int]
    simulators: _containers.RepeatedCompositeFieldContainer[Simulator]
    def __init__(self, simulators: _Optional[_Iterable[_Union[Simulator, _Mapping]]] = ...) -> None: ...

class SimulateRequest(_message.Message):
    __slots__ = ("simulator", "explanation", "sequences", "calibration", "calibration_id")
    SIMULATOR_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    simulator: str
    explanation: str
    sequences: _sequences_pb2.TokenSequences
    calibration: _simulation_pb2.Calibration
    calibration_id: str
    def __init__(self, simulator: _Optional[str] = ..., explanation: _Optional[str] = ..., sequences: _Optional[_Union[_sequences_pb2.TokenSequences, _Mapping]] = ..., calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ..., calibration_id: _Optional[str] = ...) -> None: ...

class SimulateResponse(_message.Message):
    __slots__ = ("position", "simulation", "cost")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SIMULATION_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    position: int
    simulation: _simulation_pb2.SequenceSimulation
    cost: _simulation_pb2.SimulationCost
    def __init__(self, position: _Optional[int] = ..., simulation: _Optional[_Union[_simulation_pb2.SequenceSimulation, _Mapping]] = ..., cost: _Optional[_Union[_simulation_pb2.SimulationCost, _Mapping]] = ...) -> None: ...

class SimulateExplanationsRequest(_message.Message):
    __slots__ = ("simulator", "explanations", "tokens", "calibration", "calibration_id")
    SIMULATOR_FIELD_NUMBER: _ClassVar[int]
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    simulator: str
    explanations: _containers.RepeatedScalarFieldContainer[str]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    calibration: _simulation_pb2.Calibration
    calibration_id: str
    def __init__(self, simulator: _Optional[str] = ..., explanations: _Optional[_Iterable[str]] = ..., tokens: _Optional[_Iterable[str]] = ..., calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ..., calibration_id: _Optional[str] = ...) -> None: ...

class SimulateExplanationsResponse(_message.Message):
    __slots__ = ("position", "simulation", "cost")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SIMULATION_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    position: int
    simulation: _simulation_pb2.SequenceSimulation
    cost: _simulation_pb2.SimulationCost
    def __init__(self, position: _Optional[int] = ..., simulation: _Optional[_Union[_simulation_pb2.SequenceSimulation, _Mapping]] = ..., cost: _Optional[_Union[_simulation_pb2.SimulationCost, _Mapping]] = ...) -> None: ...

class FitCalibrationRequest(_message.Message):
    __slots__ = ("kind", "simulated", "true_activations", "sequences")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    TRUE_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    kind: _simulation_pb2.CalibrationKind
    simulated: _tensor_pb2.Tensor
    true_activations: _tensor_pb2.Tensor
    sequences: _sequences_pb2.TokenSequences
    def __init__(self, kind: _Optional[_Union[_simulation_pb2.CalibrationKind, str]] = ..., simulated: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., true_activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., sequences: _Optional[_Union[_sequences_pb2.TokenSequences, _Mapping]] = ...) -> None: ...

class FitCalibrationResponse(_message.Message):
    __slots__ = ("calibration",)
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    calibration: _simulation_pb2.Calibration
    def __init__(self, calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ...) -> None: ...

class ApplyCalibrationRequest(_message.Message):
    __slots__ = ("calibration", "values", "calibration_id")
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    calibration: _simulation_pb2.Calibration
    values: _tensor_pb2.Tensor
    calibration_id: str
    def __init__(self, calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., calibration_id: _Optional[str] = ...) -> None: ...

class ApplyCalibrationResponse(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _tensor_pb2.Tensor
    def __init__(self, values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class StoreCalibrationRequest(_message.Message):
    __slots__ = ("calibration",)
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    calibration: _simulation_pb2.Calibration
    def __init__(self, calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ...) -> None: ...

class StoreCalibrationResponse(_message.Message):
    __slots__ = ("calibration_id",)
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    calibration_id: str
    def __init__(self, calibration_id: _Optional[str] = ...) -> None: ...

class GetCalibrationRequest(_message.Message):
    __slots__ = ("calibration_id",)
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    calibration_id: str
    def __init__(self, calibration_id: _Optional[str] = ...) -> None: ...

class GetCalibrationResponse(_message.Message):
    __slots__ = ("calibration",)
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    calibration: _simulation_pb2.Calibration
    def __init__(self, calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("recorded_component", "sequences", "explanation", "simulator", "calibration_kind", "max_sequences", "seed", "min_coverage", "method", "calibration", "calibration_id", "max_judgements", "pairs_per_sequence", "low_activation_threshold", "explanation_provenance")
    RECORDED_COMPONENT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    SIMULATOR_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_KIND_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIN_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_JUDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_PER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LOW_ACTIVATION_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    recorded_component: RecordedComponent
    sequences: LabeledSequences
    explanation: str
    simulator: str
    calibration_kind: _simulation_pb2.CalibrationKind
    max_sequences: int
    seed: int
    min_coverage: float
    method: _simulation_pb2.ScoringMethod
    calibration: _simulation_pb2.Calibration
    calibration_id: str
    max_judgements: int
    pairs_per_sequence: int
    low_activation_threshold: float
    explanation_provenance: _simulation_pb2.ExplanationProvenance
    def __init__(self, recorded_component: _Optional[_Union[RecordedComponent, _Mapping]] = ..., sequences: _Optional[_Union[LabeledSequences, _Mapping]] = ..., explanation: _Optional[str] = ..., simulator: _Optional[str] = ..., calibration_kind: _Optional[_Union[_simulation_pb2.CalibrationKind, str]] = ..., max_sequences: _Optional[int] = ..., seed: _Optional[int] = ..., min_coverage: _Optional[float] = ..., method: _Optional[_Union[_simulation_pb2.ScoringMethod, str]] = ..., calibration: _Optional[_Union[_simulation_pb2.Calibration, _Mapping]] = ..., calibration_id: _Optional[str] = ..., max_judgements: _Optional[int] = ..., pairs_per_sequence: _Optional[int] = ..., low_activation_threshold: _Optional[float] = ..., explanation_provenance: _Optional[_Union[_simulation_pb2.ExplanationProvenance, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("explanation", "scored_simulation", "uncalibrated_scores", "provenance", "preferred_score", "method", "judgements", "attention")
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    SCORED_SIMULATION_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_SCORES_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_SCORE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    JUDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    explanation: str
    scored_simulation: _simulation_pb2.ScoredSimulation
    uncalibrated_scores: _simulation_pb2.Scores
    provenance: _simulation_pb2.ScoreProvenance
    preferred_score: _simulation_pb2.Score
    method: _simulation_pb2.ScoringMethod
    judgements: _scoring_pb2.ScoredJudgements
    attention: _scoring_pb2.ScoredAttentionPairs
    def __init__(self, explanation: _Optional[str] = ..., scored_simulation: _Optional[_Union[_simulation_pb2.ScoredSimulation, _Mapping]] = ..., uncalibrated_scores: _Optional[_Union[_simulation_pb2.Scores, _Mapping]] = ..., provenance: _Optional[_Union[_simulation_pb2.ScoreProvenance, _Mapping]] = ..., preferred_score: _Optional[_Union[_simulation_pb2.Score, _Mapping]] = ..., method: _Optional[_Union[_simulation_pb2.ScoringMethod, str]] = ..., judgements: _Optional[_Union[_scoring_pb2.ScoredJudgements, _Mapping]] = ..., attention: _Optional[_Union[_scoring_pb2.ScoredAttentionPairs, _Mapping]] = ...) -> None: ...

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

class ListExplainersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Explainer(_message.Message):
    __slots__ = ("name", "kind", "model", "prompt_version", "is_default", "description", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    model: str
    prompt_version: str
    is_default: bool
    description: str
    state: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., model: _Optional[str] = ..., prompt_version: _Optional[str] = ..., is_default: _Optional[bool] = ..., description: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class ListExplainersResponse(_message.Message):
    __slots__ = ("explainers",)
    EXPLAINERS_FIELD_NUMBER: _ClassVar[int]
    explainers: _containers.RepeatedCompositeFieldContainer[Explainer]
    def __init__(self, explainers: _Optional[_Iterable[_Union[Explainer, _Mapping]]] = ...) -> None: ...

class ProposeExplanationsRequest(_message.Message):
    __slots__ = ("recorded_component", "explainer", "count", "seed", "temperature", "max_sequences")
    RECORDED_COMPONENT_FIELD_NUMBER: _ClassVar[int]
    EXPLAINER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    recorded_component: RecordedComponent
    explainer: str
    count: int
    seed: int
    temperature: float
    max_sequences: int
    def __init__(self, recorded_component: _Optional[_Union[RecordedComponent, _Mapping]] = ..., explainer: _Optional[str] = ..., count: _Optional[int] = ..., seed: _Optional[int] = ..., temperature: _Optional[float] = ..., max_sequences: _Optional[int] = ...) -> None: ...

class ProposedExplanation(_message.Message):
    __slots__ = ("explanation", "provenance", "train_correlation")
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    explanation: str
    provenance: _simulation_pb2.ExplanationProvenance
    train_correlation: float
    def __init__(self, explanation: _Optional[str] = ..., provenance: _Optional[_Union[_simulation_pb2.ExplanationProvenance, _Mapping]] = ..., train_correlation: _Optional[float] = ...) -> None: ...

class RejectedAnswer(_message.Message):
    __slots__ = ("reason", "beginning")
    REASON_FIELD_NUMBER: _ClassVar[int]
    BEGINNING_FIELD_NUMBER: _ClassVar[int]
    reason: str
    beginning: str
    def __init__(self, reason: _Optional[str] = ..., beginning: _Optional[str] = ...) -> None: ...

class ProposeExplanationsResponse(_message.Message):
    __slots__ = ("explanations", "dataset", "cost", "proposals", "rejected_answers")
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    PROPOSALS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    explanations: _containers.RepeatedScalarFieldContainer[str]
    dataset: str
    cost: _simulation_pb2.SimulationCost
    proposals: _containers.RepeatedCompositeFieldContainer[ProposedExplanation]
    rejected_answers: _containers.RepeatedCompositeFieldContainer[RejectedAnswer]
    def __init__(self, explanations: _Optional[_Iterable[str]] = ..., dataset: _Optional[str] = ..., cost: _Optional[_Union[_simulation_pb2.SimulationCost, _Mapping]] = ..., proposals: _Optional[_Iterable[_Union[ProposedExplanation, _Mapping]]] = ..., rejected_answers: _Optional[_Iterable[_Union[RejectedAnswer, _Mapping]]] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("max_tokens", "max_calls")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    max_calls: int
    def __init__(self, max_tokens: _Optional[int] = ..., max_calls: _Optional[int] = ...) -> None: ...

class BulkScoreExplanationsRequest(_message.Message):
    __slots__ = ("resume_key", "requests", "budget", "explanation_dataset", "max_concurrency")
    RESUME_KEY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_DATASET_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    resume_key: str
    requests: _containers.RepeatedCompositeFieldContainer[ScoreExplanationRequest]
    budget: Budget
    explanation_dataset: str
    max_concurrency: int
    def __init__(self, resume_key: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[ScoreExplanationRequest, _Mapping]]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., explanation_dataset: _Optional[str] = ..., max_concurrency: _Optional[int] = ...) -> None: ...

class BulkScoreExplanationsResponse(_message.Message):
    __slots__ = ("progress", "result", "summary", "spent")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    result: BulkResult
    summary: BulkSummary
    spent: _simulation_pb2.SimulationCost
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[BulkResult, _Mapping]] = ..., summary: _Optional[_Union[BulkSummary, _Mapping]] = ..., spent: _Optional[_Union[_simulation_pb2.SimulationCost, _Mapping]] = ...) -> None: ...

class BulkResult(_message.Message):
    __slots__ = ("position", "scored_explanation", "failure", "put", "put_failure", "reused", "failure_reason")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SCORED_EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    PUT_FAILURE_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_REASON_FIELD_NUMBER: _ClassVar[int]
    position: int
    scored_explanation: ScoredExplanation
    failure: str
    put: PutOutcome
    put_failure: str
    reused: bool
    failure_reason: str
    def __init__(self, position: _Optional[int] = ..., scored_explanation: _Optional[_Union[ScoredExplanation, _Mapping]] = ..., failure: _Optional[str] = ..., put: _Optional[_Union[PutOutcome, str]] = ..., put_failure: _Optional[str] = ..., reused: _Optional[bool] = ..., failure_reason: _Optional[str] = ...) -> None: ...

class BulkSummary(_message.Message):
    __slots__ = ("done", "failed", "left", "reused", "stopped_by", "not_put")
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    STOPPED_BY_FIELD_NUMBER: _ClassVar[int]
    NOT_PUT_FIELD_NUMBER: _ClassVar[int]
    done: int
    failed: int
    left: int
    reused: int
    stopped_by: BudgetLimit
    not_put: int
    def __init__(self, done: _Optional[int] = ..., failed: _Optional[int] = ..., left: _Optional[int] = ..., reused: _Optional[int] = ..., stopped_by: _Optional[_Union[BudgetLimit, str]] = ..., not_put: _Optional[int] = ...) -> None: ...
