"""Writing record and explanation files.

The JSON is what `shared.formats.decoding` reads: every object names its class, a number that is
not finite is null. A file appears whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.formats.simulations import AttentionSimulationResults, NeuronSimulationResults
from shared.formats.text import without_surrogates

_Results = TypeVar("_Results", NeuronSimulationResults, AttentionSimulationResults)

# Powers of ten up to this exponent are exact doubles, so one division rounds correctly.
_LARGEST_EXACT_EXPONENT = 22
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def encode(value: msgspec.Struct, *, significant_digits: int | None = None) -> bytes:
    """`value` as one line of JSON, without a line end.

    `significant_digits` shortens every float of a list to that many digits; None writes each so
    that it reads back as the same float64. Lone surrogates in text become U+FFFD.
    """
    if significant_digits is not None:
        value = _rounded(value, significant_digits)
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(without_surrogates(msgspec.to_builtins(value)))


def round_significant(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Each value rounded to `digits` significant decimal digits; shape and non-finites are kept.

    Results are the doubles that print with at most that many digits; a value that would round to
    infinity stays as it is.
    """
    if digits < 1:
        raise ValueError(f"significant digits must be at least 1, not {digits}")
    finite = np.isfinite(values) & (values != 0)
    magnitudes = np.abs(np.where(finite, values, 1.0))
    exponents = digits - 1 - np.floor(np.log10(magnitudes)).astype(np.int64)
    small = finite & (np.abs(exponents) <= _LARGEST_EXACT_EXPONENT)
    scale = 10.0 ** np.abs(np.where(small, exponents, 0))
    up = exponents >= 0
    whole = np.rint(np.where(up, values * scale, values / scale), where=small, out=values.copy())
    rounded = np.where(small, np.where(up, whole / scale, whole * scale), values)
    for index in np.argwhere(finite & ~small):
        place = tuple(index)
        rounded[place] = float(f"{values[place]:.{digits - 1}e}")
    # The largest doubles round to more than a double holds; infinity would be written as null.
    return np.where(finite & np.isinf(rounded), values, rounded)


def merge_explanations(existing: _Results | None, added: _Results) -> _Results:
    """All explanations of both; where a text is in both, the one of `added` takes its place."""
    if existing is None:
        return added
    merged: dict[str, Any] = {
        scored.explanation: scored
        for results in (existing, added)
        for scored in results.scored_explanations
    }
    return msgspec.structs.replace(added, scored_explanations=list(merged.values()))


def write_atomically(path: Path, data: bytes, *, alone: bool = False) -> None:
    """Put `data` at `path`, making its folder; a reader sees the old content or the new one.

    The data is on disk before it gets its name. Raises OSError; no temporary file is left then. A
    writer who knows that it is `alone` uses the one again that a killed process left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if alone:
        temporary = str(path.with_name(f".{path.name}.tmp"))
        handle = os.open(temporary, _CREATE, 0o600)
    else:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, msgspec.Struct):
        changes = {
            name: _rounded(getattr(value, name), digits)
            for name in value.__struct_fields__
            if isinstance(getattr(value, name), msgspec.Struct | list)
        }
        return msgspec.structs.replace(value, **changes)
    if isinstance(value, list):
        if value and all(type(item) is float for item in value):
            return round_significant(np.asarray(value, dtype=np.float64), digits).tolist()
        return [_rounded(item, digits) for item in value]
    return value
