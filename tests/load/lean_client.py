"""An HTTP client that does little: what is measured is the server, which shares the processors.

It checks the status and the announced length of every answer, and looks at nothing else. Answers
must have a Content-Length, as the gateway's do.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def post(route: str, body: bytes) -> bytes:
    """The bytes of a POST request with a JSON body."""
    head = (
        f"POST {route} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


GET_ROOT = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n"


class Connection(asyncio.BufferedProtocol):
    """One connection, one request at a time; the body is received and dropped."""

    def __init__(self) -> None:
        self._buffer = bytearray(1 << 20)
        self._view = memoryview(self._buffer)
        self._head = b""
        self._left = -1
        self._size = 0
        self._answered: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, address: str) -> Connection:
        """Connect to HOST:PORT."""
        host, port = address.rsplit(":", 1)
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        return connection

    async def send(self, request: bytes) -> int:
        """Send a request; the size of the answer's body once all of it is there."""
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of the protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of the protocol."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionError("closed in the middle"))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Part of the protocol."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Part of the protocol."""
        if self._left < 0:
            self._head += bytes(self._view[:nbytes])
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            status, length = _STATUS.match(self._head), _LENGTH.search(self._head, 0, end)
            if status is None or status[1] != b"200" or length is None:
                self._fail(self._head[:200].decode(errors="replace"))
                return
            self._size = int(length[1])
            self._left = self._size - (len(self._head) - end - 4)
        else:
            self._left -= nbytes
        if self._left == 0:
            self._head, self._left = b"", -1
            if self._answered is not None and not self._answered.done():
                self._answered.set_result(self._size)

    def _fail(self, answer: str) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(RuntimeError(f"not the answer that was meant: {answer}"))
