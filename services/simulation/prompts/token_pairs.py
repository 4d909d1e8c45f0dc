"""The prompt of the judge of token pairs: does a marked pair fit what a head looks for?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.simulation.language_models.interface import Message, Prompt
from services.simulation.prompts import library
from services.simulation.prompts.judging import NO, YES, JudgingFile
from services.simulation.simulators.words import readable

PROMPT = "attention_pairs-1"


@dataclass(frozen=True, slots=True)
class PairMarks:
    """What stands around the attended-to token, and around the attending one."""

    attended: tuple[str, str] = ("**", "**")
    attending: tuple[str, str] = ("[[", "]]")

    @classmethod
    def absent_from(cls, text: str) -> PairMarks:
        """Marks that don't occur in `text`, so that none of its signs passes for one."""
        sides = (("**", "**"), ("@@", "@@"), ("§§", "§§"))
        brackets = (("[[", "]]"), ("{{", "}}"), ("⟦", "⟧"))
        free_sides = (pair for pair in sides if pair[0] not in text)
        free_brackets = (pair for pair in brackets if pair[0] not in text and pair[1] not in text)
        # Longer than the longest run of its own sign, so that no text can hold it.
        width = 3
        while any(sign * width in text for sign in "§⟦⟧"):
            width += 1
        return cls(
            next(free_sides, ("§" * width, "§" * width)),
            next(free_brackets, ("⟦" * width, "⟧" * width)),
        )

    def around(self, tokens: Sequence[str], attending: int, attended: int) -> str:
        """The sequence with its pair marked: **to**, [[from]], or [[**both**]]."""
        parts = list(tokens)
        for position, (opening, closing) in (
            (attended, self.attended),
            (attending, self.attending),
        ):
            parts[position] = f"{opening}{parts[position]}{closing}"
        return "".join(parts)

    def instead(self, text: str) -> str:
        """A text of a prompt file, which has the usual marks, with these."""
        # The bracketed ones first: other marks may have a bracket's or a star's sign.
        for known, own in zip(PairMarks().attending, self.attending, strict=True):
            text = text.replace(known, own)
        return text.replace(PairMarks().attended[0], self.attended[0])


class TokenPairPrompt:
    """The prompt of one task: the same instruction and examples for all pairs."""

    def __init__(self, marks: PairMarks | None = None) -> None:
        self._file = library.load(PROMPT, JudgingFile)
        self.version = library.provenance(PROMPT)
        self._marks = marks or PairMarks()
        messages = [Message("system", f"{self._marks.instead(self._file.instruction)}\n")]
        for example in self._file.examples:
            text = self._marks.instead(example.text)
            messages.append(self._question(example.explanation, text))
            messages.append(Message("assistant", f"{YES if example.answer else NO}\n\n"))
        self._shared = tuple(messages)

    def prompt(
        self, explanation: str, tokens: Sequence[str], attending: int, attended: int
    ) -> Prompt:
        """The question about one pair of tokens."""
        text = self.text(tokens, attending, attended)
        return Prompt(self._shared, (self._question(explanation, text),))

    def text(self, tokens: Sequence[str], attending: int, attended: int) -> str:
        """The sequence with its pair marked: **to**, [[from]], or [[**both**]]."""
        marked = self._marks.around(tokens, attending, attended)
        return readable(marked).replace("\x00", "\ufffd")

    def _question(self, explanation: str, text: str) -> Message:
        # The text is put in last: what it holds is never read as a placeholder.
        before, after = self._file.question.split("{text}")
        sentence = " ".join(explanation.split())
        before = before.replace("{explanation}", sentence)
        return Message("user", f"{before}{text}{after}")
