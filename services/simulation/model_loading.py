"""Models are loaded one at a time in a process, whatever thread asks for them.

transformers puts another module in its own place while it is imported, and changes torch for all
threads while it makes a model: two that load at once find half of the library, or weights that were
never read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

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
