"""Prompts of the judge: is a sequence active, or are marked tokens the active ones?

The answer is one digit after a line break, which every tokenizer has as one token, with or without
a chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from services.simulation.language_models.interface import Message, Prompt
from services.simulation.prompts import library
from services.simulation.simulators.words import readable

NO, YES = "0", "1"
CHOICES = (NO, YES)


class JudgingExample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text with the right answer; `[[` and `]]` stand for the marks."""

    explanation: str
    text: str
    answer: bool


class JudgingFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of `services/simulation/prompts` for a judge."""

    version: str
    instruction: str
    """`{open}` and `{close}` stand for the marks."""
    question: str
    """`{explanation}` and `{text}` stand for what they say; it ends where the answer begins."""
    examples: list[JudgingExample]


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands before and after a marked token."""

    open: str = "<<"
    close: str = ">>"

    @classmethod
    def absent_from(cls, text: str) -> Marks:
        """Marks that don't occur in `text`, so that none of its signs passes for one."""
        for opening, closing in (("<<", ">>"), ("[[", "]]"), ("{{", "}}"), ("«", "»"), ("⟦", "⟧")):
            if opening not in text and closing not in text:
                return cls(opening, closing)
        # Longer than the longest run of its own signs, so that no text can hold it.
        width = 2
        while "⟦" * width in text or "⟧" * width in text:
            width += 1
        return cls("⟦" * width, "⟧" * width)


class JudgingPrompt:
    """The prompt of one task: the same instruction and examples for all that it asks."""

    def __init__(self, name: str, marks: Marks) -> None:
        self._file = library.load(name, JudgingFile)
        self.version = library.provenance(name)
        self._marks = marks
        self._shared = self._shared_messages()

    def prompt(self, explanation: str, tokens: Sequence[str], marked: Sequence[int] = ()) -> Prompt:
        """The question about one sequence."""
        return Prompt(self._shared, (self._question(explanation, self.text(tokens, marked)),))

    def text(self, tokens: Sequence[str], marked: Sequence[int]) -> str:
        """The sequence as a judge reads it; marked tokens that stand together have one mark."""
        chosen = set(marked)
        parts = []
        for position, token in enumerate(tokens):
            begins = position in chosen and position - 1 not in chosen
            ends = position in chosen and position + 1 not in chosen
            parts.append(
                f"{self._marks.open if begins else ''}{token}{self._marks.close if ends else ''}"
            )
        return readable("".join(parts)).replace("\x00", "\ufffd")

    def _shared_messages(self) -> tuple[Message, ...]:
        marks = self._marks
        instruction = self._file.instruction.replace("{open}", marks.open)
        messages = [Message("system", instruction.replace("{close}", marks.close) + "\n")]
        for example in self._file.examples:
            text = example.text.replace("[[", marks.open).replace("]]", marks.close)
            messages.append(self._question(example.explanation, text))
            messages.append(Message("assistant", f"{YES if example.answer else NO}\n\n"))
        return tuple(messages)

    def _question(self, explanation: str, text: str) -> Message:
        # The text is put in last: what it holds is never read as a placeholder.
        before, after = self._file.question.split("{text}")
        before = before.replace("{explanation}", " ".join(explanation.split()))
        after = after.replace("{explanation}", " ".join(explanation.split()))
        return Message("user", f"{before}{text}{after}")
