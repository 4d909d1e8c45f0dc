"""Text that a file may hold, and that can be sent on."""

from __future__ import annotations

from typing import Any


def without_surrogates(value: Any) -> Any:
    """`value`, parsed JSON, with U+FFFD for each half of a surrogate pair in its text and keys.

    Half of a pair is no text: it stands for a character that was cut, and UTF-8 has no form of it.
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value
