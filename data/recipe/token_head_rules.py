"""Rules that say what an explanation means: examples to train the token head on.

A rule is drawn at random for a window of text: a few words, an ending, what follows a word, a kind
of sign, words that the demo model embeds alike. It gives an explanation in one of several wordings,
and the activation, 0 to 10, of each token.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.simulators.words import WordSequence

Activations = NDArray[np.int64]

_CLASSES: tuple[tuple[tuple[str, ...], Callable[[str], bool]], ...] = (
    (("numbers", "digits", "numerals and numbers"), lambda w: any(c.isdigit() for c in w)),
    (("capitalized words", "words with a capital letter", "names"), lambda w: w[:1].isupper()),
    (("words in upper case", "all caps", "acronyms"), lambda w: len(w) > 1 and w.isupper()),
    (("commas", "the comma ','"), lambda w: "," in w),
    (("periods", "full stops", "the end of a sentence"), lambda w: "." in w),
    (("colons", "the colon ':'"), lambda w: ":" in w),
    (("semicolons", "the semicolon ';'"), lambda w: ";" in w),
    (("parentheses", "brackets"), lambda w: any(c in w for c in "()[]")),
    (("quotation marks", "quotes"), lambda w: any(c in w for c in "\"'`")),
    (("hyphens and dashes", "the hyphen '-'"), lambda w: "-" in w),
    (("underscores", "names with an underscore"), lambda w: "_" in w),
    (("slashes", "the slash '/'"), lambda w: "/" in w),
    (("punctuation", "signs, not words"), lambda w: not any(c.isalnum() for c in w)),
)
_ENDINGS = ("ing", "ed", "s", "ly", "er", "tion", "al", "eth", "est", "ness", "ment", "able", "ive")
_STARTS = ("re", "un", "in", "de", "con", "pre", "com", "pro", "dis", "sub", "ex")
_ONE = (
    "the word '{0}'",
    "'{0}'",
    "{0}",
    "the token '{0}'",
    "mentions of {0}",
    "the word {0}",
    "occurrences of '{0}' in a text",
    "the keyword '{0}'",
)
_SEVERAL = (
    "the words {0}",
    "{0}",
    "words such as {0}",
    "terms: {0}",
    "{0}, and words like them",
    "activates on {0}",
    "one of {0}",
)
_ALIKE = ("words like {0}", "things like {0}", "{0} and similar words", "related to {0}")


@dataclass(frozen=True)
class Window:
    """A piece of text as the demo model's tokens, and its words."""

    tokens: tuple[str, ...]
    words: WordSequence


@dataclass(frozen=True)
class Example:
    """An explanation, and the activation of each token of a window."""

    explanation: str
    window: Window
    activations: Activations


class Neighbours:
    """Words that the demo model embeds alike: unit vectors [words, width] of whole words."""

    def __init__(self, words: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self._words = list(words)
        self._number = {word: number for number, word in enumerate(words)}
        self._vectors = vectors

    def of(self, word: str) -> dict[str, float]:
        """How near other words are, in standard deviations above the mean; only the nearest."""
        number = self._number.get(word)
        if number is None:
            return {}
        cosines = self._vectors @ self._vectors[number]
        z = (cosines - cosines.mean()) / cosines.std()
        best = np.argsort(-z)[:30]
        return {self._words[i]: float(z[i]) for i in best if z[i] > 2.5}


def listed(words: Sequence[str], draw: random.Random, *, quoted: bool | None = None) -> str:
    """Words in a row, as people write them."""
    quoted = draw.random() < 0.7 if quoted is None else quoted
    texts = [f"'{word}'" if quoted else word for word in words]
    if len(texts) == 1:
        return texts[0]
    link = draw.choice((" and ", " or ", ", "))
    return ", ".join(texts[:-1]) + link + texts[-1]


def worded(words: Sequence[str], draw: random.Random) -> str:
    """An explanation that names the words, the strongest first."""
    if len(words) == 1:
        return draw.choice(_ONE).format(words[0])
    if draw.random() < 0.2:
        weaker = listed(words[1:], draw, quoted=True)
        return f"the word '{words[0]}', and more weakly {weaker}"
    return draw.choice(_SEVERAL).format(listed(words, draw))


class Rules:
    """Draws examples; the same seed draws the same."""

    def __init__(
        self, vocabulary: Sequence[str], neighbours: Neighbours, draw: random.Random
    ) -> None:
        self._vocabulary = vocabulary
        self._neighbours = neighbours
        self._draw = draw

    def example(self, window: Window) -> Example:
        """A rule for the window; in one of five cases the window has nothing of it."""
        kind = self._draw.choices(
            (self._words, self._near, self._class, self._part, self._alike, self._both),
            (5, 2, 1, 1, 2, 1),
        )[0]
        explanation, strengths = kind(window)
        return Example(explanation, window, self._activations(window, strengths))

    def _word(self, window: Window) -> str:
        plain = [word for word in window.words.words if len(word) <= 20]
        if not plain or self._draw.random() < 0.2:
            return self._draw.choice(self._vocabulary)
        return self._draw.choice(plain)

    def _words(self, window: Window) -> tuple[str, list[float]]:
        count = self._draw.choice((1, 1, 2, 3, 4, 5))
        words = [self._word(window)]
        words += [self._draw.choice(self._vocabulary) for _ in range(count - 1)]
        if self._draw.random() < 0.5:
            self._draw.shuffle(words)
        fading = self._draw.choice((1.0, 1.0, 0.7))
        strength = {word.casefold(): 10 * fading**n for n, word in enumerate(words)}
        return worded(words, self._draw), [
            strength.get(word.casefold(), 0.0) for word in window.words.words
        ]

    def _near(self, window: Window) -> tuple[str, list[float]]:
        words = window.words.words
        wanted = self._word(window).casefold()
        if self._draw.random() < 0.6:
            shift, wordings = 1, ("the word after '{0}'", "tokens that follow '{0}'", "after '{0}'")
        else:
            shift, wordings = -1, ("the word before '{0}'", "before '{0}'", "what precedes '{0}'")
        hits = [
            10.0 if 0 <= n - shift < len(words) and words[n - shift].casefold() == wanted else 0.0
            for n in range(len(words))
        ]
        return self._draw.choice(wordings).format(wanted), hits

    def _class(self, window: Window) -> tuple[str, list[float]]:
        wordings, test = self._draw.choice(_CLASSES)
        return self._draw.choice(wordings), [10.0 * test(word) for word in window.words.words]

    def _part(self, window: Window) -> tuple[str, list[float]]:
        if self._draw.random() < 0.7:
            part = self._draw.choice(_ENDINGS)
            wordings = ("words that end in -{0}", "words ending with '{0}'", "the suffix '{0}'")
            hits = [
                10.0 * (w.lower().endswith(part) and len(w) > len(part)) for w in window.words.words
            ]
        else:
            part = self._draw.choice(_STARTS)
            wordings = ("words that start with '{0}'", "the prefix '{0}'", "words in {0}-")
            hits = [
                10.0 * (w.lower().startswith(part) and len(w) > len(part))
                for w in window.words.words
            ]
        return self._draw.choice(wordings).format(part), hits

    def _alike(self, window: Window) -> tuple[str, list[float]]:
        word = self._word(window)
        near = self._neighbours.of(word)
        if len(near) < 2:
            return self._words(window)
        top = max(near.values())
        named = self._draw.sample(sorted(near), min(len(near), self._draw.choice((1, 2, 3))))
        explanation = self._draw.choice(_ALIKE).format(listed(named, self._draw))
        strengths = [10 * (near.get(w, 0.0) / top) ** 2 for w in window.words.words]
        return explanation, [
            10.0 if w in named else strength
            for w, strength in zip(window.words.words, strengths, strict=True)
        ]

    def _both(self, window: Window) -> tuple[str, list[float]]:
        first, second = self._words(window), self._class(window)
        strengths = [max(a, b) for a, b in zip(first[1], second[1], strict=True)]
        return f"{first[0]}, {second[0]}", strengths

    def _activations(self, window: Window, strengths: Sequence[float]) -> Activations:
        """Of words to tokens: in full where a word ends, in part before."""
        activations = np.zeros(len(window.tokens))
        partial = self._draw.choice((0.0, 0.3, 0.8))
        for position, (word, ends) in enumerate(
            zip(window.words.word_of_token, window.words.completes, strict=True)
        ):
            if word >= 0 and strengths[word]:
                noisy = strengths[word] * self._draw.uniform(0.7, 1.0)
                activations[position] = noisy if ends else noisy * partial
        return np.clip(np.round(activations), 0, 10).astype(np.int64)
