"""What is asked to be scored, whichever way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from neuropil.simulation import v1
from services.simulation.calibration.calibrations import CalibrationKind
from services.simulation.calibration.fitted import FittedCalibration
from services.simulation.scoring.attention_pairs import DEFAULT_PAIRS_PER_SEQUENCE
from services.simulation.scoring.judged_choices import DEFAULT_LOW_ACTIVATION
from services.simulation.scoring.judgement_questions import DEFAULT_MAX_JUDGEMENTS
from services.simulation.scoring.labeled_sequences import LabeledSequences
from services.simulation.simulators.interface import DEFAULT_MIN_COVERAGE


class ScoringMethod(StrEnum):
    """How an explanation is scored."""

    SIMULATION = "simulation"
    DETECTION = "detection"
    FUZZING = "fuzzing"
    ATTENTION_PAIRS = "attention_pairs"


@dataclass(frozen=True, eq=False)
class GivenSequences:
    """Sequences with true activations that came with the request."""

    calibration: LabeledSequences
    scored: LabeledSequences


@dataclass(frozen=True, eq=False)
class ScoringRequest:
    """An explanation to score, on what, and how."""

    explanation: str
    source: v1.RecordedComponent | GivenSequences
    simulator: str = ""
    """Name; empty means the default."""
    method: ScoringMethod | None = None
    """None: by what the source is recorded."""
    calibration_kind: CalibrationKind | None = None
    """None: the deployment's default."""
    calibration: FittedCalibration | None = None
    """Applied instead of fitting one."""
    calibration_id: str = ""
    """The same, one that was kept."""
    max_sequences: int = 0
    """0: all."""
    seed: int = 0
    min_coverage: float = DEFAULT_MIN_COVERAGE
    max_judgements: int = DEFAULT_MAX_JUDGEMENTS
    pairs_per_sequence: int = DEFAULT_PAIRS_PER_SEQUENCE
    low_activation_threshold: float = DEFAULT_LOW_ACTIVATION
    explained_by: v1.ExplanationProvenance | None = None
    """Where the explanation comes from, as the caller says."""
