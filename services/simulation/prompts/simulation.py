"""The prompts of simulators: what a language model reads, and where it is to put its numbers.

A prompt is a row of pieces, texts that a simulator with the tokenizer at hand encodes each for
itself, so that no tokenizer makes one token of the tab and what stands beside it. What all prompts
of one file share comes first, then the explanation, then the sequence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from services.simulation.language_models.interface import Message, Prompt
from services.simulation.normalized_activations import MAX_NORMALIZED_ACTIVATION
from services.simulation.prompts import library
from services.simulation.prompts.record_format import line_pieces
from shared.errors import ConfigurationError

Pieces = tuple[str, ...]

Value = Annotated[int, msgspec.Meta(ge=0, le=MAX_NORMALIZED_ACTIVATION)]
Tokens = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class ExampleSequence(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A sequence of an example; numbers before `revealed_from` are shown as hidden."""

    tokens: Tokens
    activations: tuple[Value, ...]
    revealed_from: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        _check_lengths(self.tokens, self.activations)


class Example(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A unit with its explanation and some sequences."""

    explanation: str
    sequences: Annotated[tuple[ExampleSequence, ...], msgspec.Meta(min_length=1)]


class AllAtOnceFile(
    msgspec.Struct, tag_field="method", tag="all_at_once", forbid_unknown_fields=True, frozen=True
):
    """A prompt that hides all numbers of a sequence; a model predicts each in its place."""

    version: str
    instruction: str
    heading: str
    begin: str
    end: str
    hidden: str
    examples: tuple[Example, ...]


class SingleExample(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A text up to one token, and that token's number."""

    explanation: str
    tokens: Tokens
    activation: Value


class OneAtATimeFile(
    msgspec.Struct, tag_field="method", tag="one_at_a_time", forbid_unknown_fields=True, frozen=True
):
    """A prompt that asks for the number of the last token of a text."""

    version: str
    instruction: str
    heading: str
    text: str
    last_token: str
    value: str
    examples: tuple[SingleExample, ...]


class ChatExample(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A document with the answer that is wanted."""

    explanation: str
    tokens: Tokens
    activations: tuple[Value, ...]

    def __post_init__(self) -> None:
        _check_lengths(self.tokens, self.activations)


class ChatFile(
    msgspec.Struct, tag_field="method", tag="chat", forbid_unknown_fields=True, frozen=True
):
    """A conversation that asks for JSON."""

    version: str
    instruction: str
    examples: tuple[ChatExample, ...]


@dataclass(frozen=True, slots=True)
class PromptText:
    """A whole prompt as one text."""

    text: str
    values: tuple[int, ...]
    """Where in `text`, in characters, the number of each token stands or is to be written."""


class AllAtOncePrompt:
    """Hides all numbers of a sequence: what a model expects where each stands is its prediction."""

    method: Literal["all_at_once"] = "all_at_once"

    def __init__(self, file: AllAtOnceFile) -> None:
        self.version = library.provenance(file.version)
        self.hidden = file.hidden
        self._file = file
        pieces: list[str] = [file.instruction]
        for number, example in enumerate(file.examples, start=1):
            pieces.append(_heading(file.heading, example.explanation, number))
            for sequence in example.sequences:
                values = [
                    None if position < sequence.revealed_from else value
                    for position, value in enumerate(sequence.activations)
                ]
                lines = line_pieces(sequence.tokens, values, file.hidden)
                pieces += [file.begin, *lines, file.end]
        self.shared: Pieces = _filled(pieces)
        """The same for all explanations."""

    def explained(self, explanation: str) -> Pieces:
        """What follows on `shared` for an explanation, up to where the first token stands."""
        number = len(self._file.examples) + 1
        return _filled([_heading(self._file.heading, explanation, number), self._file.begin])

    def lines(self, tokens: Sequence[str]) -> Pieces:
        """Four pieces a token: the token, a tab, the mark of a hidden number, the line's end."""
        return line_pieces(tokens, [None] * len(tokens), self.hidden)

    def text(self, explanation: str, tokens: Sequence[str]) -> PromptText:
        """The whole prompt, with the place of the mark of each token."""
        before = "".join(self.shared + self.explained(explanation))
        values, length = [], len(before)
        lines = self.lines(tokens)
        for position, piece in enumerate(lines):
            if position % 4 == 2:
                values.append(length)
            length += len(piece)
        return PromptText(f"{before}{''.join(lines)}{self._file.end}", tuple(values))


class OneAtATimePrompt:
    """Asks for the number of one token, given the text up to it; no other number is shown."""

    method: Literal["one_at_a_time"] = "one_at_a_time"

    def __init__(self, file: OneAtATimeFile) -> None:
        self.version = library.provenance(file.version)
        self._file = file
        pieces: list[str] = [file.instruction]
        for number, example in enumerate(file.examples, start=1):
            pieces.append(_heading(file.heading, example.explanation, number))
            pieces += [*self.question(example.tokens), str(example.activation), "\n"]
        self.shared: Pieces = _filled(pieces)
        """The same for all explanations."""

    def explained(self, explanation: str) -> Pieces:
        """What follows on `shared` for an explanation."""
        return (_heading(self._file.heading, explanation, len(self._file.examples) + 1),)

    def question(self, tokens: Sequence[str]) -> Pieces:
        """What follows on the explanation: the text up to its last token, which is asked about."""
        before, text, after = self.question_parts(tokens)
        return _filled([*before, text, *after])

    def question_parts(self, tokens: Sequence[str]) -> tuple[Pieces, str, Pieces]:
        """The same in three: what stands before the text, the text, and what follows on it."""
        file = self._file
        asked = file.value.removesuffix("\n")
        end = file.value[len(asked) :]
        return (
            _filled([file.text]),
            "".join(tokens),
            _filled([file.last_token, tokens[-1], asked, end]),
        )

    def text(self, explanation: str, tokens: Sequence[str]) -> PromptText:
        """The whole prompt about the last of the tokens; its number is to be written at the end."""
        text = "".join(self.shared + self.explained(explanation) + self.question(tokens))
        return PromptText(text, (len(text),))


class ChatPrompt:
    """Asks a chat model for a JSON object with a number a token."""

    method: Literal["chat"] = "chat"

    def __init__(self, file: ChatFile) -> None:
        self.version = library.provenance(file.version)
        messages = [Message("system", file.instruction)]
        for example in file.examples:
            answer = {
                "activations": [
                    {"token": token, "activation": activation}
                    for token, activation in zip(example.tokens, example.activations, strict=True)
                ]
            }
            messages += [
                Message("user", _document(example.explanation, example.tokens)),
                Message("assistant", json.dumps(answer, ensure_ascii=False)),
            ]
        self._shared = tuple(messages)

    def prompt(self, explanation: str, tokens: Sequence[str]) -> Prompt:
        """The conversation up to where the model answers."""
        return Prompt(self._shared, (Message("user", _document(explanation, tokens)),))

    def answer_schema(self, tokens: int) -> dict[str, Any]:
        """JSON schema of the answer for so many tokens."""
        item = {
            "type": "object",
            "properties": {
                "token": {"type": "string"},
                "activation": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": MAX_NORMALIZED_ACTIVATION,
                },
            },
            "required": ["token", "activation"],
            "additionalProperties": False,
        }
        activations = {"type": "array", "items": item, "minItems": tokens, "maxItems": tokens}
        return {
            "type": "object",
            "properties": {"activations": activations},
            "required": ["activations"],
            "additionalProperties": False,
        }


SimulationPrompt = AllAtOncePrompt | OneAtATimePrompt | ChatPrompt
PromptT = TypeVar("PromptT", AllAtOncePrompt, OneAtATimePrompt, ChatPrompt)

PROMPTS: dict[str, tuple[str, ...]] = {
    "all_at_once": ("few_shot-1", "compact-1"),
    "one_at_a_time": ("one_at_a_time-1", "one_at_a_time_compact-1"),
    "chat": ("chat-1",),
}
"""The prompt files of a method, the better ones first: the first that a model can read is taken
where a configuration names none."""


def logprob_prompt(name: str, method: str) -> AllAtOncePrompt | OneAtATimePrompt:
    """The prompt of that name for a method; for `auto`, one of either.

    Raises:
        ConfigurationError: there is none of that name, or it is one for another method.
    """
    if method == "one_at_a_time":
        return simulation_prompt(name, OneAtATimePrompt)
    try:
        return simulation_prompt(name, AllAtOncePrompt)
    except ConfigurationError:
        if method != "auto" or name not in library.names("one_at_a_time"):
            raise
    return simulation_prompt(name, OneAtATimePrompt)


def simulation_prompt(name: str, as_: type[PromptT]) -> PromptT:
    """The prompt of that name.

    Raises:
        ConfigurationError: there is none of that name, or it is one for another method.
    """
    prompt = _prompt(name)
    if not isinstance(prompt, as_):
        raise ConfigurationError(
            "prompt", f"{name} is a prompt for the method {prompt.method}, not {as_.method}"
        )
    return prompt


@cache
def _prompt(name: str) -> SimulationPrompt:
    file: AllAtOnceFile | OneAtATimeFile | ChatFile = library.load(
        name, AllAtOnceFile | OneAtATimeFile | ChatFile
    )
    match file:
        case AllAtOnceFile():
            return AllAtOncePrompt(file)
        case OneAtATimeFile():
            return OneAtATimePrompt(file)
        case _:
            return ChatPrompt(file)


def _heading(heading: str, explanation: str, number: int) -> str:
    # An explanation is one line: what it quotes must not pass for the lines of a sequence.
    line = " ".join(part.strip() for part in explanation.splitlines() if part.strip())
    return heading.format(number=number, explanation=line.replace("\t", " "))


def _document(explanation: str, tokens: Sequence[str]) -> str:
    content = {"reacts_to": explanation, "document": "".join(tokens), "tokens": list(tokens)}
    return json.dumps(content, ensure_ascii=False)


def _filled(pieces: Sequence[str]) -> Pieces:
    return tuple(piece for piece in pieces if piece)


def _check_lengths(tokens: Sequence[str], activations: Sequence[int]) -> None:
    if len(tokens) != len(activations):
        raise ValueError(f"{len(tokens)} tokens, but {len(activations)} activations")
