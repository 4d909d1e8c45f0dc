"""What a call carries along: its id and its deadline.

An interceptor sets them when a call arrives; a channel that `shared.rpc.channel` opened passes
them on. Code outside of a call (a script, a test) finds no deadline and an empty id.
"""

from __future__ import annotations

import random
import re
import time
from contextvars import ContextVar

REQUEST_ID_KEY = "x-request-id"
"""Metadata key, and in small letters the HTTP header, of the request id."""

MAX_REQUEST_ID_LENGTH = 128

_USABLE_ID = re.compile(rf"[A-Za-z0-9._:-]{{1,{MAX_REQUEST_ID_LENGTH}}}")

_request_id: ContextVar[str] = ContextVar("neuropil_request_id", default="")
_deadline: ContextVar[float | None] = ContextVar("neuropil_deadline", default=None)


def request_id() -> str:
    """Id of the call that is being served."""
    return _request_id.get()


def seconds_left() -> float | None:
    """Seconds until the deadline of the call that is being served; at least 0."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def enter_request(sent_id: str) -> str:
    """Note the id of the call that this task serves, and give the id that is used.

    An id that could break a log line or a header is replaced, as if none had been sent.
    """
    # An id tells calls apart and is no secret: the generator of the process is enough.
    chosen = sent_id if _USABLE_ID.fullmatch(sent_id) else f"{random.getrandbits(128):032x}"
    _request_id.set(chosen)
    return chosen


def enter_deadline(seconds: float) -> None:
    """Note how many seconds the call that this task serves still has."""
    _deadline.set(time.monotonic() + seconds)
