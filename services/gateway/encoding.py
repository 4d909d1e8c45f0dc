"""Answers as JSON, from the columns of the contract's messages.

No object is made a value: a column is encoded as one array, whose text is cut at its commas and put
between keys and tokens that were encoded before. Numbers are the shortest that mean the column's
value in the column's own precision; those that are not finite become null. Encoding gives way to
other requests about once a millisecond, so that a large answer holds nobody up; a thread would not
help, as the encoder keeps the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.records import v1 as records
from neuropil.tensors import to_array

# Numbers in one piece of a large answer: about half a millisecond of encoding.
_PIECE_SIZE = 16_384
_TURN_SECONDS = 0.001


def encode(value: Any) -> bytes:
    """JSON of dictionaries, lists, numbers and arrays."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


class Assembler:
    """Puts answers together piece by piece, one answer at a time.

    One at a time, as side by side they would take each other's turns and all end late.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def assemble(self, pieces: Iterable[bytes]) -> bytes:
        """The pieces in one; other tasks run in between."""
        async with self._turn:
            parts: list[bytes] = []
            started = time.perf_counter()
            for piece in pieces:
                parts.append(piece)
                if time.perf_counter() - started > _TURN_SECONDS:
                    await asyncio.sleep(0)
                    started = time.perf_counter()
            return b"".join(parts)


def token_record_pieces(record: records.GetTokenRecordResponse) -> Iterator[bytes]:
    """Answer of /neuron_record."""
    yield b'{"dataset":' + encode(record.dataset)
    yield b',"maxActivation":' + encode(record.max_activation)
    yield b',"topActivations":'
    yield from _token_sequences(record.top_sequences)
    yield b',"randomSample":'
    yield from _token_sequences(record.random_sequences)
    if record.quantile_sequences:
        yield b',"quantileSamples":'
        yield from array(_token_sequences(each) for each in record.quantile_sequences)
    yield from _statistics(record)


def token_pair_record_pieces(record: records.GetTokenPairRecordResponse) -> Iterator[bytes]:
    """Answer of /attention_head_record."""
    yield b'{"dataset":' + encode(record.dataset)
    yield b',"maxAttentionActivation":' + encode(record.max_activation)
    yield b',"mostPositiveTokenSequences":'
    yield from token_pair_sequences_pieces(record.top_sequences)
    yield b',"randomTokenSequences":'
    yield from token_pair_sequences_pieces(record.random_sequences)
    if record.quantile_sequences:
        yield b',"quantileSamples":'
        yield from array(token_pair_sequences_pieces(each) for each in record.quantile_sequences)
    yield from _statistics(record)


def token_pair_sequences_pieces(sequences: common.TokenPairSequences) -> Iterator[bytes]:
    """An array of sequences, each an array of attending tokens."""
    rows = TokenPairRows(sequences)
    yield from array(
        rows.pieces(start, stop) for start, stop in _ranges(sequences.sequence_lengths)
    )


def _statistics(
    record: records.GetTokenRecordResponse | records.GetTokenPairRecordResponse,
) -> Iterator[bytes]:
    if record.quantile_boundaries:
        yield b',"quantileBoundaries":' + encode(list(record.quantile_boundaries))
    if record.HasField("moments"):
        moments = record.moments
        yield b',"moments":' + encode(
            {
                name: getattr(moments, name) if moments.HasField(name) else None
                for name in ("mean", "variance", "skewness", "kurtosis")
            }
        )
    yield b"}"


def _token_sequences(sequences: common.TokenSequences) -> Iterator[bytes]:
    tokens = sequences.tokens
    scalars = _column(sequences.activations, len(tokens))
    normalized = _column(sequences.normalized_activations, len(tokens))
    if sum(sequences.sequence_lengths) != len(tokens):
        raise ValueError(f"lengths of sequences that do not add up to {len(tokens)} tokens")
    # Many short sequences cost little more than a long one: pieces go on over their ends.
    brackets = _brackets(sequences.sequence_lengths)
    position, bracket_text = next(brackets)
    for first in range(0, len(tokens), _PIECE_SIZE):
        last = min(first + _PIECE_SIZE, len(tokens))
        parts = [b',"normalizedScalar":'] * (4 * (last - first))
        parts[0::4] = map(_OPENINGS[b'"scalar":'].__getitem__, tokens[first:last])
        parts[1::4] = numbers(scalars[first:last])
        parts[3::4] = numbers(normalized[first:last])
        while position < last:
            opening = 4 * (position - first)
            parts[opening] = bracket_text + parts[opening][len(_BETWEEN) :]
            position, bracket_text = next(brackets)
        yield b"".join(parts)
    yield bracket_text


def _brackets(lengths: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """What stands before the first object of each sequence that has one, and after the last.

    Gives the object's number over all sequences, or at the end how many there are. It closes the
    object before; sequences without any are in between.
    """
    position = 0
    parts = [b"["]
    separator = b""
    for length in lengths:
        parts += (separator, b"[")
        separator = b"],"
        if length:
            yield position, b"".join(parts)
            position += length
            parts = [b"}"]
    yield position, b"".join((*parts, separator[:1], b"]"))


class TokenPairRows:
    """The attending tokens of all sequences, each with its row of token pairs."""

    def __init__(self, sequences: common.TokenPairSequences) -> None:
        self._tokens = list(sequences.tokens)
        lengths = np.asarray(sequences.sequence_lengths, dtype=np.int64)
        caps = np.asarray(sequences.attended_to_caps, dtype=np.int64)
        firsts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        positions = np.arange(len(self._tokens)) - firsts
        sizes = np.minimum(positions + 1, np.repeat(caps, lengths))
        self._ends: NDArray[np.int64] = np.cumsum(sizes)
        self._starts = self._ends - sizes
        pairs = int(self._ends[-1]) if len(self._ends) else 0
        self._scalars = _column(sequences.activations, pairs)
        self._normalized = _column(sequences.normalized_activations, pairs)
        self._summaries = [
            _column(tensor, len(self._tokens))
            for summary in (
                sequences.total_in,
                sequences.max_in,
                sequences.total_out,
                sequences.max_out,
            )
            for tensor in (summary.values, summary.normalized_values)
        ]

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The array of the tokens from `start` to before `stop`."""
        return bracket(self._bare_pieces(start, stop))

    def _bare_pieces(self, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            enough = int(np.searchsorted(self._ends, self._starts[start] + _PIECE_SIZE))
            end = min(max(enough, start + 1), stop)
            yield self._rows(slice(start, end))
            start = end

    def _rows(self, part: slice) -> bytes:
        starts, ends = self._starts[part], self._ends[part]
        pairs = slice(int(starts[0]), int(ends[-1]))
        starts, ends = starts - pairs.start, ends - pairs.start
        return objects(
            self._tokens[part],
            _PAIR_KEYS,
            [
                _numbers_by_row(self._scalars[pairs], starts, ends),
                _numbers_by_row(self._normalized[pairs], starts, ends),
                *(numbers(column[part]) for column in self._summaries),
            ],
        )


def objects(tokens: list[str], keys: Sequence[bytes], columns: Sequence[Sequence[bytes]]) -> bytes:
    """The objects of some tokens, without the brackets of their array.

    `keys`: what stands before the values of each column, from the second on with a comma and
    all but punctuation of arrays. `columns`: the values of each key as JSON, one a token.
    """
    if not tokens:
        return b""
    step = 2 * len(keys)
    parts = [b""] * (step * len(tokens))
    parts[0::step] = map(_OPENINGS[keys[0]].__getitem__, tokens)
    for position, (key, column) in enumerate(zip(keys, columns, strict=True)):
        if position:
            parts[2 * position :: step] = [key] * len(tokens)
        parts[2 * position + 1 :: step] = column
    parts[0] = parts[0][len(_BETWEEN) :]
    parts.append(b"}")
    return b"".join(parts)


_BETWEEN = b"},"

_PAIR_KEYS = [
    b'"scalars":[',
    b'],"normalizedScalars":[',
    b'],"totalScalarIn":',
    b',"normalizedTotalScalarIn":',
    b',"maxScalarIn":',
    b',"normalizedMaxScalarIn":',
    b',"totalScalarOut":',
    b',"normalizedTotalScalarOut":',
    b',"maxScalarOut":',
    b',"normalizedMaxScalarOut":',
]


class _Openings(dict[str, bytes]):
    """From the end of the object before to the first value, by token; texts repeat all the time.

    Bounded: short tokens only, and emptied when full.
    """

    _MOST = 1 << 16
    _LONGEST = 64

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._key = key

    def __missing__(self, token: str) -> bytes:
        opening = _BETWEEN + b'{"token":' + encode(token) + b"," + self._key
        if len(token) <= self._LONGEST:
            if len(self) >= self._MOST:
                self.clear()
            self[token] = opening
        return opening


_OPENINGS = {key: _Openings(key) for key in (b'"scalar":', _PAIR_KEYS[0])}


def numbers(values: NDArray[Any]) -> list[bytes]:
    """Each of at least one value as JSON."""
    return encode(values)[1:-1].split(b",")


def _numbers_by_row(
    values: NDArray[Any], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> list[bytes]:
    """The values of each row as JSON, with commas in between and no brackets.

    Rows stand one after another and none is empty.
    """
    # One array is encoded far faster than one a row; commas say where its values are.
    text = encode(values)
    commas = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord(","))
    bounds = np.concatenate(([0], commas, [len(text) - 1]))
    return [
        text[first:last]
        for first, last in zip((bounds[starts] + 1).tolist(), bounds[ends].tolist(), strict=True)
    ]


def _column(tensor: common.Tensor, size: int) -> NDArray[Any]:
    """A column of `size` values; a message without values may leave the tensor out."""
    if size == 0:
        return np.empty(0, dtype=np.float32)
    column = to_array(tensor)
    if column.shape != (size,):
        raise ValueError(f"a column of shape {column.shape} where {size} values belong")
    return column


def _ranges(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for length in lengths:
        yield start, start + length
        start += length


def bare(values: list[dict[str, object]]) -> bytes:
    """The elements of an array without its brackets."""
    return encode(values)[1:-1]


def bracket(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """An array whose elements come several a piece, separated by commas."""
    yield b"["
    for position, piece in enumerate(pieces):
        yield b"," + piece if position else piece
    yield b"]"


def array(elements: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """An array whose elements come in one or more pieces each."""
    yield b"["
    for position, element in enumerate(elements):
        if position:
            yield b","
        yield from element
    yield b"]"
