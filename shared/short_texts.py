"""Texts of errors, short enough for the trailers of an answer and for many in one answer."""

from __future__ import annotations

from collections.abc import Mapping

# A client drops trailers of more than 8 KiB, and with them what they say. A text goes there twice
# in the details, which grow by a third, and once with up to three bytes for each of its own.
_TEXT_BYTES = 900
_METADATA_BYTES = 1200


def short_message(message: str) -> str:
    """A message, with "…" in place of its middle where it is too long."""
    return shortened(message, _TEXT_BYTES)


def short_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The same for metadata, as a whole."""
    if sum(len(value.encode()) for value in metadata.values()) <= _METADATA_BYTES:
        return metadata
    share = _METADATA_BYTES // len(metadata)
    return {key: shortened(value, share) for key, value in metadata.items()}


def shortened(text: str, most_bytes: int) -> str:
    """A text of at most so many bytes of UTF-8, with "…" in place of its middle."""
    data = text.encode()
    if len(data) <= most_bytes:
        return text
    kept = most_bytes - len("…".encode())
    head, tail = data[: kept - kept // 3], data[-(kept // 3) :]
    # A character that is cut in two is left out.
    return f"{head.decode(errors='ignore')}…{tail.decode(errors='ignore')}"
