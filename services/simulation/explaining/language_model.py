"""The language model explainer: shows a model the train split, and asks for a sentence."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from services.simulation.explaining.answers import (
    NoExplanation,
    beginning,
    explanation_of,
    same,
)
from services.simulation.explaining.context import limited, require_activity
from services.simulation.explaining.evidence import Evidence, TokenPairEvidence
from services.simulation.explaining.interface import (
    ExplanationProvenance,
    ProposalIssue,
    ProposalOptions,
    ProposedExplanation,
    ProposedExplanations,
)
from services.simulation.language_models.interface import (
    Generation,
    GenerationOptions,
    Prompt,
)
from services.simulation.normalized_activations import normalize_activations
from services.simulation.prompts import library
from services.simulation.prompts.explaining import (
    ShownPair,
    ShownSequence,
    token_pairs_prompt,
    tokens_prompt,
)
from services.simulation.prompts.token_pairs import PairMarks
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs
from services.simulation.simulators.interface import SimulationCost, Simulator
from shared.errors import FailedPrecondition
from shared.formats.token_pairs import row_starts

TOKENS_PROMPT, TOKEN_PAIRS_PROMPT = "explain_tokens-1", "explain_token_pairs-1"

_MOST_SEQUENCES = 5
"""Sequences shown where a request doesn't say."""
_MOST_TOKENS = 64
"""Of a sequence, around its peak."""
NEXT_ONES = ("\n\nUnit ", "\n\nHead ")
"""How a model goes on that makes up the next one of the prompt's examples."""
_PAIRS_A_SEQUENCE = 3
_LONGEST_PASSAGE = 256
"""Tokens of a pair's passage; of a longer one what lies between its tokens is left out."""
_BEFORE, _AFTER = _MOST_TOKENS // 4, _MOST_TOKENS // 8
"""Tokens shown around each token of a pair."""
_LEFT_OUT = " ..."
_MAX_ANSWER_TOKENS = 80
_AT_ONCE = 4
_SEEDS = 2**63
_ATTEMPTS = 2
"""Most answers asked for, for each explanation that is wanted."""


class LanguageModelExplainer:
    """Asks the language model of a configured simulator."""

    kind: ClassVar[str] = "language_model"
    description: ClassVar[str] = (
        "Shows a language model tokens with activations, or marked token pairs, of the record's "
        "train split, and asks for a sentence; as good as the model is."
    )
    prompt_version = library.provenance(TOKENS_PROMPT)

    def __init__(self, name: str, simulator: Simulator) -> None:
        self.name = name
        self._simulator = simulator

    @property
    def model(self) -> str:
        """The language model's version; empty where the simulator has none."""
        language_model = self._simulator.language_model
        return language_model.version if language_model is not None else ""

    @property
    def state(self) -> str:
        """The language model's: it may explain where it can't simulate."""
        language_model = self._simulator.language_model
        return language_model.state if language_model is not None else self._simulator.state

    async def propose(self, evidence: Evidence, options: ProposalOptions) -> ProposedExplanations:
        """At most `options.count` explanations, those first that the model gave most often.

        Where a temperature draws answers, up to twice as many are asked for as are wanted, each
        with a seed of its own: `options.seed`, and the numbers after it.

        Raises:
            FailedPrecondition: `NOTHING_TO_EXPLAIN`, `NO_EXPLANATION`, or `NO_LANGUAGE_MODEL` where
                the simulator asks none.
            Unavailable, ResourceExhausted: as the language model says.
        """
        language_model = self._simulator.language_model
        if language_model is None:
            raise FailedPrecondition(
                f"explainer {self.name!r} needs a language model, but simulator "
                f"{self._simulator.name!r} asks none",
                reason="NO_LANGUAGE_MODEL",
            )
        # Not in the event loop: records of heads have millions of token pairs.
        asked = await asyncio.to_thread(_question, evidence, options.max_sequences)
        temperature = options.temperature
        if temperature is None:
            temperature = 1.0 if options.count > 1 else 0.0
        found = _Answers(options, temperature)
        while not found.enough:
            seed, count = found.next_seeds()
            drawing = GenerationOptions(
                max_tokens=_MAX_ANSWER_TOKENS, temperature=temperature, seed=seed, stop=NEXT_ONES
            )
            # Asked for together, they share the computation of the prompt, and of each token.
            answers = await language_model.generate([asked.prompt] * count, drawing)
            for number, answer in enumerate(answers):
                found.add(seed + number, answer)
        ranked = found.ranked()
        if not ranked:
            raise FailedPrecondition(
                f"{language_model.version} gave no explanation: {found.reasons}",
                reason="NO_EXPLANATION",
            )
        return ProposedExplanations(
            tuple(
                ProposedExplanation(
                    text,
                    ExplanationProvenance(
                        explainer=self.name,
                        explainer_kind=self.kind,
                        model=language_model.version,
                        prompt_version=asked.version,
                        seed=seed,
                        temperature=temperature,
                        sequences_shown=asked.sequences,
                    ),
                )
                for text, seed in ranked[: options.count]
            ),
            tuple(found.issues),
            evidence.dataset,
            found.cost,
        )


class _Answers:
    """What was answered so far, and whether to go on."""

    def __init__(self, options: ProposalOptions, temperature: float) -> None:
        self._wanted = options.count
        # Without a temperature every answer is the same.
        self._most = options.count * _ATTEMPTS if temperature > 0 else 1
        self._seed = options.seed
        self._asked = 0
        self._texts: dict[str, tuple[str, int]] = {}
        self._votes: Counter[str] = Counter()
        self.issues: list[ProposalIssue] = []
        self.cost = SimulationCost()

    @property
    def enough(self) -> bool:
        return len(self._texts) >= self._wanted or self._asked >= self._most

    def next_seeds(self) -> tuple[int, int]:
        """The first seed of the next answers, and how many."""
        missing = min(self._wanted - len(self._texts), self._most - self._asked, _AT_ONCE)
        first = (self._seed + self._asked) % _SEEDS
        # Those after the largest one begin again at 0, at the next turn.
        missing = min(missing, _SEEDS - first)
        self._asked += missing
        return first, missing

    def add(self, seed: int, answer: Generation) -> None:
        self.cost += answer.cost
        try:
            text = explanation_of(answer)
        except NoExplanation as error:
            self.issues.append(ProposalIssue(str(error), beginning(answer.text)))
            return
        key = same(text)
        self._votes[key] += 1
        if key in self._texts:
            self.issues.append(ProposalIssue("the same as another answer", beginning(text)))
        else:
            self._texts[key] = (text, seed)

    def ranked(self) -> list[tuple[str, int]]:
        """Text and seed, most votes first, then in the order of seeds."""
        return [self._texts[key] for key in sorted(self._texts, key=lambda key: -self._votes[key])]

    @property
    def reasons(self) -> str:
        counts = Counter(issue.reason for issue in self.issues)
        return ", ".join(f"{reason} ({count})" for reason, count in sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class _Question:
    prompt: Prompt
    version: str
    sequences: int
    """How many the prompt shows something of."""


def _question(evidence: Evidence, max_sequences: int) -> _Question:
    evidence = limited(evidence, max_sequences or _MOST_SEQUENCES)
    require_activity(evidence)
    if isinstance(evidence, TokenPairEvidence):
        pairs = evidence.train + evidence.others
        marks = PairMarks.absent_from("\n".join("".join(tokens) for tokens in pairs.tokens))
        passages, count = strongest_pairs(pairs, marks)
        return _Question(
            token_pairs_prompt(TOKEN_PAIRS_PROMPT, passages, marks),
            library.provenance(TOKEN_PAIRS_PROMPT),
            count,
        )
    sequences = evidence.train + evidence.others
    largest = _largest(sequences.activations)
    shown = [
        ShownSequence.normalized(tokens[around], values[around], largest)
        for tokens, values in zip(sequences.tokens, sequences.activations, strict=True)
        if len(tokens)
        for around in [_around_peak(values)]
    ]
    return _Question(
        tokens_prompt(TOKENS_PROMPT, shown), library.provenance(TOKENS_PROMPT), len(shown)
    )


def strongest_pairs(pairs: LabeledTokenPairs, marks: PairMarks) -> tuple[list[ShownPair], int]:
    """The strongest pairs of each sequence as marked passages, and of how many sequences.

    Passages come strongest first.
    """
    largest = _largest(pairs.activations)
    found: list[tuple[float, str]] = []
    sequences = 0
    for position, (tokens, values) in enumerate(zip(pairs.tokens, pairs.activations, strict=True)):
        starts = row_starts(len(tokens), pairs.caps[position])
        strongest = _strongest(values)
        sequences += bool(strongest)
        for index in strongest:
            source = int(np.searchsorted(starts, index, side="right")) - 1
            text = _passage(tokens, source, index - int(starts[source]), marks)
            found.append((float(values[index]), text))
    found.sort(key=lambda pair: -pair[0])
    strengths = normalize_activations([strength for strength, _ in found], largest)
    return [
        ShownPair(text, value) for (_, text), value in zip(found, strengths.tolist(), strict=True)
    ], sequences


def _strongest(values: NDArray[np.float64]) -> list[int]:
    """Where the largest finite values above 0 are, in descending order, the first of equal ones."""
    strength = np.where(np.isfinite(values) & (values > 0), values, 0.0)
    most = min(_PAIRS_A_SEQUENCE, int(np.count_nonzero(strength)))
    if not most:
        return []
    least = np.partition(strength, -most)[-most]
    above = np.flatnonzero(strength > least)
    equal = np.flatnonzero(strength == least)[: most - len(above)]
    ordered = above[np.argsort(-strength[above], kind="stable")]
    return [*ordered.tolist(), *equal.tolist()]


def _passage(tokens: Sequence[str], attending: int, attended: int, marks: PairMarks) -> str:
    """Both tokens, and some text around each."""
    first = max(0, attended - _BEFORE)
    last = attending + _AFTER
    shown = list(tokens[first : last + 1])
    source, target = attending - first, attended - first
    if last - first > _LONGEST_PASSAGE:
        near, far = target + _AFTER + 1, source - _BEFORE
        shown[near:far] = [_LEFT_OUT]
        source += near + 1 - far
    return marks.around(shown, source, target)


def _around_peak(values: NDArray[np.float64]) -> slice:
    """The part of a long sequence that holds its peak, three quarters of it before the peak."""
    peak = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    first = max(0, min(peak - 3 * _MOST_TOKENS // 4, len(values) - _MOST_TOKENS))
    return slice(first, first + _MOST_TOKENS)


def _largest(activations: Sequence[NDArray[np.float64]]) -> float:
    values = np.concatenate([np.zeros(0), *activations])
    return float(values[np.isfinite(values)].max())
