"""Runs kept for later requests on the same inference, and what was derived from them.

One bound in bytes holds for everything that is kept: captured tensors, finished derivations, and
the keys of both. The runs that were not used for longest go first.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from torch import Tensor

from services.scalars.deriving.activations import RawActivationStore
from services.scalars.engine.metrics import REUSE, REUSED_BYTES
from services.scalars.model.taps import RawTensorId

if TYPE_CHECKING:
    from services.scalars.passes.inference import PreparedInference, RunResult

DEFAULT_LIMIT_BYTES = 192 << 20
_MEMO_LIMIT_BYTES = 64 << 20

RUN_BYTES = 1500
TENSOR_BYTES = 800
"""About what a run that is kept takes besides its key, and each tensor besides its elements."""


def key_bytes(key: Hashable) -> int:
    """About what a key of tuples, dataclasses and plain values keeps alive, its entry included."""
    if isinstance(key, int | float | Enum):
        return 32
    if isinstance(key, tuple | frozenset):
        parts: Iterable[Hashable] = key
    elif is_dataclass(key):
        parts = [getattr(key, each.name) for each in fields(key)]
    else:
        return sys.getsizeof(key)
    return 100 + sum(8 + key_bytes(each) for each in parts)


class Memo:
    """A bounded memory of finished derivations beside a run; any thread may use it.

    A value must not change once it is here, and `n_bytes` is what it keeps alive; its key counts
    too. What was not used for longest is forgotten first; a value over the bound is not kept at
    all.
    """

    def __init__(
        self,
        limit_bytes: int = _MEMO_LIMIT_BYTES,
        grown: Callable[[int], None] = lambda n_bytes: None,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._grown = grown
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """What all values and their keys together keep alive."""
        return self._n_bytes

    def get(self, key: Hashable) -> Any | None:
        """The value that was put there, or None."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Any, n_bytes: int) -> None:
        """Remembers a value of `n_bytes` in the place of any other under its key."""
        n_bytes += key_bytes(key)
        with self._lock:
            before = self._n_bytes
            self._forget(key)
            if n_bytes <= self._limit_bytes:
                self._values[key] = (value, n_bytes)
                self._n_bytes += n_bytes
                while self._n_bytes > self._limit_bytes:
                    self._forget(next(iter(self._values)))
            difference = self._n_bytes - before
        # Not under the lock: who counts may in turn ask for the bytes.
        self._grown(difference)

    def _forget(self, key: Hashable) -> None:
        _, n_bytes = self._values.pop(key, (None, 0))
        self._n_bytes -= n_bytes


@dataclass(frozen=True, slots=True)
class RunKey:
    """What two inferences must have in common for their runs to be the same."""

    parts: tuple[Hashable, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Hashing a long prompt anew at every look-up would cost more than the look-up.
        object.__setattr__(self, "_hash", hash(self.parts))

    def __hash__(self) -> int:
        return self._hash


def run_key(prepared: PreparedInference) -> RunKey:
    """The key of a prepared inference: everything but what is captured."""
    values = dict(vars(prepared))
    overwrites = tuple(
        (
            overwrite.target,
            # A slice is hashed by no release of Python before 3.12.
            tuple(
                (each.start, each.stop, each.step) if isinstance(each, slice) else each
                for each in overwrite.index
            ),
            # Zero has a sign that `==` does not see.
            float(overwrite.value).hex(),
        )
        for overwrite in values.pop("overwrites")
    )
    return RunKey((overwrites, *sorted(values.items())))


@dataclass(eq=False)
class _Kept:
    result: RunResult
    tensors: dict[RawTensorId, Tensor]
    run_bytes: int
    memo_bytes: int = 0


class RunCache:
    """Runs by their key, bounded in bytes; the worker of a device uses it, and nobody else.

    A run serves a later request where it holds all that the request captures. Only its memo may be
    used by other threads. A bound of 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES, device: str = "cpu") -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.RLock()
        self._kept: OrderedDict[RunKey, _Kept] = OrderedDict()
        self._n_bytes = 0
        REUSED_BYTES.labels(device).set_function(lambda: self._n_bytes)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        """What all runs, their keys and their memos take."""
        return self._n_bytes

    def holds(self, key: RunKey, captures: Collection[RawTensorId]) -> bool:
        """Whether there is a run of the key with these captures."""
        with self._lock:
            kept = self._kept.get(key)
            return kept is not None and all(target in kept.tensors for target in captures)

    def get(self, key: RunKey, captures: Collection[RawTensorId]) -> RunResult | None:
        """The run of a key if it holds these captures, with nothing derived from it yet."""
        with self._lock:
            if not self.holds(key, captures):
                REUSE.labels("miss").inc()
                return None
            kept = self._kept[key]
            self._kept.move_to_end(key)
        REUSE.labels("hit").inc()
        return unshared(kept.result)

    def keep(self, key: RunKey, result: RunResult) -> RunResult:
        """Keeps a run; gives it as it is to be derived from, with the memo of its key.

        What an earlier run of the key captured and this one did not stays. A run that is larger
        than the bound comes back as it is.
        """
        tensors = dict(result.raw_store.tensors)
        fixed = RUN_BYTES + key_bytes(key)
        if fixed + _tensor_bytes(tensors) > self._limit_bytes:
            return result
        own = {target: _alone(tensor) for target, tensor in tensors.items()}
        with self._lock:
            before = self._kept.get(key)
            held = own if before is None else {**before.tensors, **own}
            n_bytes = fixed + _tensor_bytes(held)
            if before is not None and n_bytes > self._limit_bytes:
                held, n_bytes = own, fixed + _tensor_bytes(own)
            memo = self._memo(key) if before is None else before.result.memo
            kept = _Kept(
                replace(
                    result,
                    raw_store=RawActivationStore(held, result.raw_store.n_layers),
                    memo=memo,
                ),
                held,
                n_bytes,
                0 if before is None else before.memo_bytes,
            )
            self._n_bytes += n_bytes - (0 if before is None else before.run_bytes)
            self._kept[key] = kept
            self._kept.move_to_end(key)
            self._shrink_to(self._limit_bytes)
        return unshared(kept.result)

    def release(self, n_bytes: int) -> int:
        """Forgets runs until `n_bytes` are freed or none is left; gives the bytes freed."""
        with self._lock:
            before = self._n_bytes
            self._shrink_to(max(0, before - n_bytes))
            return before - self._n_bytes

    def clear(self) -> int:
        """Forgets everything; gives the bytes freed."""
        return self.release(self._n_bytes)

    def _memo(self, key: RunKey) -> Memo:
        def grown(n_bytes: int) -> None:
            with self._lock:
                kept = self._kept.get(key)
                # A run that was forgotten may still be derived from.
                if kept is not None and kept.result.memo is memo:
                    kept.memo_bytes += n_bytes
                    self._n_bytes += n_bytes
                    self._shrink_to(self._limit_bytes)

        memo = Memo(min(_MEMO_LIMIT_BYTES, self._limit_bytes), grown)
        return memo

    def _shrink_to(self, n_bytes: int) -> None:
        while self._n_bytes > n_bytes and self._kept:
            _, dropped = self._kept.popitem(last=False)
            self._n_bytes -= dropped.run_bytes + dropped.memo_bytes


def unshared(result: RunResult) -> RunResult:
    """The run with a store of its own, so that what a request derives ends with the request."""
    store = result.raw_store
    return replace(result, raw_store=RawActivationStore(store.tensors, store.n_layers))


def _tensor_bytes(tensors: dict[RawTensorId, Tensor]) -> int:
    return sum(TENSOR_BYTES + tensor.nbytes for tensor in tensors.values())


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: a row of a batch would keep its whole batch alive."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
