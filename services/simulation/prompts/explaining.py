"""Prompts of explainers that ask a language model: passages with numbers, then the sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.simulation.language_models.interface import Message, Prompt
from services.simulation.normalized_activations import (
    MAX_NORMALIZED_ACTIVATION,
    normalize_activations,
)
from services.simulation.prompts import library
from services.simulation.prompts.record_format import END, START, line_pieces
from services.simulation.prompts.token_pairs import PairMarks
from services.simulation.simulators.words import readable

ANSWER = "Explanation:\n"
"""What a model's answer follows on."""

Value = Annotated[int, msgspec.Meta(ge=0, le=MAX_NORMALIZED_ACTIVATION)]
Tokens = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class ShownSequence(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Tokens with whole numbers from 0 to 10; None where an activation isn't finite."""

    tokens: Tokens
    activations: tuple[Value | None, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.activations):
            raise ValueError(f"{len(self.tokens)} tokens, but {len(self.activations)} activations")

    @classmethod
    def normalized(
        cls, tokens: Sequence[str], activations: NDArray[np.float64], largest: float
    ) -> ShownSequence:
        """Activations on the scale 0 to 10, where `largest` is 10."""
        finite = np.isfinite(activations)
        values = normalize_activations(np.where(finite, activations, 0.0), largest)
        return cls(
            tuple(tokens),
            tuple(
                int(value) if known else None
                for value, known in zip(values.tolist(), finite.tolist(), strict=True)
            ),
        )


class ShownPair(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A passage with a marked token pair."""

    text: str
    strength: Value


class TokensExample(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A unit with its explanation."""

    sequences: tuple[ShownSequence, ...]
    explanation: str


class TokenPairsExample(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A head with its explanation."""

    passages: tuple[ShownPair, ...]
    explanation: str


class ExplainTokensFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A file for components by token."""

    version: str
    instruction: str
    heading: str
    examples: tuple[TokensExample, ...]


class ExplainTokenPairsFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A file for components by token pair."""

    version: str
    instruction: str
    heading: str
    examples: tuple[TokenPairsExample, ...]


def tokens_prompt(name: str, sequences: Sequence[ShownSequence]) -> Prompt:
    """The question about a component by token."""
    file = library.load(name, ExplainTokensFile)
    examples = [(_sequences(example.sequences), example.explanation) for example in file.examples]
    return _prompt(file.instruction, file.heading, examples, _sequences(sequences))


def token_pairs_prompt(name: str, passages: Sequence[ShownPair], marks: PairMarks) -> Prompt:
    """The question about a component by token pair; its passages have these marks."""
    file = library.load(name, ExplainTokenPairsFile)
    examples = [
        (marks.instead(_passages(example.passages)), example.explanation)
        for example in file.examples
    ]
    instruction = marks.instead(file.instruction)
    return _prompt(instruction, file.heading, examples, _passages(passages))


def _prompt(
    instruction: str, heading: str, examples: Sequence[tuple[str, str]], asked: str
) -> Prompt:
    messages = [Message("system", f"{instruction}\n")]
    for number, (shown, explanation) in enumerate(examples, start=1):
        messages += [
            Message("user", f"{heading.replace('{number}', str(number))}{shown}{ANSWER}"),
            Message("assistant", f"{explanation}\n\n"),
        ]
    last = heading.replace("{number}", str(len(examples) + 1))
    own = Message("user", f"{last}{asked}{ANSWER}")
    return Prompt(tuple(messages), (own,))


def _sequences(sequences: Sequence[ShownSequence]) -> str:
    parts = []
    for sequence in sequences:
        tokens = [_one_line(token) for token in sequence.tokens]
        parts.append(f"{START}\n{''.join(line_pieces(tokens, sequence.activations))}{END}\n")
    return "".join(parts)


def _passages(passages: Sequence[ShownPair]) -> str:
    return "".join(f"{_one_line(passage.text)}\t{passage.strength}\n" for passage in passages)


def _one_line(text: str) -> str:
    shown = (
        readable(text).replace("\\", "\\\\") if "\\n" in text or "\\t" in text else readable(text)
    )
    for sign, escape in (("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r"), ("\x00", "\\0")):
        shown = shown.replace(sign, escape)
    return shown
