"""Token pairs that a head attends between, as sentences: from what, to what."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.explaining.wording import quote
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs
from services.simulation.simulators.words import WordSequence
from shared.formats.token_pairs import row_starts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MAX_RULES = 600
_STRONG_PAIRS = 200
"""Pairs of a sequence that suggest rules."""
_LEAST_SCALE = 1e-12
_STRONG_SHARE = 0.5
"""Share of the largest activation from which a pair suggests rules."""
_LEAST_CORRELATION = 0.02


@dataclass(frozen=True, slots=True)
class _Rule:
    """From which attending tokens to which attended-to ones; empty: any."""

    attending: str = ""
    attended: str = ""
    relation: str = ""

    @property
    def text(self) -> str:
        source = f"from {quote(self.attending)} " if self.attending else ""
        if self.relation:
            return f"attends {source}to {self.relation}"
        target = quote(self.attended) if self.attended else "earlier tokens"
        return f"attends {source}to {target}"


RELATIONS = (
    "itself",
    "the token just before",
    "the token two before",
    "the first token",
    "an earlier token that is the same",
    "the token after an earlier one that is the same",
    "the latest punctuation before",
    "the latest newline before",
    "earlier words with a capital letter",
    "earlier numbers",
    "earlier tokens of the same word",
)


def pair_explanations(pairs: LabeledTokenPairs) -> Iterator[tuple[str, float]]:
    """Sentences with the correlation of their rule with the activations, best first."""
    finite = [each[np.isfinite(each)] for each in pairs.activations]
    largest = max((float(np.abs(each).max()) for each in finite if len(each)), default=0.0)
    if largest <= 0:
        return
    columns = [_Pairs(pairs, position, largest) for position in range(len(pairs))]
    count = sum(len(each) for each in finite)
    mean = sum(float(each.values.sum()) for each in columns) / count
    variance = sum(float((each.values**2).sum()) for each in columns) / count - mean**2
    scored = []
    for order, rule in enumerate(_rules(columns)):
        held, total = np.sum([each.sums(rule) for each in columns], axis=0).tolist()
        share = held / count
        scale = math.sqrt(max(share * (1 - share) * variance, 0.0))
        correlation = (total / count - share * mean) / scale if scale > _LEAST_SCALE else 0.0
        if correlation > _LEAST_CORRELATION:
            # What was seen at one pair alone may be chance.
            scored.append((-correlation * held / (held + 0.5), order, rule, correlation))
    for _, _, rule, correlation in sorted(scored, key=lambda each: each[:2]):
        yield rule.text, correlation


def _rules(columns: Sequence[_Pairs]) -> list[_Rule]:
    """Relations, what strong pairs attend from and to, and both together: strongest first."""
    strength: dict[_Rule, float] = defaultdict(float)
    for column in columns:
        strongest = np.argsort(-column.values, kind="stable")[:_STRONG_PAIRS]
        for index in strongest[column.values[strongest] >= _STRONG_SHARE].tolist():
            value = float(column.values[index])
            source = column.words[column.attending[index]]
            target = column.words[column.attended[index]]
            for rule in (_Rule(source, target), _Rule("", target), _Rule(source, "")):
                if rule.attending or rule.attended:
                    strength[rule] += value
            if source:
                for relation in RELATIONS:
                    if column.relations[relation][index]:
                        strength[_Rule(source, "", relation)] += value
    ranked = sorted(strength, key=lambda rule: -strength[rule])
    return [*(_Rule("", "", relation) for relation in RELATIONS), *ranked[:_MAX_RULES]]


class _Pairs:
    """The pairs of one sequence, and sums of their activations by what rules ask about."""

    def __init__(self, pairs: LabeledTokenPairs, position: int, largest: float) -> None:
        tokens = pairs.tokens[position]
        self.attending, self.attended = pairs.coordinates(position)
        self._usable = np.isfinite(pairs.activations[position])
        self.values = np.where(self._usable, pairs.activations[position], 0.0) / largest
        sequence = WordSequence.from_tokens(tokens)
        owners = sequence.word_of_token.tolist()
        originals = [sequence.words[number] if number >= 0 else "" for number in owners]
        self.words = tuple(word.casefold() for word in originals)
        self._starts = row_starts(len(tokens), pairs.caps[position])
        self._cap = pairs.caps[position]
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(self.words):
            self._places[word].append(place)
        self.relations = self._related(tokens, sequence.word_of_token, originals)
        """Whether each holds, [pairs]."""
        everywhere = np.ones(len(self.values), dtype=np.bool_)
        self._rows = self._by_token(self.attending, everywhere)
        self._columns = self._by_token(self.attended, everywhere)
        self._related_rows = {
            relation: self._by_token(self.attending, holds)
            for relation, holds in self.relations.items()
        }

    def sums(self, rule: _Rule) -> FloatArray:
        """How many pairs with a finite activation the rule holds at, and their sum, [2]."""
        if rule.attending and rule.attended:
            return self._between(rule.attending, rule.attended)
        sums = self._columns if rule.attended else self._rows
        if rule.relation:
            sums = self._related_rows[rule.relation]
        word = rule.attending or rule.attended
        chosen = sums[:, self._places.get(word, [])] if word else sums
        total: FloatArray = chosen.sum(axis=1)
        return total

    def _between(self, source: str, target: str) -> FloatArray:
        rows = np.asarray(self._places.get(source, []), dtype=np.int64)[:, None]
        columns = np.asarray(self._places.get(target, []), dtype=np.int64)[None, :]
        stored = (columns <= rows) & (columns < self._cap)
        places = (self._starts[rows] + columns)[stored]
        return np.asarray([self._usable[places].sum(), self.values[places].sum()], dtype=float)

    def _by_token(self, tokens: IntArray, holds: NDArray[np.bool_]) -> FloatArray:
        """Count and sum of the pairs of each token that hold, [2, tokens]."""
        size = len(self.words)
        counted = (holds & self._usable).astype(np.float64)
        return np.stack(
            [
                np.bincount(tokens, counted, minlength=size),
                np.bincount(tokens, counted * self.values, minlength=size),
            ]
        )

    def _related(
        self, tokens: Sequence[str], owner: IntArray, originals: Sequence[str]
    ) -> dict[str, NDArray[np.bool_]]:
        attending, attended = self.attending, self.attended
        numbers: dict[str, int] = {"": -1}
        text = np.asarray(
            [numbers.setdefault(t.strip().casefold(), len(numbers)) for t in tokens],
            dtype=np.int64,
        )
        # -2 is no text: nothing stands before the first token.
        text_before = np.concatenate([[-2], text[:-1]]) if len(text) else text
        named = text[attending] >= 0
        earlier = attended < attending
        capital = _each(originals, lambda word: word[:1].isupper())
        number = _each(originals, lambda word: any(c.isdigit() for c in word))
        sign = _each(originals, lambda word: bool(word) and not any(c.isalnum() for c in word))
        newline = _each(tokens, lambda token: "\n" in token)
        return {
            "itself": attended == attending,
            "the token just before": attended == attending - 1,
            "the token two before": attended == attending - 2,
            "the first token": (attended == 0) & earlier,
            "an earlier token that is the same": named
            & earlier
            & (text[attending] == text[attended]),
            "the token after an earlier one that is the same": named
            & (text_before[attended] == text[attending]),
            "the latest punctuation before": attended == _latest(sign)[attending],
            "the latest newline before": attended == _latest(newline)[attending],
            "earlier words with a capital letter": capital[attended] & earlier,
            "earlier numbers": number[attended] & earlier,
            "earlier tokens of the same word": earlier
            & (owner[attending] >= 0)
            & (owner[attending] == owner[attended]),
        }


def _each(texts: Sequence[str], test: Callable[[str], bool]) -> NDArray[np.bool_]:
    return np.asarray([test(text) for text in texts], dtype=np.bool_)


def _latest(holds: NDArray[np.bool_]) -> IntArray:
    """Position of the last token before each that `holds`; -1 where there is none."""
    positions = np.where(holds, np.arange(len(holds)), -1)
    result = np.full(len(holds), -1, dtype=np.int64)
    if len(holds) > 1:
        result[1:] = np.maximum.accumulate(positions)[:-1]
    return result
