"""Sequences of a record as columns: one array for all tokens of all sequences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from services.records.precision import FloatArray, compact
from services.records.stored import Samples
from shared.errors import InvalidArgument
from shared.formats import token_pairs
from shared.formats.decoding import corrupt
from shared.normalization import largest_finite, normalized

# Layouts of at most so many values are kept for the next record: about 1 MB each.
_LARGEST_KEPT = 2**17


@dataclass(frozen=True, slots=True)
class TokenSequences:
    """Sequences with one activation a token; N is the number of all tokens.

    `tokens` [N], `lengths` [sequences], `activations` and `normalized` [N].
    """

    tokens: list[str]
    lengths: list[int]
    activations: FloatArray
    normalized: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Summary:
    """One number for each of N tokens, and the same normalised by its largest over all."""

    values: FloatArray
    normalized: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenPairSequences:
    """Sequences with one activation a token pair; K pairs and N tokens in all.

    `tokens` [N]; `lengths` and `caps` [sequences]; `activations` and `normalized` [K], row
    after row (see `shared.formats.token_pairs`); the summaries [N]. In is over the row of a token,
    as the attending one, Out over its column, as the attended-to one.
    """

    tokens: list[str]
    lengths: list[int]
    caps: list[int]
    activations: FloatArray
    normalized: NDArray[np.float32]
    total_in: Summary
    max_in: Summary
    total_out: Summary
    max_out: Summary


def token_sequences(
    groups: list[Samples], num_scaling: int, source: str
) -> tuple[list[TokenSequences], float]:
    """Each group by token, normalised by the largest of the first `num_scaling` groups.

    Also returns the largest finite activation of the first group, 0 where there is none.
    Raises DataLoss, naming the file `source` and the sequence, where the numbers of tokens and
    activations differ; InvalidArgument where that is because the file is by token pair.
    """
    _check_by_token(groups, source)
    values = [group.values for group in groups]
    maximum = largest_finite(values[:num_scaling])
    columns = [
        TokenSequences(
            tokens=group.tokens,
            lengths=group.lengths,
            activations=compact(group.values),
            normalized=normalized(group.values, maximum),
        )
        for group in groups
    ]
    return columns, largest_finite(values[:1]) or 0.0


def token_pair_sequences(
    groups: list[Samples], num_scaling: int, source: str
) -> tuple[list[TokenPairSequences], float]:
    """Each group by token pair; every series is scaled as `token_sequences` scales activations.

    Raises DataLoss, naming the file `source` and the sequence, where the number of activations is
    none that token pairs can have.
    """
    caps = [_caps(group, source) for group in groups]
    values = [group.values for group in groups]
    sums = [
        _summaries(group.values, group.lengths, group_caps)
        for group, group_caps in zip(groups, caps, strict=True)
    ]
    maximum = largest_finite(values[:num_scaling])
    maxima = [largest_finite(series[:num_scaling]) for series in zip(*sums, strict=True)]
    columns = []
    for group, group_caps, summaries in zip(groups, caps, sums, strict=True):
        total_in, max_in, total_out, max_out = (
            Summary(compact(series), normalized(series, largest))
            for series, largest in zip(summaries, maxima, strict=True)
        )
        columns.append(
            TokenPairSequences(
                tokens=group.tokens,
                lengths=group.lengths,
                caps=group_caps,
                activations=compact(group.values),
                normalized=normalized(group.values, maximum),
                total_in=total_in,
                max_in=max_in,
                total_out=total_out,
                max_out=max_out,
            )
        )
    return columns, largest_finite(values[:1]) or 0.0


def _check_by_token(groups: list[Samples], source: str) -> None:
    for group in groups:
        if group.lengths == group.counts:
            continue
        if all(None not in _possible_caps(each) for each in groups):
            raise InvalidArgument(
                f"{source} holds activations of token pairs; read it by token pair.",
                field="component.derived_scalar_type",
            )
        for position, (length, count) in enumerate(zip(group.lengths, group.counts, strict=True)):
            if length != count:
                raise corrupt(
                    source, f"has {count} activations of {length} tokens", group.field(position)
                )


def _possible_caps(group: Samples) -> list[int | None]:
    return [
        token_pairs.attended_cap(length, count)
        for length, count in zip(group.lengths, group.counts, strict=True)
    ]


def _caps(group: Samples, source: str) -> list[int]:
    caps = []
    for position, cap in enumerate(_possible_caps(group)):
        if cap is None:
            raise corrupt(
                source,
                f"has {group.counts[position]} activations, which no token pairs of "
                f"{group.lengths[position]} tokens have",
                group.field(position),
            )
        caps.append(cap)
    return caps


def _summaries(
    values: NDArray[np.float64], lengths: list[int], caps: list[int]
) -> tuple[NDArray[np.float64], ...]:
    """Total In, max In, total Out and max Out of every token, each [tokens of all sequences].

    Values that are not finite take no part; a row or column without any value gives 0.
    """
    num_tokens = sum(lengths)
    if not values.size:
        return tuple(np.zeros(num_tokens) for _ in range(4))
    layout = _layout(lengths, caps)
    finite = np.isfinite(values)
    every = bool(finite.all())
    addends = values if every else np.where(finite, values, 0.0)
    candidates = values if every else np.where(finite, values, -np.inf)
    addends_by_column = addends[layout.by_column]
    candidates_by_column = addends_by_column if every else candidates[layout.by_column]
    max_in = np.maximum.reduceat(candidates, layout.rows)
    total_out, max_out = np.zeros(num_tokens), np.zeros(num_tokens)
    max_out[layout.attended] = np.maximum.reduceat(candidates_by_column, layout.columns)
    max_in[~np.isfinite(max_in)] = 0.0
    max_out[~np.isfinite(max_out)] = 0.0
    # Sums of finite values may still overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        total_in = np.add.reduceat(addends, layout.rows)
        total_out[layout.attended] = np.add.reduceat(addends_by_column, layout.columns)
    return total_in, max_in, total_out, max_out


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the values of each token's row and column are, K values of N tokens.

    `rows` [N]: where each token's row starts: rows lie one after the other, and none is empty.
    `by_column` [K]: the values' positions column by column, and `columns` where in that each column
    starts that has a value, of the tokens `attended`.
    """

    rows: NDArray[np.int64]
    by_column: NDArray[np.int64]
    columns: NDArray[np.int64]
    attended: NDArray[np.int64]


def _layout(lengths: list[int], caps: list[int]) -> _Layout:
    shapes = tuple(zip(lengths, caps, strict=True))
    if sum(length * cap for length, cap in shapes) <= _LARGEST_KEPT:
        return _kept_layout(shapes)
    return _new_layout(shapes)


def _new_layout(shapes: tuple[tuple[int, int], ...]) -> _Layout:
    of_shape = {shape: token_pairs.coordinates(*shape) for shape in set(shapes)}
    num_pairs = [len(of_shape[shape][0]) for shape in shapes]
    lengths = np.array([length for length, _ in shapes], dtype=np.int64)
    firsts = np.repeat(np.cumsum(lengths) - lengths, num_pairs)
    rows = np.concatenate([of_shape[shape][0] for shape in shapes]) + firsts
    columns = np.concatenate([of_shape[shape][1] for shape in shapes]) + firsts
    by_column = np.argsort(columns, kind="stable")
    columns = columns[by_column]
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    return _Layout(np.flatnonzero(np.diff(rows, prepend=-1)), by_column, starts, columns[starts])


# The sequences of a dataset's records mostly have the same lengths.
_kept_layout = lru_cache(maxsize=8)(_new_layout)
