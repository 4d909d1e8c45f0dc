"""Token pairs that a head attends between, as sentences: from what, to what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.explaining.features import shares
from services.simulation.explaining.wording import quote
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs
from services.simulation.simulators.words import WordSequence

FloatArray = NDArray[np.float64]

_MAX_RULES = 600
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
    columns = [_Columns.of(tokens, *pairs.coordinates(i)) for i, tokens in enumerate(pairs.tokens)]
    activations = np.concatenate([np.zeros(0), *pairs.activations])
    usable = np.isfinite(activations)
    if not usable.any():
        return
    values = shares(activations[usable])
    rules = _rules(columns, pairs)
    scored = []
    for order, rule in enumerate(rules):
        mask = np.concatenate([column.mask(rule) for column in columns])[usable]
        correlation = _correlation(mask, values)
        if correlation > _LEAST_CORRELATION:
            # What was seen at one pair alone may be chance.
            shrunk = correlation * mask.sum() / (mask.sum() + 0.5)
            scored.append((-shrunk, order, rule, correlation))
    for _, _, rule, correlation in sorted(scored, key=lambda each: each[:2]):
        yield rule.text, correlation


def _rules(columns: Sequence[_Columns], pairs: LabeledTokenPairs) -> list[_Rule]:
    """Relations, what strong pairs attend from and to, and both together: strongest first."""
    strength: dict[_Rule, float] = defaultdict(float)
    finite = [np.where(np.isfinite(each), each, 0.0) for each in pairs.activations]
    largest = max((float(each.max()) for each in finite if len(each)), default=0.0)
    for column, values in zip(columns, finite, strict=True):
        for index in np.flatnonzero(values >= _STRONG_SHARE * largest).tolist():
            source = column.words[column.attending[index]]
            target = column.words[column.attended[index]]
            for rule in (_Rule(source, target), _Rule("", target), _Rule(source, "")):
                if (rule.attending or rule.attended) and rule not in strength:
                    strength[rule] = 0.0
                if rule in strength:
                    strength[rule] += float(values[index])
            if source:
                for relation in RELATIONS:
                    if column.relations[relation][index]:
                        strength[_Rule(source, "", relation)] += float(values[index])
    ranked = sorted(strength, key=lambda rule: -strength[rule])
    return [*(_Rule("", "", relation) for relation in RELATIONS), *ranked[:_MAX_RULES]]


@dataclass(frozen=True, eq=False, slots=True)
class _Columns:
    """The pairs of one sequence with what rules ask about."""

    words: tuple[str, ...]
    """What a person reads at each token: its word, or the token itself; empty for white space."""
    attending: NDArray[np.int64]
    attended: NDArray[np.int64]
    relations: dict[str, NDArray[np.bool_]]

    @classmethod
    def of(
        cls, tokens: Sequence[str], attending: NDArray[np.int64], attended: NDArray[np.int64]
    ) -> _Columns:
        sequence = WordSequence.from_tokens(tokens)
        owner = sequence.word_of_token
        words = tuple(
            sequence.words[number].casefold() if number >= 0 else "" for number in owner.tolist()
        )
        texts = np.asarray([token.strip().casefold() for token in tokens], dtype=object)
        same = (texts[attending] == texts[attended]) & (texts[attending] != "")
        follows = np.zeros(len(attending), dtype=np.bool_)
        inside = attended > 0
        follows[inside] = (texts[attended[inside] - 1] == texts[attending[inside]]) & (
            texts[attending[inside]] != ""
        )
        earlier = attended < attending
        capital = np.asarray([word[:1].isupper() for word in _originals(sequence)], dtype=np.bool_)
        number = np.asarray([any(c.isdigit() for c in word) for word in words], dtype=np.bool_)
        sign = np.asarray(
            [bool(word) and not any(c.isalnum() for c in word) for word in words], dtype=np.bool_
        )
        newline = np.asarray(["\n" in token for token in tokens], dtype=np.bool_)
        relations = {
            "itself": attended == attending,
            "the token just before": attended == attending - 1,
            "the token two before": attended == attending - 2,
            "the first token": (attended == 0) & earlier,
            "an earlier token that is the same": same & earlier,
            "the token after an earlier one that is the same": follows
            & (attended <= attending)
            & (attended - 1 < attending),
            "the latest punctuation before": attended == _latest(sign)[attending],
            "the latest newline before": attended == _latest(newline)[attending],
            "earlier words with a capital letter": capital[attended] & earlier,
            "earlier numbers": number[attended] & earlier,
            "earlier tokens of the same word": (owner[attending] == owner[attended])
            & (owner[attending] >= 0)
            & earlier,
        }
        return cls(words, attending, attended, relations)

    def mask(self, rule: _Rule) -> FloatArray:
        """1 where the rule holds, [pairs]."""
        holds = np.ones(len(self.attending), dtype=np.bool_)
        if rule.attending:
            holds &= self._is(rule.attending)[self.attending]
        if rule.attended:
            holds &= self._is(rule.attended)[self.attended]
        if rule.relation:
            holds &= self.relations[rule.relation]
        return holds.astype(np.float64)

    def _is(self, word: str) -> NDArray[np.bool_]:
        return np.asarray([own == word for own in self.words], dtype=np.bool_)


def _originals(sequence: WordSequence) -> list[str]:
    return [sequence.words[n] if n >= 0 else "" for n in sequence.word_of_token.tolist()]


def _latest(holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Position of the last token before each that `holds`; -1 where there is none."""
    positions = np.where(holds, np.arange(len(holds)), -1)
    result = np.full(len(holds), -1, dtype=np.int64)
    if len(holds) > 1:
        result[1:] = np.maximum.accumulate(positions)[:-1]
    return result


def _correlation(mask: FloatArray, values: FloatArray) -> float:
    if mask.min() == mask.max() or values.min() == values.max():
        return 0.0
    return float(np.corrcoef(mask, values)[0, 1])
