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

    def of_numbers(self, words: NDArray[np.int64]) -> NDArray[np.float64]:
        """True activations [sequences, tokens] of numbers of words, the same as `activations`."""
        shares = np.array([self.strengths.get(word, 0.0) if self.words else 1.0 for word in WORDS])
        result = ACTIVE * shares[words]
        if self.after:
            result[:, 0] = 0.0
            result[:, 1:][words[:, :-1] != WORDS.index(self.after)] = 0.0
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


def sentences(rng: np.random.Generator, count: int, length: int) -> NDArray[np.int64]:
    """Numbers of words [count, length]: half of them common words, the rest from all classes."""
    result = np.empty((count, length), dtype=np.int64)
    before = np.full(count, -1)
    for position in range(length):
        common = rng.integers(len(COMMON), size=count)
        classed = rng.integers(len(COMMON), len(WORDS), size=count)
        words = np.where(rng.random(count) < 0.5, common, classed)
        chances = rng.random(count)
        for first, (second, chance) in _FOLLOWERS.items():
            follows = (before == WORDS.index(first)) & (chances < chance)
            words[follows] = WORDS.index(second)
        result[:, position] = before = words
    return result


def text(seed: int, count: int, length: int) -> list[tuple[str, ...]]:
    """Sentences as tokens, the same for the same seed."""
    numbers = sentences(np.random.default_rng(seed), count, length)
    return [tuple(f" {WORDS[number]}" for number in row) for row in numbers.tolist()]
