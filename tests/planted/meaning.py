"""The language of the planted model, and the meaning of each of its neurons, without any model.

A text is words with a space before each. A neuron means a word, a class of words, a word after
another, or whatever stands after a word. `activations` is what the neuron's activation must be,
but for what gelu leaves of an inactive neuron (less than 0.0001).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLASSES: dict[str, tuple[str, ...]] = {
    "animals": ("lion", "horse", "sheep", "eagle", "wolf", "camel"),
    "metals": ("gold", "silver", "iron", "copper", "tin"),
    "colours": ("red", "green", "blue", "white", "black"),
    "places": ("river", "mountain", "house", "city", "garden"),
    "verbs": ("saw", "made", "took", "gave", "found", "lost"),
}
COMMON = ("the", "a", "of", "in", "with", "and", "near", "for", "then", "his", "old")
WORDS = COMMON + tuple(word for members in CLASSES.values() for word in members)

ACTIVE = 4.0
"""Activation of a neuron that is fully active."""


@dataclass(frozen=True)
class Meaning:
    """What a neuron stands for.

    `words` with the share of `ACTIVE` that each reaches (empty: any word); with `after`, only where
    that word stands right before.
    """

    explanation: str
    words: tuple[tuple[str, float], ...] = ()
    after: str = ""

    @property
    def strengths(self) -> dict[str, float]:
        """Shares by word."""
        return dict(self.words)

    def activations(self, tokens: Sequence[str]) -> NDArray[np.float64]:
        """True activations [tokens]."""
        words = [token.strip() for token in tokens]
        strengths = self.strengths
        result = np.zeros(len(words))
        for position, word in enumerate(words):
            if self.after and (position == 0 or words[position - 1] != self.after):
                continue
            result[position] = ACTIVE * (strengths.get(word, 0.0) if strengths else 1.0)
        return result


def _word(word: str) -> Meaning:
    return Meaning(f"the word '{word}'", ((word, 1.0),))


def _class(name: str) -> Meaning:
    """The members' activations differ a little, which the explanation doesn't say."""
    members = CLASSES[name]
    shares = np.linspace(1.0, 0.85, len(members))
    return Meaning(name, tuple(zip(members, shares.tolist(), strict=True)))


def _pair(before: str, word: str) -> Meaning:
    return Meaning(f"the word '{word}' after '{before}'", ((word, 1.0),), before)


NEURONS: tuple[tuple[Meaning, ...], ...] = (
    (
        _word("lion"),
        _class("metals"),
        _pair("with", "red"),
        _word("river"),
        Meaning("any word after 'then'", (), "then"),
        _class("verbs"),
    ),
    (
        _class("animals"),
        _word("silver"),
        _pair("the", "city"),
        _class("colours"),
        _pair("of", "gold"),
        _word("his"),
    ),
)
"""By layer."""

_FOLLOWERS = {"with": ("red", 0.3), "the": ("city", 0.25), "of": ("gold", 0.3)}
"""Words that are more probable after others, so that pairs are seen often enough."""


def sentence(rng: np.random.Generator, length: int) -> tuple[str, ...]:
    """Tokens: half of them common words, the rest from all classes."""
    words: list[str] = []
    for _ in range(length):
        follower, chance = _FOLLOWERS.get(words[-1] if words else "", ("", 0.0))
        if rng.random() < chance:
            words.append(follower)
        elif rng.random() < 0.5:
            words.append(COMMON[rng.integers(len(COMMON))])
        else:
            words.append(WORDS[rng.integers(len(COMMON), len(WORDS))])
    return tuple(f" {word}" for word in words)


def text(seed: int, sentences: int, length: int) -> list[tuple[str, ...]]:
    """Sentences, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [sentence(rng, length) for _ in range(sentences)]
