"""What callers and the log are told of storage that fails."""

from __future__ import annotations

import errno
import os

import blobfile
import structlog

from services.records.storage.failures import failure
from services.records.storage.transport import CredentialsRefused, LeftAlone


def told(error: Exception) -> tuple[str, str, str]:
    """Message, and the level and the cause of what is logged."""
    with structlog.testing.capture_logs() as logs:
        message = failure("az://acct/box/0/1.json", error).message
    (entry,) = logs
    return message, entry["log_level"], entry["cause"]


def test_a_store_that_is_left_alone_is_not_logged_for_every_call() -> None:
    message, level, _ = told(LeftAlone("acct"))
    assert "is left alone for a moment" in message
    assert level == "debug"


def test_a_store_that_does_not_answer_has_no_status() -> None:
    refused = blobfile.RequestFailure("refused", "GET", 0, None, None)
    _, level, cause = told(refused)
    assert (level, cause) == ("warning", "no connection")
    _, _, cause = told(blobfile.RequestFailure("busy", "GET", 503, None, None))
    assert cause == "status 503"


def test_who_grants_no_access_is_told() -> None:
    local = told(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    assert "the system grants the service no access" in local[0]
    store = told(CredentialsRefused("acct"))
    assert "the deployment's credentials grant no access" in store[0]
