"""What every explainer is: sentences from a record's train split, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from services.simulation.explaining.evidence import Evidence
from services.simulation.simulators.interface import SimulationCost

MAX_EXPLANATIONS = 100
"""Most explanations that one call proposes."""


@dataclass(frozen=True, slots=True)
class ExplanationProvenance:
    """Where an explanation comes from."""

    explainer: str
    """Name in the configuration."""
    explainer_kind: str
    model: str
    """Model that wrote it, or the version of the rules that found it."""
    prompt_version: str
    """Empty where there is no prompt."""
    seed: int
    """Of this explanation's own random choices; 0 where it has none."""
    temperature: float
    """0 where nothing is drawn."""
    sequences_shown: int
    """Number of sequences that it was made from."""
    train_correlation: float | None = None
    """How well it predicts the sequences that it was made from; None where not measured."""


@dataclass(frozen=True, slots=True)
class ProposedExplanation:
    """A sentence on what makes a component active."""

    text: str
    provenance: ExplanationProvenance


@dataclass(frozen=True, slots=True)
class ProposalIssue:
    """An answer that is no explanation."""

    reason: str
    """In a few words, the same for all answers of one cause."""
    answer: str
    """The beginning of what was answered."""


@dataclass(frozen=True, slots=True)
class ProposedExplanations:
    """Explanations, best first, each once; there may be fewer than were asked for."""

    explanations: tuple[ProposedExplanation, ...]
    issues: tuple[ProposalIssue, ...] = ()
    """Answers that were left out, and why."""
    dataset: str = ""
    cost: SimulationCost = field(default_factory=SimulationCost)


class Explainer(Protocol):
    """Proposes explanations of a component. Calls may run at the same time."""

    kind: ClassVar[str]
    """Kind in the configuration."""
    description: ClassVar[str]
    """One sentence on what it does."""

    @property
    def name(self) -> str:
        """Name in the configuration."""
        ...

    @property
    def model(self) -> str:
        """Model that it asks, or the version of its rules."""
        ...

    @property
    def prompt_version(self) -> str:
        """Version of its prompts; empty where there are none."""
        ...

    async def propose(self, evidence: Evidence, count: int, seed: int) -> ProposedExplanations:
        """At most `count` explanations, best first; `seed` decides all random choices.

        Raises:
            FailedPrecondition: the record has nothing to explain (`NOTHING_TO_EXPLAIN`), or no
                answer of a model was an explanation (`NO_EXPLANATION`, with the reasons).
            Unavailable, ResourceExhausted: as the language model says.
        """
        ...
