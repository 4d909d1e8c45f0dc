"""Words of a token sequence: what a person reads where the subject model sees pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_PLAIN_WORD = re.compile(r"[^\W_]+")

# Words of explanations that are about language, not about what the component stands for.
_FRAME_WORDS = frozenset(
    word
    for word in re.findall(
        r"\w+",
        """a about activates active activity after all also an and any are as at be before begin
    beginning begins both but by capital capitalized certain contain containing contains context
    contexts document each either end ending ends especially etc every expressions fires first
    followed following for from general good has have he her his i if in indicate indicates
    indicating instances into is it its kind kinds last letter letters like mainly mention mentions
    more most mostly name names neuron no not occurrences of often on one or other our part parts
    particularly phrase phrases preceded prefix quoted refer references referring refers related
    relating sentence sentences sequence she some specific start starting starts strongly such
    suffix term terms text than that the their then these they thing things this those to token
    tokens type types use used uses usually various was we were what when where which who with
    word words you your""",
    )
)

MAX_WORD_CHARACTERS = 48
"""What is read of a word; longer ones are no words."""


@dataclass(frozen=True, eq=False, slots=True)
class WordSequence:
    """The words of a sequence of n tokens.

    A word is a run of letters, digits and underscores, or of other signs; white space is in none.
    `word_of_token` [n] is the last word that a token has a part of, -1 for white space alone;
    `completes` [n] says whether the token ends that word.
    """

    words: tuple[str, ...]
    word_of_token: NDArray[np.int64]
    completes: NDArray[np.bool_]
    tokens: tuple[str, ...]

    @classmethod
    def from_tokens(cls, tokens: Sequence[str]) -> WordSequence:
        """Join the tokens, cut the text into words, and find each token's word."""
        text = readable("".join(tokens))
        spans = [match.span() for match in _WORD.finditer(text)]
        starts = np.asarray([span[0] for span in spans], dtype=np.int64)
        ends = np.asarray([span[1] for span in spans], dtype=np.int64)
        token_ends = np.cumsum([len(token) for token in tokens], dtype=np.int64)
        token_starts = token_ends - np.asarray([len(token) for token in tokens], dtype=np.int64)
        # The last word that begins before the token ends, if it reaches into the token.
        last = np.searchsorted(starts, token_ends, side="left") - 1
        reaches = (last >= 0) & (token_ends > token_starts)
        if len(spans):
            reaches &= ends[np.maximum(last, 0)] > token_starts
            completes = reaches & (ends[np.maximum(last, 0)] <= token_ends)
        else:
            completes = np.zeros(len(tokens), dtype=np.bool_)
        return cls(
            words=tuple(text[start:end] for start, end in spans),
            word_of_token=np.where(reaches, last, -1),
            completes=completes,
            tokens=tuple(tokens),
        )


def readable(text: str) -> str:
    """`text` with halves of surrogate pairs, which no tokenizer takes, as U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def reading(word: str) -> str:
    """A word as a sentence model reads it best: lower case, identifiers cut into their words."""
    spaced = _CAMEL.sub(" ", word[:MAX_WORD_CHARACTERS]).replace("_", " ").strip()
    return (spaced or word[:MAX_WORD_CHARACTERS]).lower()


def content_words(text: str) -> list[str]:
    """The words of an explanation that say what a component stands for, in order."""
    return [word for word in _PLAIN_WORD.findall(text) if word.lower() not in _FRAME_WORDS]
