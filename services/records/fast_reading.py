"""The fast reading of record files: from the bytes to columns, without an object a number.

It reads what is written today and nothing else. Whatever is unusual in a file, be it right or
wrong, it declines; then `shared.formats.decoding` reads the file, which alone says what is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import simdjson
from numpy.typing import NDArray

from services.records.stored import QUANTILES, RANDOM, TOP, Samples, StoredRecord, quantile_part
from shared.formats.decoding import check_memory, decode_neuron_record
from shared.formats.records import CLASS_NAME_FIELD

_MOMENTS = ("mean", "variance", "skewness", "kurtosis")
_BOUNDARIES = "quantile_boundaries"
_KEYS = frozenset({CLASS_NAME_FIELD, "neuron_id", TOP, RANDOM, QUANTILES, _BOUNDARIES, *_MOMENTS})
_ID_KEYS = frozenset({"neuron_index", "layer_index"})
_INT64_MAX = 2**63 - 1
_BRACKET, _BACKSLASH = ord("["), ord("\\")

_MOST_QUANTILES = 1000

# A parser that is used again has its memory, some fifteen times the largest file so far.
_MAX_KEPT_BYTES = 2**20
_parsers: list[simdjson.Parser] = []

# What simdjson and its proxies raise for content that is not JSON, or is something else than what
# it is taken for.
_UNUSUAL = (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)


class _Unusual(ValueError):
    """The file holds something that the slow reading has to judge."""


def read_record(data: bytes, source: str, *, with_quantiles: bool) -> StoredRecord:
    """The content of a record file; `source` is the file's name in errors.

    Raises as `shared.formats.decoding.decode_neuron_record` does.
    """
    check_memory(data, source)
    stored = read_usual_record(data)
    if stored is None:
        return StoredRecord.of(decode_neuron_record(data, source), with_quantiles=with_quantiles)
    return stored if with_quantiles else replace(stored, quantiles=[])


def read_usual_record(data: bytes) -> StoredRecord | None:
    """The content of a record file, None where anything in it is unusual."""
    if not data.startswith(b"{"):
        # White space, or a byte order mark, which simdjson passes over.
        return None
    # What is parsed lives in the parser, and it is not for two threads.
    try:
        parser = _parsers.pop()
    except IndexError:
        parser = simdjson.Parser()
    try:
        stored = _Reading(data).record(parser.parse(data))
    except _UNUSUAL:
        return None
    if len(data) <= _MAX_KEPT_BYTES and not _parsers:
        _parsers.append(parser)
    return stored


@dataclass(slots=True)
class _Part:
    """What was found of a part: all tokens, and by sequence the activations' bytes."""

    name: str
    numbers: list[Any] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    tokens: list[Any] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


class _Reading:
    """One reading of a file. It counts lists, as simdjson takes a list within a list of numbers
    for the numbers in it: where the file has more brackets than were looked for there is one."""

    def __init__(self, data: bytes) -> None:
        self._characters = np.frombuffer(data, dtype=np.uint8)
        self._brackets = 0
        self._texts: list[str] = []

    def record(self, record: Any) -> StoredRecord:
        _usual(type(record) is simdjson.Object)
        keys = list(record)
        fields = {key: record[key] for key in keys}
        # Of a key that is there twice the last counts, but simdjson finds the first.
        _usual(len(keys) == len(fields) and _KEYS.issuperset(keys))
        _usual(fields.get(CLASS_NAME_FIELD, "NeuronRecord") == "NeuronRecord")
        _check_id(fields["neuron_id"])
        parts = [
            self._part(fields.get(TOP, ()), TOP),
            self._part(fields.get(RANDOM, ()), RANDOM),
            *(
                self._part(records, quantile_part(position))
                for position, records in enumerate(self._few(fields.get(QUANTILES)))
            ),
        ]
        boundaries = self._boundaries(fields.get(_BOUNDARIES))
        moments = tuple(_number_or_none(fields.get(name, math.nan)) for name in _MOMENTS)
        top, random, *quantiles = [self._samples(part) for part in parts]
        self._check_brackets()
        return StoredRecord(top, random, quantiles, boundaries, moments)

    def _items(self, value: Any) -> Iterable[Any]:
        """The items of a list that may be null."""
        if value is None or value == ():
            return ()
        _usual(type(value) is simdjson.Array)
        self._brackets += 1
        items: Iterable[Any] = value
        return items

    def _few(self, value: Any) -> Iterable[Any]:
        # Columns of nothing take far more memory than the brackets in the file.
        _usual(value is None or len(value) <= _MOST_QUANTILES)
        return self._items(value)

    def _boundaries(self, value: Any) -> list[float] | None:
        return None if value is None else [_number(item) for item in self._items(value)]

    def _part(self, records: Any, name: str) -> _Part:
        _usual(records is not None)
        part = _Part(name)
        for record in self._items(records):
            # All keys that are found make up all that there are: none is there twice.
            size = len(record)
            _usual(size == 2 or (size == 3 and record[CLASS_NAME_FIELD] == "ActivationRecord"))
            activations, tokens = record["activations"], record["tokens"]
            _usual(type(tokens) is simdjson.Array)
            part.numbers.append(activations.as_buffer(of_type="d"))
            part.counts.append(len(activations))
            part.tokens += tokens.as_list()
            part.lengths.append(len(tokens))
        self._brackets += 2 * len(part.counts)
        return part

    def _samples(self, part: _Part) -> Samples:
        values: NDArray[np.float64] = np.frombuffer(b"".join(part.numbers), dtype=np.float64)
        _usual(values.size == sum(part.counts) and len(part.tokens) == sum(part.lengths))
        # What is no string raises.
        self._texts.append("".join(part.tokens))
        return Samples(part.name, part.tokens, part.lengths, values, part.counts)

    def _check_brackets(self) -> None:
        more = np.count_nonzero(self._characters == _BRACKET) - self._brackets
        if more:
            # They are in texts, unless one that is written there as an escape hides one of a list.
            _usual(more == sum(text.count("[") for text in self._texts))
            _usual(not _has_escaped_brackets(self._characters))


def _has_escaped_brackets(characters: NDArray[np.uint8]) -> bool:
    """Whether the JSON may have a bracket as \\u005b."""
    at = np.flatnonzero(characters == _BACKSLASH)
    at = at[at + 4 < characters.size]
    escape = (characters[at + step] == ord(character) for step, character in enumerate("u005", 1))
    return bool(np.logical_and.reduce(list(escape)).any())


def _check_id(value: Any) -> None:
    fields = value.as_dict()
    _usual(len(value) == len(fields))
    _usual(fields.pop(CLASS_NAME_FIELD, "NeuronId") == "NeuronId")
    _usual(fields.keys() == _ID_KEYS)
    _usual(all(type(index) is int and index <= _INT64_MAX for index in fields.values()))


def _number_or_none(value: Any) -> float | None:
    return None if value is None else _number(value)


def _number(value: Any) -> float:
    _usual(type(value) is float or type(value) is int)
    return float(value)


def _usual(condition: bool) -> None:
    if not condition:
        raise _Unusual
