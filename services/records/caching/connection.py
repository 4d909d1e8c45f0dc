"""One connection to a Redis server on which any number of commands are under way at once.

redis-py hands a connection to one command at a time and moves a reply through several buffers; here
the parser (hiredis) reads from the socket's buffer, and commands issued in one turn of the event
loop leave in one write. Only what a cache needs is here: command, reply, time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis
from redis.connection import SSLConnection, parse_url

from services.records.caching.loop_time import LoopTime, loop_timeout
from shared.errors import ConfigurationError

OPERATION_SECONDS = 0.4
"""How long a server may take for a command, besides the time that its bytes take.

Pauses of this process do not count."""

SLOWEST_BYTES_PER_SECOND = 20e6
MAX_REPLY_BYTES = 64 * 2**20

_BUFFER_BYTES = 256 * 1024


class ConnectionFailed(Exception):
    """The server can't be reached, does not answer in time, or does not speak the protocol."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and how to log in; shown without its secrets."""

    host: str
    port: int
    path: str | None
    database: int
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address in a `redis://`, `rediss://` or `unix://` URL.

        ConfigurationError where the URL can't be read or names a certificate that can't.
        """
        try:
            _check_parts(url)
            # redis-py has no annotation here.
            options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
            encrypted = options.get("connection_class") is SSLConnection
            return cls(
                host=options.get("host", "localhost"),
                port=options.get("port", 6379),
                path=options.get("path"),
                database=options.get("db", 0),
                username=options.get("username"),
                password=options.get("password"),
                tls=_tls(options) if encrypted else None,
            )
        except OSError as error:
            raise ConfigurationError(
                "cache.url", f"names a certificate that can't be read: {error.strerror}"
            ) from None
        except ValueError:
            # The texts of these repeat parts of the URL, where a password may be.
            raise ConfigurationError(
                "cache.url",
                "can't be read; it is redis://user:password@host:port/database, where /, #, ? and "
                "@ in a password are written as %2F, %23, %3F and %40",
            ) from None

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


def _check_parts(url: str) -> None:
    """ValueError where a part of the URL would be passed over, as of a password that has a "/"."""
    parts = urlsplit(url)
    database = parts.path.strip("/")
    wrong_path = parts.scheme != "unix" and database and not re.fullmatch("[0-9]+", database)
    if wrong_path or parts.fragment or "@" in parts.query:
        raise ValueError("not a URL of a server")


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    required = options.get("ssl_cert_reqs", "required")
    if required not in ("none", "optional", "required"):
        raise ValueError("ssl_cert_reqs is none, optional or required")
    if required != "required" or options.get("ssl_check_hostname") in ("False", "false", False):
        context.check_hostname = False
    if required != "required":
        context.verify_mode = ssl.CERT_NONE if required == "none" else ssl.CERT_OPTIONAL
    if "ssl_certfile" in options:
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context


@dataclass(slots=True)
class _Pending:
    reply: asyncio.Future[Any]
    sent_at: float
    size: int
    sent_before: int
    received_before: int


class Connection(asyncio.BufferedProtocol):
    """Commands out, replies in, in order.

    A reply is what hiredis makes of it; an error that the server replied is a
    `hiredis.ReplyError`, a connection that ended a `ConnectionFailed`. Both are results of the
    futures and not raised, so that nobody need wait for them.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_UNFINISHED)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._pending: deque[_Pending] = deque()
        self._outgoing: list[bytes] = []
        self._received = 0
        self._unanswered = 0
        self._time = LoopTime(self._check_time)
        self._transport: asyncio.WriteTransport | None = None
        self.failure: ConnectionFailed | None = None
        """Why the connection ended."""

    def send(self, *command: bytes) -> asyncio.Future[Any]:
        """Send a command; the future gets its reply, or what failed."""
        # The annotation of hiredis means a tuple of one part.
        return self.send_parts([hiredis.pack_command(command)])  # type: ignore[arg-type]

    def send_parts(self, encoded: Sequence[bytes]) -> asyncio.Future[Any]:
        """The same for a command in the form of the wire, which is not copied."""
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self.failure is not None:
            reply.set_result(self.failure)
            return reply
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.extend(encoded)
        size = sum(map(len, encoded))
        self._unanswered += size
        self._pending.append(
            _Pending(reply, self._time.now(), size, self._unanswered, self._received)
        )
        self._time.start()
        return reply

    def now(self) -> float:
        """A clock for how long the server takes: pauses of this process do not count."""
        return self._time.now()

    def close(self, reason: str = "closed") -> None:
        """End the connection; what is under way gets `ConnectionFailed`."""
        if self.failure is not None:
            return
        self.failure = ConnectionFailed(reason)
        self._time.stop()
        if self._transport is not None:
            self._transport.abort()
        pending, self._pending = self._pending, deque()
        for each in pending:
            if not each.reply.done():
                each.reply.set_result(self.failure)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self._received += nbytes
        try:
            self._reader.feed(self._buffer[:nbytes])  # type: ignore[arg-type]
            while (reply := self._reader.gets()) is not _UNFINISHED:
                if not self._pending:
                    self.close("the server answered what nobody asked")
                    return
                asked = self._pending.popleft()
                self._unanswered -= asked.size
                if not asked.reply.done():
                    asked.reply.set_result(reply)
        except (hiredis.ProtocolError, UnicodeDecodeError):
            self.close("the server does not speak Redis' protocol")
            return
        if self._pending:
            head = self._pending[0]
            if self._received - head.received_before > MAX_REPLY_BYTES * len(self._pending):
                self.close("the server's reply is too long")

    def eof_received(self) -> bool:
        """See asyncio.BufferedProtocol."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self.close("the connection was lost")

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._transport is not None and self.failure is None:
            self._transport.writelines(outgoing)

    def _check_time(self) -> None:
        if not self._pending:
            self._time.stop()
            return
        oldest = self._pending[0]
        moved = oldest.sent_before + self._received - oldest.received_before
        allowed = OPERATION_SECONDS + moved / SLOWEST_BYTES_PER_SECOND
        if self._time.now() - oldest.sent_at > allowed:
            self.close("the server does not answer in time")


_UNFINISHED = object()


async def connect(address: Address) -> Connection:
    """Open a connection and log in; raises ConnectionFailed."""
    loop = asyncio.get_running_loop()
    connection: Connection | None = None
    try:
        async with loop_timeout(OPERATION_SECONDS):
            if address.path is not None:
                _, connection = await loop.create_unix_connection(Connection, address.path)
            else:
                _, connection = await loop.create_connection(
                    Connection, address.host, address.port, ssl=address.tls
                )
            for reply in await asyncio.gather(*_log_in(connection, address)):
                if isinstance(reply, ConnectionFailed):
                    raise reply
                if reply not in (b"OK", b"PONG"):
                    raise ConnectionFailed(f"the server refuses: {error_code(reply)}")
    except BaseException as error:
        if connection is not None:
            with contextlib.suppress(RuntimeError):
                connection.close()
        if isinstance(error, TimeoutError):
            raise ConnectionFailed("no connection in time") from None
        if isinstance(error, OSError):
            raise ConnectionFailed(f"no connection: {error.strerror or error}") from None
        if isinstance(error, ValueError):
            # A name that is none: too long a label, an empty one.
            raise ConnectionFailed("no connection: the host's name is none") from None
        raise
    return connection


def _log_in(connection: Connection, address: Address) -> list[asyncio.Future[Any]]:
    replies = []
    if address.password is not None:
        login = (address.username, address.password) if address.username else (address.password,)
        replies.append(connection.send(b"AUTH", *(part.encode() for part in login)))
    if address.database:
        replies.append(connection.send(b"SELECT", str(address.database).encode()))
    return [*replies, connection.send(b"PING")]


def error_code(error: object) -> str:
    """What kind of error the server replied: its code, as the rest may repeat what was sent."""
    code = str(error).split(" ", 1)[0] if isinstance(error, hiredis.ReplyError) else ""
    return code if code.isascii() and code.isupper() and len(code) <= 20 else "no usable answer"


def transfer_seconds(reply: object) -> float:
    """How long the bytes of a reply may take."""
    values = reply if isinstance(reply, list) else [reply]
    return sum(len(each) for each in values if isinstance(each, bytes)) / SLOWEST_BYTES_PER_SECOND
