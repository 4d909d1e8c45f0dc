"""Replies at hand: what still surrounds them, and what does not."""

from __future__ import annotations

from typing import Any, cast

from shared.rpc.interceptors.deadlines import DeadlineInterceptor
from shared.rpc.interceptors.kept_replies import answer_kept, kept_or_parsed
from shared.rpc.interceptors.validation import ValidationInterceptor
from shared.rpc.interceptors.wrapping import (
    Behavior,
    Context,
    Interceptor,
    surround_stream,
    surround_unary,
)


class Noted(Interceptor):
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls

    def unary(self, method: str, behavior: Behavior) -> Behavior:
        async def call(request: Any, context: Context) -> Any:
            self.calls.append(f"{self.name} {method}")
            try:
                return await behavior(request, context)
            finally:
                self.calls.append(f"{self.name} end")

        return call


class NotedDeadline(DeadlineInterceptor):
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def unary(self, method: str, behavior: Behavior) -> Behavior:
        return Noted("deadline", self.calls).unary(method, behavior)


class NotedValidation(ValidationInterceptor):
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def unary(self, method: str, behavior: Behavior) -> Behavior:
        return Noted("validation", self.calls).unary(method, behavior)


class Written:
    """What a streaming method writes."""

    def __init__(self, refuse: int | None = None) -> None:
        self.messages: list[Any] = []
        self.refuse = refuse

    async def write(self, message: Any) -> None:
        if len(self.messages) == self.refuse:
            raise ConnectionError("the caller has gone")
        self.messages.append(message)


NO_CONTEXT = cast("Context", None)


def test_a_request_is_parsed_only_where_no_reply_is_at_hand() -> None:
    parsed: list[bytes] = []

    def parse(data: bytes) -> str:
        parsed.append(data)
        return data.decode()

    deserialize = kept_or_parsed({b"known": b"reply", b"nothing": b""}.get, parse)
    assert deserialize(b"known") == b"reply"
    # An empty reply is a reply.
    assert deserialize(b"nothing") == b""
    assert parsed == []
    assert deserialize(b"other") == "other"
    assert parsed == [b"other"]


async def test_a_reply_at_hand_is_neither_validated_nor_given_a_deadline() -> None:
    calls: list[str] = []
    interceptors = [
        Noted("outer", calls),
        NotedDeadline(calls),
        Noted("inner", calls),
        NotedValidation(calls),
    ]

    async def behavior(request: str, context: Context) -> bytes:
        calls.append("served")
        return request.encode()

    served = surround_unary("S/M", behavior, interceptors)
    call = answer_kept("S/M", served, interceptors)
    assert await call(b"reply", NO_CONTEXT) == b"reply"
    assert calls == ["outer S/M", "inner S/M", "inner end", "outer end"]
    calls.clear()
    assert await call("request", NO_CONTEXT) == b"request"
    assert calls == [
        "outer S/M",
        "deadline S/M",
        "inner S/M",
        "validation S/M",
        "served",
        "validation end",
        "inner end",
        "deadline end",
        "outer end",
    ]


async def test_a_stream_is_written_inside_of_what_surrounds_it() -> None:
    calls: list[str] = []

    async def behavior(request: int, context: Context) -> Any:
        try:
            for number in range(request):
                yield number
        finally:
            calls.append("closed")

    call = surround_stream("S/M", behavior, [Noted("outer", calls), Noted("inner", calls)])
    written = Written()
    assert await call(3, cast("Context", written)) is None
    assert written.messages == [0, 1, 2]
    assert calls == ["outer S/M", "inner S/M", "closed", "inner end", "outer end"]


async def test_a_stream_is_closed_at_once_where_it_can_not_be_written() -> None:
    calls: list[str] = []

    async def behavior(request: int, context: Context) -> Any:
        try:
            while True:
                yield request
        finally:
            calls.append("closed")

    call = surround_stream("S/M", behavior, [Noted("outer", calls)])
    written = Written(refuse=2)
    try:
        await call(7, cast("Context", written))
    except ConnectionError:
        calls.append("raised")
    assert written.messages == [7, 7]
    assert calls == ["outer S/M", "closed", "outer end", "raised"]
