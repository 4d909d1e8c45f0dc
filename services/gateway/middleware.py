"""What surrounds every request: its id, its time, its end when the client leaves, its trace."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog
from prometheus_client import Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from services.gateway.errors import GatewayError, from_http_error, internal_error
from shared.metrics import SECONDS_BUCKETS
from shared.rpc.context import REQUEST_ID_KEY, enter_deadline, enter_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TIMEOUT_HEADER = "x-timeout-seconds"
MAX_TIMEOUT_SECONDS = 3600.0

_SECONDS = Histogram(
    "neuropil_http_seconds",
    "Duration of HTTP requests",
    ("route", "method", "status"),
    buckets=SECONDS_BUCKETS,
)
_RUNNING = Gauge("neuropil_http_running", "HTTP requests that run now")

_CLIENT_LEFT = 499
_UNWATCHED_SECONDS = 0.01
_DROPPING_SECONDS = 5.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_log = structlog.get_logger("neuropil.requests")


class RequestMiddleware:
    """Gives a request its id and deadline, measures and logs it, and ends it if its client leaves.

    Outermost but for CORS. Nothing that the application raises gets past it: a defect is logged
    with its trace and answered with a fixed text.
    """

    def __init__(
        self, app: ASGIApp, *, routes: Collection[str], default_seconds: float, max_body_bytes: int
    ) -> None:
        self.application = app
        self._max_body_bytes = max_body_bytes
        self._routes = frozenset(routes)
        self._default_seconds = default_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        headers = Headers(scope=scope)
        chosen = enter_request(headers.get(REQUEST_ID_KEY, ""))
        answer = _Answer(send, chosen)
        started = time.perf_counter()
        _RUNNING.inc()
        try:
            enter_deadline(_seconds(headers.get(TIMEOUT_HEADER), self._default_seconds))
            watched = _WatchedReceive(receive, self._max_body_bytes)
            await watched.check(headers)
            async with _ended_with_client(watched, answer) as left:
                await self.application(scope, watched, answer)
            if left.is_set():
                answer.status = _CLIENT_LEFT
        except GatewayError as error:
            await error.response()(scope, receive, answer)
        except HTTPException as error:
            await from_http_error(error)(scope, receive, answer)
        except Exception:  # noqa: BLE001 - the last line of defence: nothing else may escape
            _log.exception("unexpected_error", path=scope["path"])
            if not answer.status:
                await internal_error().response()(scope, receive, answer)
        finally:
            _RUNNING.dec()
            self._observe(scope, answer, time.perf_counter() - started)

    def _observe(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        # Clients choose paths and methods; labels must stay few.
        route = scope["path"] if scope["path"] in self._routes else "unknown"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        _SECONDS.labels(route, method, str(answer.status)).observe(seconds)
        _log.info(
            "request",
            method=method,
            route=route,
            status=answer.status,
            bytes=answer.size,
            seconds=round(seconds, 6),
        )


def _seconds(sent: str | None, default: float) -> float:
    if sent is None:
        return default
    try:
        seconds = float(sent)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise GatewayError(
            400,
            f"{TIMEOUT_HEADER}: must be seconds above 0 and up to {MAX_TIMEOUT_SECONDS:.0f}",
            code="INVALID_ARGUMENT",
            reason="INVALID_ARGUMENT",
            field=TIMEOUT_HEADER,
        )
    return seconds


class _Answer:
    """Sends the answer with the request's id, and notes its status and size."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0
        self.size = 0
        self.ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID_KEY] = self._request_id
        elif message["type"] == "http.response.body":
            self.size += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        await self._send(message)


class _WatchedReceive:
    """Passes the body on to the application, up to a size; what comes after is for the watcher."""

    def __init__(self, receive: Receive, max_body_bytes: int) -> None:
        self._receive = receive
        self._max_body_bytes = max_body_bytes
        self._size = 0
        self._body_is_read = asyncio.Event()

    async def check(self, headers: Headers) -> None:
        """Refuse a body by the size that the client says it has."""
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_body_bytes:
            # One that asks before it sends the body needs no more than the answer.
            if "expect" not in headers:
                await self._drop()
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        # This one the framework lets through while it reads a body.
        return HTTPException(413, f"the body is larger than {self._max_body_bytes} bytes")

    async def _drop(self) -> None:
        """Read on, up to as much again as is allowed.

        A client that listens only once it has sent all would else find its connection reset.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_DROPPING_SECONDS):
                more = True
                while more and self._size <= 2 * self._max_body_bytes:
                    message = await self._receive()
                    self._size += len(message.get("body", b""))
                    more = message.get("more_body", False)

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._max_body_bytes:
            if message.get("more_body", False):
                await self._drop()
            raise self._too_large()
        if not message.get("more_body", False):
            self._body_is_read.set()
        return message

    async def disconnect(self) -> None:
        """Return when the client has left."""
        await self._body_is_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


@asynccontextmanager
async def _ended_with_client(
    receive: _WatchedReceive, answer: _Answer
) -> AsyncIterator[asyncio.Event]:
    """Cancel the block, and with it the calls that it waits for, when the client leaves."""
    left = asyncio.Event()
    serving = asyncio.current_task()
    assert serving is not None

    async def watch() -> None:
        await receive.disconnect()
        # A server also reports the end of an answer that was sent whole in this way.
        if not answer.ended:
            left.set()
            serving.cancel()

    watcher: asyncio.Task[None] | None = None

    def start() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    # Most requests are over by then, and need no task that watches.
    timer = serving.get_loop().call_later(_UNWATCHED_SECONDS, start)
    try:
        yield left
    except asyncio.CancelledError:
        if not left.is_set():
            raise
        serving.uncancel()
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
