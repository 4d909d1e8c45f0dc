"""From the tokens of a sequence to the rows that a local model reads, and where it predicts.

A sequence that is longer than what the model reads after the beginning of a prompt is cut into
windows, each read as a sequence of its own: nothing is repeated, so its first tokens are predicted
without what came before. A token that fits in no window, or that the tokenizer can't write, has an
issue instead of a prediction; what ids it has still stand in its place for the tokens after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.simulation.prompts.simulation import AllAtOncePrompt, OneAtATimePrompt
from services.simulation.simulators.interface import TokenIssue, TokenOutcome
from services.simulation.simulators.token_pieces import (
    MAX_PIECE_CHARACTERS,
    NOT_TEXT,
    NOTHING_LEFT,
    TOO_LONG,
    PieceIds,
    PieceTokenizer,
)

NO_PLACE = "the token takes more of the model's context than the prompt leaves"

_PIECES_A_LINE = 4
_IDS_HELD = 65_536
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """Ids that follow the prefix of a prompt, and the predictions that are read from them."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """After which of the ids a value is predicted."""
    tokens: tuple[int, ...]
    """For which token of the sequence, in the same order."""


@dataclass(frozen=True, slots=True)
class PlannedSequence:
    """Rows of a sequence, or of some of its tokens; each is in one of them or has an issue."""

    rows: tuple[PlannedRow, ...]
    issues: tuple[TokenIssue, ...]

    @property
    def own_ids(self) -> int:
        return sum(len(row.ids) for row in self.rows)


Group = list[tuple[int, PlannedSequence]]
"""Rows that run together, of sequences that are named by their position in a batch."""


class SequencePlanner(Protocol):
    """Makes rows of at most `room` ids from sequences."""

    def groups(self, batch: Sequence[Sequence[str]], room: int) -> Iterator[Group]:
        """The rows of a batch of sequences, as many at a time as are worth holding."""
        ...


@dataclass(frozen=True)
class AllAtOnceRows:
    """One row predicts as many tokens as there is room for."""

    prompt: AllAtOncePrompt
    tokenizer: PieceTokenizer

    def groups(self, batch: Sequence[Sequence[str]], room: int) -> Iterator[Group]:
        """All at once."""
        yield [(number, self.plan(tokens, room)) for number, tokens in enumerate(batch)]

    def plan(self, tokens: Sequence[str], room: int) -> PlannedSequence:
        """The rows of a sequence."""
        tab, hidden, end = (self.tokenizer.piece(text).ids for text in self._line())
        rows: list[PlannedRow] = []
        issues: list[TokenIssue] = []
        ids: list[int] = []
        positions: list[int] = []
        predicted: list[int] = []

        def close_window() -> None:
            if predicted:
                # Nothing is read after the last prediction.
                kept = tuple(ids[: positions[-1] + 1])
                rows.append(PlannedRow(kept, tuple(positions), tuple(predicted)))
            for of_window in (ids, positions, predicted):
                of_window.clear()

        for position, token in enumerate(tokens):
            piece = self.tokenizer.piece(token)
            needed = len(piece.ids) + len(tab)
            if piece.problem:
                issues.append(_issue(position, piece))
            if len(ids) + needed > room:
                close_window()
            if needed > room:
                if not piece.problem:
                    issues.append(TokenIssue(position, TokenOutcome.MISSING, NO_PLACE))
                continue
            ids += [*piece.ids, *tab]
            if not piece.problem:
                positions.append(len(ids) - 1)
                predicted.append(position)
            ids += [*hidden, *end]
        close_window()
        return PlannedSequence(tuple(rows), tuple(issues))

    def _line(self) -> tuple[str, ...]:
        return self.prompt.lines(["x"])[1:_PIECES_A_LINE]


@dataclass(frozen=True)
class OneAtATimeRows:
    """A row a token: the text up to it, of which the beginning is cut where it is too long."""

    prompt: OneAtATimePrompt
    tokenizer: PieceTokenizer

    def groups(self, batch: Sequence[Sequence[str]], room: int) -> Iterator[Group]:
        """So many prompts at a time that their texts take little memory."""
        for number, tokens in enumerate(batch):
            rows: list[PlannedRow] = []
            issues: list[TokenIssue] = []
            ids = 0
            for part in self._parts(tokens, room):
                rows += part.rows
                issues += part.issues
                ids += part.own_ids
                if ids >= _IDS_HELD:
                    yield [(number, PlannedSequence(tuple(rows), tuple(issues)))]
                    rows, issues, ids = [], [], 0
            yield [(number, PlannedSequence(tuple(rows), tuple(issues)))]

    def _parts(self, tokens: Sequence[str], room: int) -> Iterator[PlannedSequence]:
        """What there is of each token, in order."""
        pieces = [self.tokenizer.piece(token) for token in tokens]
        readable = [
            _REPLACEMENT if piece.problem in (NOT_TEXT, TOO_LONG) else token
            for token, piece in zip(tokens, pieces, strict=True)
        ]
        for position, piece in enumerate(pieces):
            if piece.problem:
                yield PlannedSequence((), (_issue(position, piece),))
                continue
            # Hardly a token has less than one id, so no more of them are of use.
            question = self._question(
                _ending(readable[max(0, position + 1 - room) : position + 1]), room
            )
            if question.problem:
                yield PlannedSequence((), (_issue(position, question),))
            else:
                row = PlannedRow(question.ids, (len(question.ids) - 1,), (position,))
                yield PlannedSequence((row,), ())

    def _question(self, tokens: Sequence[str], room: int) -> PieceIds:
        before, text, after = self.prompt.question_parts(tokens)
        first = [i for piece in before for i in self.tokenizer.piece(piece).ids]
        last = [i for piece in after for i in self.tokenizer.piece(piece).ids]
        left = room - len(first) - len(last)
        if left < len(self.tokenizer.piece(tokens[-1]).ids):
            return PieceIds((), NO_PLACE)
        whole = self.tokenizer.text(text)
        if whole.problem and whole.problem != NOTHING_LEFT and not whole.ids:
            return whole
        return PieceIds((*first, *whole.ids[max(0, len(whole.ids) - left) :], *last))


def _ending(tokens: Sequence[str]) -> Sequence[str]:
    """The last tokens, as many as a tokenizer takes at once: runs of a sign are few ids."""
    start, characters = len(tokens) - 1, len(tokens[-1])
    while start > 0 and characters + len(tokens[start - 1]) <= MAX_PIECE_CHARACTERS:
        start -= 1
        characters += len(tokens[start])
    return tokens[start:]


def _issue(position: int, piece: PieceIds) -> TokenIssue:
    return TokenIssue(position, TokenOutcome.MISSING, piece.problem)
