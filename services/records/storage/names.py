"""What a folder holds, and which of it is called by a number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Indices are 64-bit on the wire; a folder with a longer number is no layer.
_MAX_INDEX = 2**63 - 1


class Entry(NamedTuple):
    """A file or a folder in a folder; `state` tells states of a file apart, where it is asked for.

    What is neither, such as a pipe, counts as a file without a state.
    """

    name: str
    is_folder: bool
    state: str = ""


def ascending(names: Iterable[str], suffix: str = "") -> list[int]:
    """The numbers of names that are a number before `suffix`; others are passed over."""
    numbers = (index_of(name.removesuffix(suffix)) for name in names if name.endswith(suffix))
    return sorted(number for number in numbers if number is not None)


def index_of(name: str) -> int | None:
    """The number that `name` is written as; None for 007, ² and whatever else no index is."""
    if not (name.isascii() and name.isdigit()) or len(name) > 19:
        return None
    number = int(name)
    return number if str(number) == name and number <= _MAX_INDEX else None
