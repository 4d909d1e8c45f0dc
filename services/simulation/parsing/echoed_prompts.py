"""The distribution at each hidden value of a prompt that a server echoed with log probabilities.

The echoed tokens are laid along the text that was sent. Where they don't add up to it, nothing of
the answer can be trusted to a token. Where they do, the log probabilities beside the token that
begins at a hidden value say what could have stood there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.parsing.value_logprobs import Unreadable, value_distribution
from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.interface import TokenIssue, TokenOutcome

FloatArray = NDArray[np.float64]

OTHER_TEXT = "the server's tokens do not add up to the prompt"
TAB_FOLDED = "the tab before the value is part of a longer token"
NEWLINE_FOLDED = "a newline is part of a longer token"
NO_LOGPROBS = "the server gave no log probabilities there"

_LONGEST_FIRST_TOKEN = 256
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")


@dataclass(frozen=True, slots=True)
class HiddenValue:
    """Where a line of the prompt begins, and where its value; the tab is right before the value."""

    line: int
    value: int
    length: int
    """Characters of what stands for the value."""


@dataclass(frozen=True, slots=True)
class EchoedToken:
    """A token of the prompt, with what was likely in its place: None where the server says not."""

    text: str
    top_logprobs: Mapping[str, float] | None


def read_hidden_values(
    prompt: str, hidden: Sequence[HiddenValue], echoed: Sequence[EchoedToken]
) -> tuple[FloatArray, tuple[TokenIssue, ...]]:
    """Probabilities [hidden, 11], and an issue with a row of zeros where there is none.

    Raises:
        Unreadable: the tokens don't add up to the prompt.
    """
    starts = token_starts(prompt, [token.text for token in echoed])
    first = len(echoed) - len(starts)
    at = {start: first + number for number, start in enumerate(starts)}
    ordered = np.asarray([*starts, len(prompt)], dtype=np.int64)
    probabilities = np.zeros((len(hidden), NUM_VALUES))
    issues = []
    for position, place in enumerate(hidden):
        try:
            top_logprobs = _at_value(place, at, ordered, echoed)
            probabilities[position] = value_distribution(top_logprobs)
        except Unreadable as error:
            issues.append(TokenIssue(position, TokenOutcome.MALFORMED, str(error)))
    return probabilities, tuple(issues)


def token_starts(prompt: str, tokens: Sequence[str]) -> list[int]:
    """Character at which each token begins; one left out at the front has no part in the prompt.

    Servers put a token of their own before the prompt, write parts of a character as "bytes:\\x.."
    or as "\\ufffd", or drop the space in front of a word; where a line's tab and value are is plain
    all the same.

    Raises:
        Unreadable: the tokens aren't this prompt's.
    """
    for skipped in (0, 1):
        starts = _laid_along(prompt, tokens[skipped:])
        if starts is not None:
            return starts
    raise Unreadable(OTHER_TEXT)


def first_token(prompt: str, others: Sequence[str]) -> str:
    """What the tokens leave of the prompt's beginning, where they add up to all that follows it."""
    for length in range(min(len(prompt), _LONGEST_FIRST_TOKEN) + 1):
        if _laid_along(prompt[length:], others) is not None:
            return prompt[:length]
    return ""


def _laid_along(prompt: str, tokens: Sequence[str]) -> list[int] | None:
    starts: list[int] = []
    at = 0
    pending = b""
    halves = False
    for token in tokens:
        starts.append(at)
        part = _bytes_of(token)
        if part is not None and not prompt.startswith(token, at):
            pending += part
            try:
                text = pending.decode("utf-8")
            except UnicodeDecodeError:
                continue
            pending = b""
        elif _is_half(token) and not (token and prompt.startswith(token, at)):
            halves = True
            continue
        else:
            text = token
        if pending:
            return None
        if halves:
            at = _after_halves(prompt, at, text)
            starts[-1] = at
            halves = False
        if not prompt.startswith(text, at):
            if not prompt.startswith(" " + text, at):
                return None
            at += 1
        at += len(text)
    if halves:
        at = _after_halves(prompt, at, None)
    return starts if at == len(prompt) and not pending else None


def _is_half(token: str) -> bool:
    """Whether a server shows a part of a character so: with a sign in its place, or not at all."""
    return not token.strip("\ufffd")


def _after_halves(prompt: str, at: int, text: str | None) -> int:
    """Where halves of characters end: only what isn't ASCII can be made of them."""
    while at < len(prompt) and not prompt[at].isascii():
        if text is not None and prompt.startswith(text, at):
            break
        at += 1
    return at


def _bytes_of(token: str) -> bytes | None:
    match = _BYTES.fullmatch(token)
    return bytes.fromhex(match.group(1).replace("\\x", "")) if match else None


def _at_value(
    place: HiddenValue,
    at: Mapping[int, int],
    starts: NDArray[np.int64],
    echoed: Sequence[EchoedToken],
) -> Mapping[str, float]:
    tab = place.value - 1
    if place.value not in at or tab not in at:
        raise Unreadable(TAB_FOLDED)
    # The token that ends where the tab begins may not begin on the line before.
    number = int(np.searchsorted(starts, tab))
    if number and place.line < tab and starts[number - 1] < place.line:
        raise Unreadable(NEWLINE_FOLDED)
    ending = int(starts[np.searchsorted(starts, place.value, side="right")])
    if ending > place.value + place.length:
        raise Unreadable(NEWLINE_FOLDED)
    top_logprobs = echoed[at[place.value]].top_logprobs
    if top_logprobs is None:
        raise Unreadable(NO_LOGPROBS)
    return top_logprobs
