"""Bodies of requests that are looked at before the application sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Message, Receive

LARGEST_BODY = 4096
"""Larger bodies are passed on as they come: no usual request has one."""


async def received(receive: Receive) -> list[Message]:
    """The messages of a body, up to a size."""
    messages = [await receive()]
    size = len(messages[0].get("body", b""))
    while messages[-1].get("more_body", False) and size <= LARGEST_BODY:
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
    return messages


def whole(messages: list[Message]) -> bytes | None:
    """The body that the messages make; None where it has more, or is too large."""
    last = messages[-1]
    if last["type"] != "http.request" or last.get("more_body", False):
        return None
    body = b"".join(message.get("body", b"") for message in messages)
    return body if len(body) <= LARGEST_BODY else None


class Replay:
    """Gives the messages that were received already, then what comes after them."""

    def __init__(self, messages: list[Message], receive: Receive) -> None:
        self._messages = iter(messages)
        self._receive = receive

    async def __call__(self) -> Message:
        """The next message."""
        for message in self._messages:
            return message
        return await self._receive()
