"""Answers of the record routes, kept as the bytes that were sent.

A request is known by its route and the bytes of its body: the same bytes have the same answer, and
are neither parsed nor passed on again. Only answers with status 200 are kept, for a short time, in
a bounded number of bytes; requests for one that is on its way wait for it instead of asking too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from cachetools import TTLCache
from prometheus_client import Counter

from services.gateway.bodies import Replay, received, whole
from shared.rpc.context import seconds_left

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MOST_FAILURES = 2
"""After so many requests that it waited for failed, a request asks for itself."""

_ENTRY_BYTES = 512
"""What an entry takes besides its bytes, about."""

_OUTCOMES = Counter(
    "neuropil_http_answers", "Requests to routes whose answers are kept", ("outcome",)
)
_KEPT = _OUTCOMES.labels("kept")
_JOINED = _OUTCOMES.labels("joined")
_ASKED = _OUTCOMES.labels("asked")

Key = tuple[str, bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Answer:
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    size: int
    """Bytes that it takes in memory with its key, about."""

    async def send(self, send: Send) -> None:
        # The list is the message's own: what surrounds this adds its headers to it.
        start = {"type": "http.response.start", "status": 200, "headers": list(self.headers)}
        await send(start)
        await send({"type": "http.response.body", "body": self.body})


class _Without(Enum):
    FAILED = auto()
    LEFT = auto()


class AnswerCache:
    """Keeps the answers of some routes of an application.

    `routes`: paths whose answers depend on nothing but the body. `max_bytes`: most bytes kept.
    `seconds`: how long an answer is given before it is asked for anew.
    """

    def __init__(
        self, app: ASGIApp, *, routes: Collection[str], max_bytes: int, seconds: float
    ) -> None:
        self._application = app
        self._routes = frozenset(routes)
        self._max_bytes = max_bytes
        self._answers: TTLCache[Key, _Answer] = TTLCache(
            max_bytes, seconds, getsizeof=lambda answer: answer.size
        )
        self._flights: dict[Key, asyncio.Future[_Answer | _Without]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from what is kept, or have the application answer."""
        if (
            scope["type"] != "http"
            or scope["path"] not in self._routes
            or scope["method"] != "POST"
            or scope["query_string"]
        ):
            await self._application(scope, receive, send)
            return
        messages = await received(receive)
        body = whole(messages)
        if body is None:
            await self._application(scope, Replay(messages, receive), send)
            return
        key = (scope["path"], _content_type(scope), body)
        answer = self._answers.get(key)
        if answer is not None:
            _KEPT.inc()
        else:
            answer = await self._joined(key)
        if answer is not None:
            await answer.send(send)
            return
        _ASKED.inc()
        await self._ask(key, scope, Replay(messages, receive), send)

    async def _joined(self, key: Key) -> _Answer | None:
        """The answer that another request is waiting for; None where this one has to ask."""
        failures = 0
        while failures < _MOST_FAILURES and (flight := self._flights.get(key)) is not None:
            try:
                outcome = await asyncio.wait_for(asyncio.shield(flight), seconds_left())
            except TimeoutError:
                # Asking with no time left fails as it does for everybody.
                return None
            if isinstance(outcome, _Answer):
                _JOINED.inc()
                return outcome
            # What failed for another may have been its deadline: the next one asks.
            failures += outcome is _Without.FAILED
        return None

    async def _ask(self, key: Key, scope: Scope, receive: Receive, send: Send) -> None:
        if key in self._flights:
            await self._application(scope, receive, send)
            return
        flight: asyncio.Future[_Answer | _Without] = asyncio.get_running_loop().create_future()
        self._flights[key] = flight

        def land(outcome: _Answer | _Without) -> None:
            if not flight.done():
                del self._flights[key]
                flight.set_result(outcome)

        def keep(headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
            size = len(body) + sum(map(len, key)) + _ENTRY_BYTES
            answer = _Answer(headers, body, size)
            if size <= self._max_bytes:
                self._answers[key] = answer
            land(answer)

        try:
            await self._application(scope, receive, _Recorder(send, keep))
        except asyncio.CancelledError:
            land(_Without.LEFT)
            raise
        finally:
            land(_Without.FAILED)


def _content_type(scope: Scope) -> bytes:
    return b",".join(value for name, value in scope["headers"] if name == b"content-type")


class _Recorder:
    """Passes an answer on; one with status 200 goes to `keep` before its end is sent."""

    def __init__(
        self, send: Send, keep: Callable[[tuple[tuple[bytes, bytes], ...], bytes], None]
    ) -> None:
        self._send = send
        self._keep = keep
        self._headers: tuple[tuple[bytes, bytes], ...] | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] == 200:
                self._headers = tuple((name, value) for name, value in message["headers"])
        elif message["type"] == "http.response.body" and self._headers is not None:
            self._parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                self._keep(self._headers, b"".join(self._parts))
        await self._send(message)
