"""What went wrong in storage, as the errors that a caller is told of.

Only the system's own words are passed on: other texts hold paths, URLs and headers.
"""

from __future__ import annotations

import binascii
import errno
import re

import blobfile
import structlog
from urllib3.exceptions import HTTPError

from services.records.datasets import PATH_NOT_ALLOWED
from services.records.storage.circuit import PAUSE_SECONDS
from services.records.storage.operation import GivenUp
from services.records.storage.transport import AnswerTooLarge, CredentialsRefused, LeftAlone
from shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    NeuropilError,
    ResourceExhausted,
    Unavailable,
)

ACCESS_DENIED = "STORAGE_ACCESS_DENIED"
FILE_TOO_LARGE = "FILE_TOO_LARGE"
NOT_WRITABLE = "NOT_WRITABLE"
STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
WRITE_CONFLICT = "WRITE_CONFLICT"

# Besides its own errors blobfile raises these where a store's answer, or the credentials that the
# environment names, are not what they should be.
STORE_FAILURES = (
    blobfile.Error,
    HTTPError,
    OSError,
    GivenUp,
    LeftAlone,
    AnswerTooLarge,
    CredentialsRefused,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

_REFUSALS = frozenset({401, 403})
_REFUSED_ERRNOS = frozenset({errno.EACCES, errno.EPERM})
# What blobfile raises itself, before it knows any status, is about credentials.
_NOT_PUBLIC = 409
_CODE = re.compile(r"x-ms-error-code: (\w+)")

_log = structlog.get_logger(__name__)


def status_of(error: Exception) -> int | None:
    """The HTTP status that a store refused a request with; None where it did not."""
    return error.response_status if isinstance(error, blobfile.RequestFailure) else None


def refused(error: Exception) -> bool:
    """Whether the store, the system, or who hands out tokens answers but grants no access.

    So it is where the deployment's key can't be used at all.
    """
    if isinstance(error, CredentialsRefused | binascii.Error):
        return True
    if isinstance(error, OSError):
        return error.errno in _REFUSED_ERRNOS
    status = status_of(error)
    if status == _NOT_PUBLIC:
        return "PublicAccessNotPermitted" in str(error)
    return status in _REFUSALS or type(error) is blobfile.Error


def failure(name: str, error: Exception, doing: str = "read") -> NeuropilError:
    """The error for the file or folder `name` that can't be read, listed or written."""
    # That a store is left alone is logged once, and not for every call that it fails.
    log = _log.debug if isinstance(error, LeftAlone) else _log.warning
    log("storage_failure", file=name, doing=doing, cause=described(error))
    metadata = {"file": name}
    if refused(error):
        whose = (
            "the system grants the service"
            if isinstance(error, OSError)
            else "the deployment's credentials grant"
        )
        return FailedPrecondition(
            f"{name} can't be {doing}: {whose} no access to it.",
            reason=ACCESS_DENIED,
            metadata=metadata,
        )
    if isinstance(error, AnswerTooLarge):
        cause = "the blob store sent more than it was asked for"
    elif isinstance(error, GivenUp):
        cause = "the blob store took too long"
    elif isinstance(error, LeftAlone):
        cause = "the blob store fails and is left alone for a moment"
    else:
        words = error.strerror if isinstance(error, OSError) else None
        cause = words or "the blob store failed"
    return Unavailable(
        f"{name} can't be {doing} now: {cause}.",
        reason=STORAGE_UNAVAILABLE,
        metadata=metadata,
        retry_after_seconds=PAUSE_SECONDS,
    )


def too_large(name: str, size: int, limit: int, doing: str = "read") -> ResourceExhausted:
    """The error for a file of more bytes than are read or written."""
    return ResourceExhausted(
        f"{name} has {size} bytes; at most {limit} are {doing}.",
        reason=FILE_TOO_LARGE,
        metadata={"file": name, "bytes": str(size), "limit": str(limit)},
    )


def outside(name: str) -> InvalidArgument:
    """The error for a link that leads out of the folder that may be read."""
    return InvalidArgument(
        f"{name} may not be read: it is a link out of its dataset.", reason=PATH_NOT_ALLOWED
    )


def not_writable(name: str, why: str) -> FailedPrecondition:
    """The error for a folder that explanations can't be stored in."""
    return FailedPrecondition(
        f"{name} can't be written to: {why}.", field="explanation_dataset", reason=NOT_WRITABLE
    )


def write_conflict(name: str) -> Unavailable:
    """The error for a file that other writers change again and again."""
    return Unavailable(
        f"{name} can't be written now: other writers were faster each time.",
        reason=WRITE_CONFLICT,
        metadata={"file": name},
        retry_after_seconds=PAUSE_SECONDS,
    )


def described(error: Exception) -> str:
    """What the log says of an error: no header, no query, no credentials."""
    if isinstance(error, binascii.Error):
        return "a key that is no base64"
    if type(error) is blobfile.Error:
        return "no credentials that the store takes"
    status = status_of(error)
    if status is None:
        return (
            f"{type(error).__name__}: {error.strerror}"
            if isinstance(error, OSError)
            else (type(error).__name__)
        )
    if status == 0:
        # So blobfile calls that there was no answer.
        return "no connection"
    code = _CODE.search(str(error))
    return f"status {status}{f' {code[1]}' if code else ''}"
