"""The records of many components, in their order, each as soon as it is there."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.records.caching.replies import ReplyCache
from services.records.components import Component
from services.records.explanations import Failure
from shared.errors import NeuropilError, ResourceExhausted

MAX_GROUP_BYTES = 2**20
"""Items that go together have at most so many bytes; one that alone is larger goes alone."""

ITEM_BYTES = 32
"""What an item takes at most besides its record: its position, and how long its parts are."""

# Components that are read side by side: few at first, so that it starts at once.
_FIRST_WINDOW = 4
_LARGEST_WINDOW = 64
_WINDOW_BYTES = 32 * 2**20
_USUAL_REPLY_BYTES = 2**16

Read = Callable[[Component, set[str]], Awaitable[bytes]]
"""Gives the serialized record of a component, or raises a domain error; the keys are those that the
shared cache is known not to have."""


@dataclass(slots=True)
class BatchItem:
    """The serialized record of the component at `position` of a batch, or why there is none."""

    position: int
    by_token_pair: bool
    outcome: bytes | Failure
    num_bytes: int
    """At most so many bytes are sent of it."""


class Batch:
    """Reads the records of many components, whose keys in the cache `key_of` gives.

    A component without a key is read all the same. What is in memory is given out from there. From
    the first component on that is not, some are read side by side: at most 64 of them, and of the
    size of those before them at most 32 MiB. Nothing is read further ahead of who takes them.
    """

    def __init__(
        self,
        components: Sequence[Component],
        key_of: Callable[[Component], str | None],
        cache: ReplyCache,
        read: Read,
        *,
        ttl_seconds: float,
        max_reply_bytes: int,
    ) -> None:
        self._components = components
        self._key_of = key_of
        self._cache = cache
        self._read = read
        self._ttl_seconds = ttl_seconds
        self._max_reply_bytes = max_reply_bytes

    async def groups(self, max_items: int) -> AsyncGenerator[list[BatchItem], None]:
        """The items in their order, up to `max_items` together.

        The first group has one, the next up to two, and so on by doubling. A group has fewer where
        the next item has to be waited for.
        """
        group = _Group(max_items, min(MAX_GROUP_BYTES, self._max_reply_bytes))
        components, window, largest = self._components, _FIRST_WINDOW, _USUAL_REPLY_BYTES
        ahead: deque[bytes | asyncio.Task[bytes | Failure]] = deque()
        try:
            for position, component in enumerate(components):
                outcome: bytes | Failure | None = None
                if not ahead:
                    outcome = self._in_memory(self._key_of(component))
                    if outcome is None:
                        if group:
                            yield group.take()
                        # What is read ahead of a slow client is bounded in number and in bytes.
                        count = min(window, max(1, _WINDOW_BYTES // largest))
                        await self._read_ahead(ahead, components[position : position + count])
                        window = min(2 * window, _LARGEST_WINDOW)
                if outcome is None:
                    following = ahead[0]
                    if isinstance(following, bytes):
                        outcome = following
                    else:
                        if group and not following.done():
                            yield group.take()
                        outcome = await following
                    ahead.popleft()
                item = self._item(position, component, outcome)
                largest = max(largest, item.num_bytes)
                if not group.has_room_for(item):
                    yield group.take()
                group.add(item)
                if group.is_full:
                    yield group.take()
            if group:
                yield group.take()
        finally:
            # Who takes them may have gone.
            for following in ahead:
                if not isinstance(following, bytes):
                    following.cancel()

    def _in_memory(self, key: str | None) -> bytes | None:
        # What is known to be missing from the first dataset may be in the next.
        found = None if key is None else self._cache.peek(key)
        return found if isinstance(found, bytes) else None

    async def _read_ahead(
        self,
        ahead: deque[bytes | asyncio.Task[bytes | Failure]],
        components: Sequence[Component],
    ) -> None:
        """Begin to read; what the caches have is there at once, and held until it is taken."""
        keys = [self._key_of(component) for component in components]
        found = [self._in_memory(key) for key in keys]
        wanted = [
            key for key, reply in zip(keys, found, strict=True) if key is not None and reply is None
        ]
        absent: set[str] = set()
        if wanted:
            absent = await self._cache.prefetch(wanted, ttl_seconds=self._ttl_seconds)
        for component, key, reply in zip(components, keys, found, strict=True):
            kept = reply
            if kept is None and key not in absent:
                kept = self._in_memory(key)
            ahead.append(
                asyncio.create_task(self._outcome(component, absent)) if kept is None else kept
            )

    async def _outcome(self, component: Component, not_shared: set[str]) -> bytes | Failure:
        try:
            return await self._read(component, not_shared)
        except NeuropilError as error:
            return Failure.of(error)

    def _item(self, position: int, component: Component, outcome: bytes | Failure) -> BatchItem:
        if isinstance(outcome, bytes):
            num_bytes = ITEM_BYTES + len(outcome)
            if num_bytes <= self._max_reply_bytes:
                return BatchItem(position, component.by_token_pair, outcome, num_bytes)
            error = ResourceExhausted(
                f"The record of {component} is {len(outcome)} bytes as an answer; in a batch at "
                f"most {self._max_reply_bytes - ITEM_BYTES} are sent.",
                reason="REPLY_TOO_LARGE",
            )
            outcome = Failure.of(error)
        metadata = outcome.metadata
        texts = [outcome.code, outcome.reason, outcome.message, outcome.dataset]
        texts += [*metadata.keys(), *metadata.values()]
        num_bytes = ITEM_BYTES + sum(ITEM_BYTES + len(text.encode()) for text in texts)
        return BatchItem(position, component.by_token_pair, outcome, num_bytes)


class _Group:
    """Items that go together."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._room = 1
        self._items: list[BatchItem] = []
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for any other."""
        return len(self._items) >= self._room or self._num_bytes >= self._max_bytes

    def has_room_for(self, item: BatchItem) -> bool:
        """Whether the item goes with those that are there; an empty group takes any."""
        return not self._items or self._num_bytes + item.num_bytes <= self._max_bytes

    def add(self, item: BatchItem) -> None:
        """Add an item."""
        self._items.append(item)
        self._num_bytes += item.num_bytes

    def take(self) -> list[BatchItem]:
        """The items; an empty group with twice the room is left."""
        items, self._items, self._num_bytes = self._items, [], 0
        self._room = min(2 * self._room, self._max_items)
        return items
