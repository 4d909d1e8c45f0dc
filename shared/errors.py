"""Errors of the domain.

Domain code raises these and knows nothing of gRPC or HTTP. One interceptor
(`shared.rpc.interceptors.errors`) turns them into a status with details; anything else that
escapes is a defect of ours and is answered as INTERNAL with a fixed text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

DOMAIN = "neuropil"
"""The `domain` of every ErrorInfo that Neuropil sends."""


class NeuropilError(Exception):
    """A failure that the caller is told about.

    `message` is a sentence for people. `reason` is UPPER_SNAKE_CASE for programs and stable.
    `field` is the path of the request field (or configuration key) at fault, as the caller wrote
    it, and empty where no field is. `metadata` holds what a program may act on (the datasets
    tried, the file, an estimate), as strings.
    """

    code: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status code."""
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds


class InvalidArgument(NeuropilError):
    """The request can't be right, whatever the state of the system; `field` says where."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_ARGUMENT"


class NotFound(NeuropilError):
    """What was named does not exist."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class DataLoss(NeuropilError):
    """Stored data can't be read; metadata has `file` and, where known, `field`."""

    code = "DATA_LOSS"
    default_reason = "CORRUPT_FILE"


class FailedPrecondition(NeuropilError):
    """The request is well formed, but the system is not set up for it."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"


class Aborted(NeuropilError):
    """What was asked for runs already, for somebody else; when that has ended, it can run."""

    code = "ABORTED"
    default_reason = "ABORTED"


class ResourceExhausted(NeuropilError):
    """Too large, or a quota or queue is full; metadata may hold the estimate and the limit."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(NeuropilError):
    """The caller's time ran out."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class Unavailable(NeuropilError):
    """A dependency does not answer now; trying again later may work."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class Unimplemented(NeuropilError):
    """Part of the contract that this release does not serve yet."""

    code = "UNIMPLEMENTED"
    default_reason = "NOT_IMPLEMENTED_YET"


class ConfigurationError(Exception):
    """The deployment can't start as configured; `key` is the configuration key at fault."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key
        self.message = message
