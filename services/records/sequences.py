"""Sequences of a record as columns: one array for all tokens of all sequences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from services.records.precision import FloatArray, compact
from shared.errors import InvalidArgument
from shared.formats import token_pairs
from shared.formats.decoding import corrupt
from shared.formats.records import ActivationRecord
from shared.normalization import largest_finite, normalized

# Coordinates of at most so many places are kept for the next record: 2 MB each.
_LARGEST_KEPT = 2**17


@dataclass(frozen=True, slots=True)
class Samples:
    """The sequences of one part of a record file, and the name of that part in the file."""

    records: list[ActivationRecord]
    part: str

    def field(self, position: int) -> str:
        """Path, in the file, of the sequence at `position`."""
        return f"{self.part}[{position}]"


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

    `tokens` [N]; `lengths` and `caps` [sequences]; `activations` and `normalized` [K], row after
    row (see `shared.formats.token_pairs`); the summaries [N]. In is over the row of a token, as the
    attending one, Out over its column, as the attended-to one.
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
    values = [_flat(group.records) for group in groups]
    maximum = largest_finite(values[:num_scaling])
    columns = [
        TokenSequences(
            tokens=_tokens(group.records),
            lengths=_lengths(group.records),
            activations=compact(array),
            normalized=normalized(array, maximum),
        )
        for group, array in zip(groups, values, strict=True)
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
    values = [_flat(group.records) for group in groups]
    sums = [
        _summaries(array, _lengths(group.records), group_caps)
        for group, group_caps, array in zip(groups, caps, values, strict=True)
    ]
    maximum = largest_finite(values[:num_scaling])
    maxima = [largest_finite(series[:num_scaling]) for series in zip(*sums, strict=True)]
    columns = []
    for group, group_caps, array, summaries in zip(groups, caps, values, sums, strict=True):
        total_in, max_in, total_out, max_out = (
            Summary(compact(series), normalized(series, largest))
            for series, largest in zip(summaries, maxima, strict=True)
        )
        columns.append(
            TokenPairSequences(
                tokens=_tokens(group.records),
                lengths=_lengths(group.records),
                caps=group_caps,
                activations=compact(array),
                normalized=normalized(array, maximum),
                total_in=total_in,
                max_in=max_in,
                total_out=total_out,
                max_out=max_out,
            )
        )
    return columns, largest_finite(values[:1]) or 0.0


def _flat(records: list[ActivationRecord]) -> NDArray[np.float64]:
    if not records:
        return np.zeros(0, dtype=np.float64)
    return np.concatenate([np.array(record.activations, dtype=np.float64) for record in records])


def _tokens(records: list[ActivationRecord]) -> list[str]:
    return [token for record in records for token in record.tokens]


def _lengths(records: list[ActivationRecord]) -> list[int]:
    return [len(record.tokens) for record in records]


def _check_by_token(groups: list[Samples], source: str) -> None:
    for group in groups:
        for position, record in enumerate(group.records):
            num_tokens, num_values = len(record.tokens), len(record.activations)
            if num_tokens == num_values:
                continue
            if all(_cap(each) is not None for group in groups for each in group.records):
                raise InvalidArgument(
                    f"{source} holds activations of token pairs; read it by token pair.",
                    field="component.derived_scalar_type",
                )
            raise corrupt(
                source,
                f"has {num_values} activations of {num_tokens} tokens",
                group.field(position),
            )


def _cap(record: ActivationRecord) -> int | None:
    return token_pairs.attended_cap(len(record.tokens), len(record.activations))


def _caps(group: Samples, source: str) -> list[int]:
    caps = []
    for position, record in enumerate(group.records):
        cap = _cap(record)
        if cap is None:
            raise corrupt(
                source,
                f"has {len(record.activations)} activations, which no token pairs of "
                f"{len(record.tokens)} tokens have",
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
    rows, columns, starts = _coordinates(lengths, caps)
    finite = np.isfinite(values)
    every = bool(finite.all())
    addends = values if every else np.where(finite, values, 0.0)
    candidates = values if every else np.where(finite, values, -np.inf)
    max_in = np.maximum.reduceat(candidates, starts)
    max_out = np.full(num_tokens, -np.inf)
    np.maximum.at(max_out, columns, candidates)
    max_in[~np.isfinite(max_in)] = 0.0
    max_out[~np.isfinite(max_out)] = 0.0
    total_in = np.bincount(rows, weights=addends, minlength=num_tokens).astype(np.float64)
    total_out = np.bincount(columns, weights=addends, minlength=num_tokens).astype(np.float64)
    return total_in, max_in, total_out, max_out


def _coordinates(
    lengths: list[int], caps: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Attending and attended-to token of every value, as positions among all tokens.

    And where each token's row starts: rows lie one after the other, and none is empty.
    """
    shapes = tuple(zip(lengths, caps, strict=True))
    if sum(length * cap for length, cap in shapes) <= _LARGEST_KEPT:
        return _kept_coordinates(shapes)
    return _new_coordinates(shapes)


def _new_coordinates(
    shapes: tuple[tuple[int, int], ...],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    of_shape = {shape: token_pairs.coordinates(*shape) for shape in set(shapes)}
    num_pairs = [len(of_shape[shape][0]) for shape in shapes]
    lengths = np.array([length for length, _ in shapes], dtype=np.int64)
    firsts = np.repeat(np.cumsum(lengths) - lengths, num_pairs)
    rows = np.concatenate([of_shape[shape][0] for shape in shapes])
    columns = np.concatenate([of_shape[shape][1] for shape in shapes])
    rows, columns = rows + firsts, columns + firsts
    return rows, columns, np.flatnonzero(np.diff(rows, prepend=-1))


# The sequences of a dataset's records mostly have the same lengths.
_kept_coordinates = lru_cache(maxsize=8)(_new_coordinates)
