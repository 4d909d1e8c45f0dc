"""What every explainer is: sentences from a record's train split, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from services.simulation.errors import InvalidInput
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
    """Language model that wrote it, with its version; empty where none did."""
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


@dataclass(frozen=True, slots=True)
class ProposalOptions:
    """What is asked of an explainer."""

    count: int = 1
    """Most explanations, 1 to `MAX_EXPLANATIONS`."""
    seed: int = 0
    """Of all random choices."""
    temperature: float | None = None
    """Of a language model, 0 to 2; None means 1 for several explanations and 0 for one."""
    max_sequences: int = 0
    """Most sequences to look at; 0 means the explainer's own number."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_EXPLANATIONS:
            raise InvalidInput(
                f"count is {self.count}; 1 to {MAX_EXPLANATIONS} explanations are proposed",
                field="count",
            )
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise InvalidInput(
                f"temperature is {self.temperature}; 0 to 2 is possible", field="temperature"
            )
        if self.max_sequences < 0:
            raise InvalidInput(
                f"max_sequences is {self.max_sequences}; 0 or more is possible",
                field="max_sequences",
            )


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
        """Language model that it asks, with its version; empty where it asks none."""
        ...

    @property
    def prompt_version(self) -> str:
        """Version of its prompts; empty where there are none."""
        ...

    @property
    def state(self) -> str:
        """`loading`, `ready`, or `failed: ` and why."""
        ...

    async def propose(self, evidence: Evidence, options: ProposalOptions) -> ProposedExplanations:
        """At most `options.count` explanations, best first.

        Raises:
            FailedPrecondition: the record has nothing to explain (`NOTHING_TO_EXPLAIN`), or no
                answer of a model was an explanation (`NO_EXPLANATION`, with the reasons).
            Unavailable, ResourceExhausted: as the language model says.
        """
        ...
