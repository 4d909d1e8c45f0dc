"""Properties of tokens in context that an explanation can name, and where they hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from services.simulation.scoring.labeled_sequences import LabeledSequences
from services.simulation.simulators.words import MAX_WORD_CHARACTERS, WordSequence

FloatArray = NDArray[np.float64]

INCOMPLETE = 0.5
"""What a token counts that doesn't complete the word which a feature is about."""

_LONGEST_AFFIX, _SHORTEST_AFFIX = 5, 2


class FeatureKind(StrEnum):
    """What a feature says of a token."""

    WORD = "word"
    """A word, or a token that is a part of one."""
    PHRASE = "phrase"
    """Two words in a row, at the second."""
    AFTER = "after"
    BEFORE = "before"
    STARTS = "starts"
    ENDS = "ends"
    CLASS = "class"
    """A class of words or signs; `text` says which, as explanations say it."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A property of a token in its context."""

    kind: FeatureKind
    text: str
    """Of words and their parts in lower case; of a class its name."""


@dataclass(frozen=True, eq=False)
class TokenTable:
    """All tokens of several sequences whose activation is finite, and the features that they have.

    A feature holds at few tokens, and only those are kept: entry e says that `features[rows[e]]`
    holds at token `columns[e]`, by `weights[e]`: 1, or `INCOMPLETE` where the token is only the
    beginning of the word.
    """

    activations: FloatArray
    """[N], as shares of the largest magnitude."""
    features: tuple[Feature, ...]
    """Those first that hold at the strongest tokens."""
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    weights: FloatArray
    whole_words: frozenset[str]
    """All words, in lower case; other texts of the kind WORD are parts of words alone."""


# Beyond a word or a class itself, what is seen once or with one word may be chance.
_LEAST_WORDS = {
    FeatureKind.PHRASE: 1,
    FeatureKind.AFTER: 2,
    FeatureKind.BEFORE: 2,
    FeatureKind.STARTS: 2,
    FeatureKind.ENDS: 2,
}
_LEAST_TOKENS = {FeatureKind.PHRASE: 2}


def _is_sign(word: str) -> bool:
    return not any(character.isalnum() for character in word)


_WORD_CLASSES: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("numbers", lambda word: any(character.isdigit() for character in word)),
    ("capitalized words", lambda word: word[:1].isupper()),
    ("words in upper case", lambda word: len(word) > 1 and word.isupper()),
    ("punctuation", _is_sign),
    ("commas", lambda word: "," in word),
    ("periods", lambda word: "." in word),
    ("semicolons", lambda word: ";" in word),
    ("colons", lambda word: ":" in word),
    ("question marks", lambda word: "?" in word),
    ("exclamation marks", lambda word: "!" in word),
    ("quotation marks", lambda word: _is_sign(word) and any(c in "\"'“”‘’" for c in word)),
    ("parentheses", lambda word: "(" in word or ")" in word),
    ("brackets", lambda word: any(c in "[](){}" for c in word)),
    ("hyphens", lambda word: any(c in "-–—" for c in word)),
    ("underscores", lambda word: "_" in word),
    ("backticks", lambda word: "`" in word),
    ("slashes", lambda word: "/" in word),
    ("asterisks", lambda word: "*" in word),
    ("equals signs", lambda word: "=" in word),
)
_TOKEN_CLASSES: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("newlines", lambda token: "\n" in token),
    ("white space", lambda token: token.isspace()),
)
FIRST_TOKEN = Feature(FeatureKind.CLASS, "the first token")


def token_table(sequences: LabeledSequences) -> TokenTable:
    """Every feature that some token has."""
    found: dict[Feature, list[tuple[int, float]]] = defaultdict(list)
    words: dict[Feature, set[str]] = defaultdict(set)
    whole_words: set[str] = set()
    start = 0
    for tokens in sequences.tokens:
        for position, feature, weight, word in _features(tokens):
            found[feature].append((start + position, weight))
            words[feature].add(word)
            whole_words.add(word)
        start += len(tokens)
    for feature in list(found):
        if len(words[feature]) < _LEAST_WORDS.get(feature.kind, 1) or len(
            found[feature]
        ) < _LEAST_TOKENS.get(feature.kind, 1):
            del found[feature]
    activations = np.concatenate([np.zeros(0), *sequences.activations])
    usable = np.isfinite(activations)
    strength = np.where(usable, activations, -np.inf)
    features = sorted(
        found, key=lambda feature: -max(strength[position] * w for position, w in found[feature])
    )
    counts = [len(found[feature]) for feature in features]
    places = np.asarray(
        [position for feature in features for position, _ in found[feature]], dtype=np.int64
    )
    weights = np.asarray([weight for feature in features for _, weight in found[feature]])
    rows = np.repeat(np.arange(len(features)), counts)
    kept = usable[places]
    column = np.cumsum(usable) - 1
    return TokenTable(
        shares(activations[usable]),
        tuple(features),
        rows[kept],
        column[places[kept]],
        weights[kept],
        frozenset(whole_words),
    )


def shares(values: FloatArray) -> FloatArray:
    """Values over their largest magnitude, so that no sum of squares is out of range."""
    largest = np.abs(values).max(initial=0.0)
    return values / largest if largest > 0 else values


def _features(tokens: Sequence[str]) -> Iterator[tuple[int, Feature, float, str]]:
    """Position, feature, weight and word of everything that holds."""
    sequence = WordSequence.from_tokens(tokens)
    folded = [word[:MAX_WORD_CHARACTERS].casefold() for word in sequence.words]
    by_word = [list(_of_word(sequence.words, folded, number)) for number in range(len(folded))]
    for position, token in enumerate(tokens):
        for name, test in _TOKEN_CLASSES:
            if test(token):
                yield position, Feature(FeatureKind.CLASS, name), 1.0, ""
        if position == 0:
            yield position, FIRST_TOKEN, 1.0, ""
        number = int(sequence.word_of_token[position])
        if number < 0:
            continue
        weight = 1.0 if sequence.completes[position] else INCOMPLETE
        for feature in by_word[number]:
            yield position, feature, weight, folded[number]
        piece = token.strip().casefold()
        if piece and piece != folded[number] and not any(c.isspace() for c in piece):
            yield position, Feature(FeatureKind.WORD, piece), 1.0, folded[number]


def _phrase(first: str, second: str) -> str:
    # Signs stand at their words, but two runs of signs apart.
    joined = _is_sign(first) != _is_sign(second)
    return f"{first}{second}" if joined else f"{first} {second}"


def _of_word(words: Sequence[str], folded: Sequence[str], number: int) -> Iterator[Feature]:
    word = folded[number]
    yield Feature(FeatureKind.WORD, word)
    if number > 0:
        yield Feature(FeatureKind.AFTER, folded[number - 1])
        yield Feature(FeatureKind.PHRASE, _phrase(folded[number - 1], word))
    if number + 1 < len(folded):
        yield Feature(FeatureKind.BEFORE, folded[number + 1])
    if word.isalpha():
        # The longest first: of endings that the same words have, it says most.
        for length in range(min(_LONGEST_AFFIX, len(word) - 1), _SHORTEST_AFFIX - 1, -1):
            yield Feature(FeatureKind.STARTS, word[:length])
            yield Feature(FeatureKind.ENDS, word[-length:])
    for name, test in _WORD_CLASSES:
        if test(words[number]):
            yield Feature(FeatureKind.CLASS, name)
