"""Literal cues in an explanation: quoted words, word parts, kinds of signs.

Sentence embeddings know meaning and little spelling. What an explanation says literally, such as
"the word 'unto'", "words that end in -ing", "commas" or "tokens after 'of'", is matched by rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.simulators.words import WordSequence, content_words

_QUOTED = re.compile(
    r"\"([^\"]{1,80})\"|“([^”]{1,80})”|‘([^’]{1,80})’|`([^`]{1,80})`|«([^»]{1,80})»"
    # An apostrophe quotes only where no letter stands before it: "lion's" quotes nothing.
    r"|(?<!\w)'([^'\n]{1,80})'(?!\w)"
)
_BARE_SUFFIX = re.compile(r"(?<![\w-])-([a-z]{1,8})\b")
_BARE_PREFIX = re.compile(r"\b([a-z]{1,8})-(?![\w-])")
_ENDS = re.compile(r"\b(end|ends|ending|endings|suffix|suffixes)\b", re.IGNORECASE)
_STARTS = re.compile(
    r"\b(start|starts|starting|begin|begins|beginning|prefix|prefixes)\b", re.IGNORECASE
)
_AFTER = re.compile(r"\b(after|following|follows?|preceded by)\b", re.IGNORECASE)
_BEFORE = re.compile(r"\b(before|preceding|precedes?|followed by)\b", re.IGNORECASE)
_PHRASE = re.compile(r"\bphrases?\b", re.IGNORECASE)
_LISTED = re.compile(r"[\s,;/]*(?:\b(?:and|or)\b[\s,/]*)*", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[^\s\w,]")

TokenMatch = NDArray[np.bool_]


def _has(characters: str) -> Callable[[str], bool]:
    wanted = set(characters)
    return lambda word: not wanted.isdisjoint(word)


def _is_capitalized(word: str) -> bool:
    return word[:1].isupper()


def _is_upper(word: str) -> bool:
    return len(word) > 1 and word.isupper()


def _is_number(word: str) -> bool:
    return any(character.isdigit() for character in word)


def _is_sign(word: str) -> bool:
    return not any(character.isalnum() or character.isspace() for character in word)


_WORD_KINDS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), test)
    for pattern, test in (
        (r"\b(numbers?|digits?|numerals?|numeric|numerical)\b", _is_number),
        (r"\bpunctuation\b", _is_sign),
        (r"\bcommas?\b", _has(",")),
        (r"(?<!time )\bperiods?\b|\bfull stops?\b", _has(".")),
        (r"\bsemicolons?\b", _has(";")),
        (r"\bcolons?\b", _has(":")),
        (r"\bquestion marks?\b", _has("?")),
        (r"\bexclamation (marks?|points?)\b", _has("!")),
        (r"\bquot(ation|e) marks?\b", _has("\"'“”‘’")),
        (r"\bparenthes[ie]s\b", _has("()")),
        (r"\b(square )?brackets?\b", _has("[](){}")),
        (r"\bbraces\b", _has("{}")),
        (r"\b(hyphens?|dashes|dash)\b", _has("-–—")),
        (r"\bunderscores?\b", _has("_")),
        (r"\bbackticks?\b", _has("`")),
        (r"\b(slash|slashes)\b", _has("/")),
        (r"\basterisks?\b", _has("*")),
        (r"\b(equals? signs?|equality signs?)\b", _has("=")),
        (r"\b(capitali[sz]ed|capital letters?)\b", _is_capitalized),
        (r"\b(upper-?\s?case|all[- ]caps)\b", _is_upper),
    )
)
_TOKEN_KINDS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (re.compile(r"\b(newlines?|line breaks?)\b", re.IGNORECASE), lambda token: "\n" in token),
    (
        re.compile(r"\b(white\s?space|indentation|blank space)\b", re.IGNORECASE),
        lambda token: token.isspace(),
    ),
)
_FIRST_TOKEN = re.compile(
    r"\b(first token|(beginning|start) of (the|a) (text|sequence|document))\b"
)


@dataclass(frozen=True)
class _Quoted:
    """A quoted text, and where the component is active: at it, after it or before it."""

    text: str
    shift: int
    """In words: 0 at the quoted text, 1 at the word after it, -1 at the word before it."""
    place: str
    """`whole`, `start` or `end` of a word."""


@dataclass(frozen=True)
class Cues:
    """What an explanation says literally; `match` finds it in a sequence."""

    quoted: tuple[_Quoted, ...]
    word_kinds: tuple[Callable[[str], bool], ...]
    token_kinds: tuple[Callable[[str], bool], ...]
    first_token: bool
    says_more: bool
    """Whether the explanation says anything besides its cues."""

    @classmethod
    def from_explanation(cls, explanation: str) -> Cues:
        """Read the cues; an explanation without any is matched by meaning alone."""
        quoted = []
        end, stated = 0, ""
        for match in _QUOTED.finditer(explanation):
            text = next(group for group in match.groups() if group is not None)
            # What other quotations hold says nothing of this one.
            between = explanation[end : match.start()]
            end = match.end()
            if not _LISTED.fullmatch(between):
                stated = _stated(between[-40:])
            if text.strip():
                clause = _CLAUSE_END.split(between)[-1]
                quoted.append(_quoted(text.strip(), clause, stated))
        unquoted = rest = _QUOTED.sub(" ", explanation)
        for pattern, _ in (*_WORD_KINDS, *_TOKEN_KINDS):
            rest = pattern.sub(" ", rest)
        if _ENDS.search(unquoted):
            quoted += [_Quoted(part, 0, "end") for part in _BARE_SUFFIX.findall(unquoted)]
            rest = _BARE_SUFFIX.sub(" ", rest)
        if _STARTS.search(unquoted):
            quoted += [_Quoted(part, 0, "start") for part in _BARE_PREFIX.findall(unquoted)]
            rest = _BARE_PREFIX.sub(" ", rest)
        return cls(
            quoted=tuple(dict.fromkeys(quoted)),
            word_kinds=tuple(test for pattern, test in _WORD_KINDS if pattern.search(unquoted)),
            token_kinds=tuple(test for pattern, test in _TOKEN_KINDS if pattern.search(unquoted)),
            first_token=bool(_FIRST_TOKEN.search(unquoted)),
            says_more=bool(content_words(_FIRST_TOKEN.sub(" ", rest))),
        )

    @property
    def any(self) -> bool:
        """Whether there is a cue at all."""
        return bool(self.quoted or self.word_kinds or self.token_kinds or self.first_token)

    def match(self, sequence: WordSequence) -> tuple[TokenMatch, TokenMatch]:
        """Tokens [n] that are matched themselves, and words [words] that are matched as a whole."""
        words = np.zeros(len(sequence.words), dtype=np.bool_)
        tokens = np.zeros(len(sequence.tokens), dtype=np.bool_)
        folded = [word.casefold() for word in sequence.words]
        for test in self.word_kinds:
            words |= np.fromiter((test(word) for word in sequence.words), np.bool_, len(words))
        for cue in self.quoted:
            words |= _shifted(_words_with(cue, folded), cue.shift)
        wanted = {
            cue.text.casefold() for cue in self.quoted if cue.place == "whole" and cue.shift == 0
        }
        if wanted:
            tokens |= np.fromiter(
                (token.strip().casefold() in wanted for token in sequence.tokens),
                np.bool_,
                len(tokens),
            )
        for test in self.token_kinds:
            tokens |= np.fromiter((test(token) for token in sequence.tokens), np.bool_, len(tokens))
        if self.first_token and len(tokens):
            tokens[0] = True
        return tokens, words


def _stated(before: str) -> str:
    """What the words before a quotation, or before a list of them, say that it is of a word."""
    if _ENDS.search(before):
        return "end"
    if _STARTS.search(before):
        return "start"
    return "phrase" if _PHRASE.search(before) else ""


def _quoted(text: str, clause: str, stated: str) -> _Quoted:
    """A quotation, what precedes it in its clause, and what was said that it is."""
    shift = 1 if _AFTER.search(clause) else -1 if _BEFORE.search(clause) else 0
    place = "whole"
    if stated == "phrase":
        # Its hyphens are of the phrase.
        pass
    elif text.startswith("-") and len(text) > 1:
        text, place = text[1:], "end"
    elif text.endswith("-") and len(text) > 1:
        text, place = text[:-1], "start"
    elif stated:
        place = stated
    return _Quoted(text, shift, place)


def _words_with(cue: _Quoted, folded: Sequence[str]) -> TokenMatch:
    text = cue.text.casefold()
    if cue.place == "end":
        return np.fromiter((word.endswith(text) for word in folded), np.bool_, len(folded))
    if cue.place == "start":
        return np.fromiter((word.startswith(text) for word in folded), np.bool_, len(folded))
    wanted = WordSequence.from_tokens([text]).words
    found = np.zeros(len(folded), dtype=np.bool_)
    span = len(wanted)
    for start in [place for place, word in enumerate(folded) if span and word == wanted[0]]:
        if tuple(folded[start : start + span]) == wanted:
            # Of a phrase, the last word is where it is complete.
            found[start + span - 1] = True
    return found


def _shifted(match: TokenMatch, shift: int) -> TokenMatch:
    if shift == 0 or not len(match):
        return match
    moved = np.zeros_like(match)
    if shift > 0:
        moved[1:] = match[:-1]
    else:
        moved[:-1] = match[1:]
    return moved
