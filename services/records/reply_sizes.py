"""What is said of answers that are too large to be sent."""

from __future__ import annotations

from shared.errors import ResourceExhausted


def reply_too_large(what: str, size: int, limit: int) -> ResourceExhausted:
    """The error for an answer, or a message of one, that has `size` bytes or more."""
    return ResourceExhausted(
        f"{what}: {size} bytes or more in an answer; at most {limit} are sent.",
        reason="REPLY_TOO_LARGE",
        metadata={"bytes": str(size), "limit": str(limit)},
    )
