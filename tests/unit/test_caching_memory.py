"""Replies in memory: a bound in bytes that holds, whatever comes."""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.records.caching.memory import ENTRY_BYTES, MISSING, Missing, ReplyMemory

KEYS = st.sampled_from(["a", "b", "c", "naïve", "東京", "k" * 300])
REPLIES = st.one_of(st.just(MISSING), st.integers(0, 3000).map(bytes))


class Modelled(RuleBasedStateMachine):
    """The memory against a list that is searched and counted anew each time.

    Lifetimes are up to a tenth shorter by chance, too little for the steps of time to tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.memory = ReplyMemory(5000, timer=lambda: self.now)
        self.model: OrderedDict[str, tuple[bytes | Missing, float, int]] = OrderedDict()

    @rule(key=KEYS, reply=REPLIES, ttl=st.sampled_from([1.0, 4.0]))
    def keep(self, key: str, reply: bytes | Missing, ttl: float) -> None:
        self.memory.keep(key, reply, ttl)
        self.model.pop(key, None)
        text = len(key) if key.isascii() else 4 * len(key)
        size = ENTRY_BYTES + text + (0 if isinstance(reply, Missing) else len(reply))
        if size <= 5000:
            self.model[key] = (reply, self.now + ttl, size)
            while sum(entry[2] for entry in self.model.values()) > 5000:
                self.model.popitem(last=False)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        entry = self.model.get(key)
        if entry is not None and entry[1] <= self.now:
            del self.model[key]
            entry = None
        if entry is not None:
            self.model.move_to_end(key)
        assert self.memory.get(key) is (entry[0] if entry else None)

    @rule(key=KEYS)
    def drop(self, key: str) -> None:
        self.memory.drop(key)
        self.model.pop(key, None)

    @rule(seconds=st.sampled_from([0.5, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def is_counted(self) -> None:
        assert len(self.memory) == len(self.model)
        assert self.memory.num_bytes == sum(entry[2] for entry in self.model.values()) <= 5000


TestModelled = Modelled.TestCase


def test_what_came_together_does_not_end_together() -> None:
    now = 0.0
    memory = ReplyMemory(10_000_000, timer=lambda: now)
    keys = [f"k{number}" for number in range(1000)]
    for key in keys:
        memory.keep(key, b"reply", 100.0)
    for seconds, expected in ((89.9, 1000), (92.5, 750), (95.0, 500), (97.5, 250), (100.0, 0)):
        now = seconds
        left = sum(memory.get(key) is not None for key in keys)
        # As many as chance allows: ten standard deviations.
        assert abs(left - expected) < 10 * math.sqrt(expected * (1000 - expected) / 1000) + 1


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=20),
    st.integers(20_000, 500_000),
    st.sampled_from(["k{}", "東京{}", "\U0001f600" * 30 + "{}"]),
)
def test_what_is_taken_is_what_is_counted(sizes: list[int], bound: int, key: str) -> None:
    memory = ReplyMemory(bound)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(600):
            size = sizes[number % len(sizes)]
            memory.keep(key.format(number), bytes(size) if size else MISSING, 60)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # Tables have room for more than they hold when most entries have gone again.
    assert taken <= bound + 64 * 1024
