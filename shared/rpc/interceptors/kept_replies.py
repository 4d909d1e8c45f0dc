"""Answers a request that was served before from its bytes, where the reply is at hand.

Bytes that were validated once are valid, so nothing need be parsed; and a call that does not
suspend can't outlive its deadline. Ids, metrics and admission are as for any other call.

Only the record service has such replies. This is here, and not there, as it says which interceptors
a call may pass by: who adds one or changes one has to look at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shared.rpc.interceptors.deadlines import DeadlineInterceptor
from shared.rpc.interceptors.validation import ValidationInterceptor
from shared.rpc.interceptors.wrapping import Behavior, Context, Interceptor, surround_unary

KeptReply = Callable[[bytes], bytes | None]
"""Gives the serialized reply to a serialized request, or None where it has to be made."""


def kept_or_parsed(kept: KeptReply, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A deserializer that gives the reply, as bytes, where it is at hand, else the request."""

    def deserialize(data: bytes) -> Any:
        reply = kept(data)
        return parse(data) if reply is None else reply

    return deserialize


def answer_kept(method: str, served: Behavior, interceptors: Sequence[Interceptor]) -> Behavior:
    """The method `served`, and kept replies with what still matters for them around them."""
    needless = (DeadlineInterceptor, ValidationInterceptor)
    around = [each for each in interceptors if not isinstance(each, needless)]
    at_hand = surround_unary(method, _itself, around)

    async def call(request: Any, context: Context) -> Any:
        chosen = at_hand if isinstance(request, bytes) else served
        return await chosen(request, context)

    return call


async def _itself(reply: bytes, context: Context) -> bytes:
    return reply
