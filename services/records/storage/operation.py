"""One read, listing or write of a blob store: its time, and its end from outside."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_current: ContextVar[Operation | None] = ContextVar("neuropil_storage_operation", default=None)


class GivenUp(Exception):
    """The operation's time is over, or nobody waits for it any more."""


class Operation:
    """What a thread does for one caller, who may give it up from another thread.

    Giving up closes the connection that the thread waits for, so that the thread is free at once.
    """

    def __init__(
        self,
        seconds: float,
        max_blob_bytes: int | None = None,
        on_answered: Callable[[], object] = lambda: None,
    ) -> None:
        """`max_blob_bytes` is for an operation that takes less than others; `on_answered` is called
        when the store is not asked any more."""
        self.max_blob_bytes = max_blob_bytes
        self._on_answered = on_answered
        self._deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._connection: HTTPConnection | None = None
        self._given_up = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make it the current one of this thread."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._given_up

    def seconds_left(self) -> float:
        """Seconds that it still has; GivenUp where it has none."""
        left = self._deadline - time.monotonic()
        if self._given_up or left <= 0:
            raise GivenUp
        return left

    def answered(self) -> None:
        """The store is not asked any more; GivenUp where nobody waits for what is left to do."""
        if self._given_up:
            raise GivenUp
        self._on_answered()

    def give_up(self) -> None:
        """End it: what it waits for, and whatever it would do after that."""
        with self._lock:
            self._given_up = True
            waited_for = getattr(self._connection, "sock", None)
            if isinstance(waited_for, socket.socket):
                with suppress(OSError):
                    waited_for.shutdown(socket.SHUT_RDWR)

    def begins_request(self, connection: HTTPConnection) -> None:
        """It uses the connection; GivenUp where nobody waits for the answer."""
        with self._lock:
            if self._given_up:
                raise GivenUp
            self._connection = connection

    def ended_request(self) -> None:
        """The connection is another's from now on."""
        with self._lock:
            self._connection = None


def current() -> Operation | None:
    """The operation that this thread works on."""
    return _current.get()


class _Connection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _announce(self)

    def request(self, *arguments: Any, **options: Any) -> None:
        _announce(self)
        super().request(*arguments, **options)


class _SecureConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _announce(self)

    def request(self, *arguments: Any, **options: Any) -> None:
        _announce(self)
        super().request(*arguments, **options)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def announce_connections(manager: urllib3.PoolManager) -> None:
    """Let every connection of the manager tell the operation that it works for."""
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}


def _announce(connection: HTTPConnection) -> None:
    operation = current()
    if operation is not None:
        operation.begins_request(connection)
