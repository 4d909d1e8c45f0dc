from buf.validate import validate_pb2 as _validate_pb2
from neuropil.common.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ActivationScale(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVATION_SCALE_UNSPECIFIED: _ClassVar[ActivationScale]
    ACTIVATION_SCALE_NEURON_ACTIVATIONS: _ClassVar[ActivationScale]
    ACTIVATION_SCALE_SIMULATED_NORMALIZED_ACTIVATIONS: _ClassVar[ActivationScale]
    ACTIVATION_SCALE_HUMAN_PREDICTED_ACTIVATIONS: _ClassVar[ActivationScale]

class CalibrationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALIBRATION_KIND_UNSPECIFIED: _ClassVar[CalibrationKind]
    CALIBRATION_KIND_NONE: _ClassVar[CalibrationKind]
    CALIBRATION_KIND_LINEAR: _ClassVar[CalibrationKind]
    CALIBRATION_KIND_PERCENTILE: _ClassVar[CalibrationKind]
    CALIBRATION_KIND_ISOTONIC: _ClassVar[CalibrationKind]

class ScoringMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORING_METHOD_UNSPECIFIED: _ClassVar[ScoringMethod]
    SCORING_METHOD_SIMULATION: _ClassVar[ScoringMethod]
    SCORING_METHOD_DETECTION: _ClassVar[ScoringMethod]
    SCORING_METHOD_FUZZING: _ClassVar[ScoringMethod]
    SCORING_METHOD_ATTENTION_PAIRS: _ClassVar[ScoringMethod]

class UndefinedReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNDEFINED_REASON_UNSPECIFIED: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_EMPTY: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_SINGLE_TOKEN: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_CONSTANT_SIMULATION: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_CONSTANT_ACTIVATIONS: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_NON_FINITE_INPUT: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_ZERO_ACTIVATIONS: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_SINGLE_CLASS: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_OUT_OF_RANGE: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_NO_POSITIVE_PREDICTIONS: _ClassVar[UndefinedReason]
    UNDEFINED_REASON_NO_PREDICTIONS: _ClassVar[UndefinedReason]
ACTIVATION_SCALE_UNSPECIFIED: ActivationScale
ACTIVATION_SCALE_NEURON_ACTIVATIONS: ActivationScale
ACTIVATION_SCALE_SIMULATED_NORMALIZED_ACTIVATIONS: ActivationScale
ACTIVATION_SCALE_HUMAN_PREDICTED_ACTIVATIONS: ActivationScale
CALIBRATION_KIND_UNSPECIFIED: CalibrationKind
CALIBRATION_KIND_NONE: CalibrationKind
CALIBRATION_KIND_LINEAR: CalibrationKind
CALIBRATION_KIND_PERCENTILE: CalibrationKind
CALIBRATION_KIND_ISOTONIC: CalibrationKind
SCORING_METHOD_UNSPECIFIED: ScoringMethod
SCORING_METHOD_SIMULATION: ScoringMethod
SCORING_METHOD_DETECTION: ScoringMethod
SCORING_METHOD_FUZZING: ScoringMethod
SCORING_METHOD_ATTENTION_PAIRS: ScoringMethod
UNDEFINED_REASON_UNSPECIFIED: UndefinedReason
UNDEFINED_REASON_EMPTY: UndefinedReason
UNDEFINED_REASON_SINGLE_TOKEN: UndefinedReason
UNDEFINED_REASON_CONSTANT_SIMULATION: UndefinedReason
UNDEFINED_REASON_CONSTANT_ACTIVATIONS: UndefinedReason
UNDEFINED_REASON_NON_FINITE_INPUT: UndefinedReason
UNDEFINED_REASON_ZERO_ACTIVATIONS: UndefinedReason
UNDEFINED_REASON_SINGLE_CLASS: UndefinedReason
UNDEFINED_REASON_OUT_OF_RANGE: UndefinedReason
UNDEFINED_REASON_NO_POSITIVE_PREDICTIONS: UndefinedReason
UNDEFINED_REASON_NO_PREDICTIONS: UndefinedReason

class Calibration(_message.Message):
    __slots__ = ("kind", "linear", "percentile", "isotonic", "fitted_token_count", "fitted_sequence_hashes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    LINEAR_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    ISOTONIC_FIELD_NUMBER: _ClassVar[int]
    FITTED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    FITTED_SEQUENCE_HASHES_FIELD_NUMBER: _ClassVar[int]
    kind: CalibrationKind
    linear: LinearCalibration
    percentile: PiecewiseLinearCalibration
    isotonic: PiecewiseLinearCalibration
    fitted_token_count: int
    fitted_sequence_hashes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[_Union[CalibrationKind, str]] = ..., linear: _Optional[_Union[LinearCalibration, _Mapping]] = ..., percentile: _Optional[_Union[PiecewiseLinearCalibration, _Mapping]] = ..., isotonic: _Optional[_Union[PiecewiseLinearCalibration, _Mapping]] = ..., fitted_token_count: _Optional[int] = ..., fitted_sequence_hashes: _Optional[_Iterable[int]] = ...) -> None: ...

class LinearCalibration(_message.Message):
    __slots__ = ("slope", "intercept")
    SLOPE_FIELD_NUMBER: _ClassVar[int]
    INTERCEPT_FIELD_NUMBER: _ClassVar[int]
    slope: float
    intercept: float
    def __init__(self, slope: _Optional[float] = ..., intercept: _Optional[float] = ...) -> None: ...

class PiecewiseLinearCalibration(_message.Message):
    __slots__ = ("simulated", "calibrated")
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    simulated: _tensor_pb2.Tensor
    calibrated: _tensor_pb2.Tensor
    def __init__(self, simulated: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., calibrated: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class SequenceSimulation(_message.Message):
    __slots__ = ("tokens", "expected_activations", "activation_scale", "distribution_probabilities", "distribution_values", "uncalibrated_expected_activations", "uncalibrated_distribution_values", "validity")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_SCALE_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_VALUES_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_EXPECTED_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_DISTRIBUTION_VALUES_FIELD_NUMBER: _ClassVar[int]
    VALIDITY_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    expected_activations: _tensor_pb2.Tensor
    activation_scale: ActivationScale
    distribution_probabilities: _tensor_pb2.Tensor
    distribution_values: _tensor_pb2.Tensor
    uncalibrated_expected_activations: _tensor_pb2.Tensor
    uncalibrated_distribution_values: _tensor_pb2.Tensor
    validity: ValidityReport
    def __init__(self, tokens: _Optional[_Iterable[str]] = ..., expected_activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., activation_scale: _Optional[_Union[ActivationScale, str]] = ..., distribution_probabilities: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., distribution_values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., uncalibrated_expected_activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., uncalibrated_distribution_values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., validity: _Optional[_Union[ValidityReport, _Mapping]] = ...) -> None: ...

class ValidityReport(_message.Message):
    __slots__ = ("valid_token_count", "missing_token_count", "malformed_token_count", "token_count_by_reason")
    class TokenCountByReasonEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VALID_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    MISSING_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    MALFORMED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_BY_REASON_FIELD_NUMBER: _ClassVar[int]
    valid_token_count: int
    missing_token_count: int
    malformed_token_count: int
    token_count_by_reason: _containers.ScalarMap[str, int]
    def __init__(self, valid_token_count: _Optional[int] = ..., missing_token_count: _Optional[int] = ..., malformed_token_count: _Optional[int] = ..., token_count_by_reason: _Optional[_Mapping[str, int]] = ...) -> None: ...

class SimulationCost(_message.Message):
    __slots__ = ("call_count", "prompt_tokens_computed", "prompt_tokens_reused", "completion_tokens", "seconds")
    CALL_COUNT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    call_count: int
    prompt_tokens_computed: int
    prompt_tokens_reused: int
    completion_tokens: int
    seconds: float
    def __init__(self, call_count: _Optional[int] = ..., prompt_tokens_computed: _Optional[int] = ..., prompt_tokens_reused: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("value", "undefined_reason", "confidence_interval")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNDEFINED_REASON_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    value: float
    undefined_reason: UndefinedReason
    confidence_interval: Interval
    def __init__(self, value: _Optional[float] = ..., undefined_reason: _Optional[_Union[UndefinedReason, str]] = ..., confidence_interval: _Optional[_Union[Interval, _Mapping]] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class Scores(_message.Message):
    __slots__ = ("ev_correlation", "r_squared", "absolute_deviation_explained")
    EV_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    R_SQUARED_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_DEVIATION_EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    ev_correlation: Score
    r_squared: Score
    absolute_deviation_explained: Score
    def __init__(self, ev_correlation: _Optional[_Union[Score, _Mapping]] = ..., r_squared: _Optional[_Union[Score, _Mapping]] = ..., absolute_deviation_explained: _Optional[_Union[Score, _Mapping]] = ...) -> None: ...

class ScoredSequenceSimulation(_message.Message):
    __slots__ = ("simulation", "true_activations", "scores")
    SIMULATION_FIELD_NUMBER: _ClassVar[int]
    TRUE_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    simulation: SequenceSimulation
    true_activations: _tensor_pb2.Tensor
    scores: Scores
    def __init__(self, simulation: _Optional[_Union[SequenceSimulation, _Mapping]] = ..., true_activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., scores: _Optional[_Union[Scores, _Mapping]] = ...) -> None: ...

class ScoredSimulation(_message.Message):
    __slots__ = ("sequences", "scores")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[ScoredSequenceSimulation]
    scores: Scores
    def __init__(self, sequences: _Optional[_Iterable[_Union[ScoredSequenceSimulation, _Mapping]]] = ..., scores: _Optional[_Union[Scores, _Mapping]] = ...) -> None: ...

class ScoreProvenance(_message.Message):
    __slots__ = ("simulator", "simulator_kind", "simulator_model", "prompt_version", "calibration", "dataset", "seed", "calibration_sequence_count", "scored_sequence_count", "cost", "software_version", "method", "judge_model", "judge_prompt_version", "interval_method", "interval_resample_count", "calibration_reused", "judgement_count", "pair_count", "explanation")
    SIMULATOR_FIELD_NUMBER: _ClassVar[int]
    SIMULATOR_KIND_FIELD_NUMBER: _ClassVar[int]
    SIMULATOR_MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCORED_SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    JUDGE_MODEL_FIELD_NUMBER: _ClassVar[int]
    JUDGE_PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_METHOD_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_RESAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_REUSED_FIELD_NUMBER: _ClassVar[int]
    JUDGEMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    PAIR_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    simulator: str
    simulator_kind: str
    simulator_model: str
    prompt_version: str
    calibration: Calibration
    dataset: str
    seed: int
    calibration_sequence_count: int
    scored_sequence_count: int
    cost: SimulationCost
    software_version: str
    method: ScoringMethod
    judge_model: str
    judge_prompt_version: str
    interval_method: str
    interval_resample_count: int
    calibration_reused: bool
    judgement_count: int
    pair_count: int
    explanation: ExplanationProvenance
    def __init__(self, simulator: _Optional[str] = ..., simulator_kind: _Optional[str] = ..., simulator_model: _Optional[str] = ..., prompt_version: _Optional[str] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., dataset: _Optional[str] = ..., seed: _Optional[int] = ..., calibration_sequence_count: _Optional[int] = ..., scored_sequence_count: _Optional[int] = ..., cost: _Optional[_Union[SimulationCost, _Mapping]] = ..., software_version: _Optional[str] = ..., method: _Optional[_Union[ScoringMethod, str]] = ..., judge_model: _Optional[str] = ..., judge_prompt_version: _Optional[str] = ..., interval_method: _Optional[str] = ..., interval_resample_count: _Optional[int] = ..., calibration_reused: _Optional[bool] = ..., judgement_count: _Optional[int] = ..., pair_count: _Optional[int] = ..., explanation: _Optional[_Union[ExplanationProvenance, _Mapping]] = ...) -> None: ...

class ExplanationProvenance(_message.Message):
    __slots__ = ("explainer", "explainer_kind", "model", "prompt_version", "seed", "sequence_count", "temperature")
    EXPLAINER_FIELD_NUMBER: _ClassVar[int]
    EXPLAINER_KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    explainer: str
    explainer_kind: str
    model: str
    prompt_version: str
    seed: int
    sequence_count: int
    temperature: float
    def __init__(self, explainer: _Optional[str] = ..., explainer_kind: _Optional[str] = ..., model: _Optional[str] = ..., prompt_version: _Optional[str] = ..., seed: _Optional[int] = ..., sequence_count: _Optional[int] = ..., temperature: _Optional[float] = ...) -> None: ...
