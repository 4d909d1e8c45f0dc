"""What goes wrong where state is kept, as the errors that a caller is told of."""

from __future__ import annotations

import errno

import structlog

from services.simulation.state.store import SETTING
from shared.errors import FailedPrecondition, NeuropilError, ResourceExhausted, Unavailable

RETRY_AFTER_SECONDS = 2.0

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR})
_log = structlog.get_logger(__name__)


def failure_of(error: OSError, doing: str) -> NeuropilError:
    """The error for a file that can't be read, listed or written."""
    cause = error.strerror or type(error).__name__
    _log.warning("state_failure", doing=doing, cause=cause)
    if error.errno in _FULL:
        return full(cause)
    if error.errno in _DENIED:
        return denied(doing, cause)
    return unavailable(doing, cause)


def full(cause: str) -> ResourceExhausted:
    """The error for a place without room."""
    return ResourceExhausted(
        f"{SETTING} has no room for more: {cause}; what was kept before is kept",
        reason="STATE_STORAGE_FULL",
        metadata={"setting": SETTING},
    )


def denied(doing: str, cause: str) -> FailedPrecondition:
    """The error for a place that the service may not use so."""
    return FailedPrecondition(
        f"{SETTING} can't be {doing}: {cause}",
        reason="STATE_ACCESS_DENIED",
        metadata={"setting": SETTING},
    )


def unavailable(doing: str, cause: str) -> Unavailable:
    """The error for a place that does not answer now."""
    return Unavailable(
        f"{SETTING} can't be {doing} now: {cause}; what was kept before is kept",
        reason="STATE_UNAVAILABLE",
        metadata={"setting": SETTING},
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
