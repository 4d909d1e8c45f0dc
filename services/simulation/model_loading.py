"""Models are loaded one at a time in a process, whatever thread asks for them.

transformers puts another module in its own place while it is imported, and changes torch for all
threads while it makes a model: two that load at once find half of the library, or weights that were
never read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

from shared.errors import Unavailable

FAILURE_HOLDS_SECONDS = 10.0
"""How long calls get the error of an attempt to load before one makes another."""

P = ParamSpec("P")
T = TypeVar("T")

_loading = Lock()


def loading_alone(load: Callable[P, T]) -> Callable[P, T]:
    """`load`, which waits until no other function of this decorator runs."""

    @wraps(load)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> T:
        with _loading:
            return load(*args, **kwargs)

    return waiting


class LoadAttempts:
    """Attempts to load one model, by one thread at a time.

    Calls that waited while one failed get its error: none of them attempts it in turn.
    """

    def __init__(self) -> None:
        self._error: Unavailable | None = None
        self._held_until = 0.0

    @property
    def failure(self) -> str:
        """Why the last attempt failed; empty where none did."""
        return self._error.message if self._error is not None else ""

    def attempt(self, load: Callable[[], T]) -> T:
        """What `load` returns.

        Raises:
            Unavailable: it raises that now, or did so a short while ago.
        """
        if self._error is not None and time.monotonic() < self._held_until:
            held = self._error
            raise Unavailable(held.message, reason=held.reason, metadata=held.metadata)
        try:
            return load()
        except Unavailable as error:
            self._error = error
            self._held_until = time.monotonic() + FAILURE_HOLDS_SECONDS
            raise
