"""How far a batch reads ahead of who takes it, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from services.records.batches import Batch, BatchItem
from services.records.caching.replies import ReplyCache
from services.records.components import Component
from shared.errors import NotFound

MEBIBYTE = 2**20


class Source:
    """Reads that are noted; those of some components fail, or wait for ever."""

    def __init__(
        self,
        *,
        reply: bytes = b"reply",
        fails: dict[int, Exception] | None = None,
        hangs: frozenset[int] = frozenset(),
    ) -> None:
        self.reply = reply
        self.fails = fails or {}
        self.hangs = hangs
        self.begun: list[int] = []
        self.cancelled: list[int] = []

    async def __call__(self, component: Component, not_shared: set[str]) -> bytes:
        index = component.component_index
        self.begun.append(index)
        try:
            await asyncio.sleep(0)
            if index in self.hangs:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(index)
            raise
        if index in self.fails:
            raise self.fails[index]
        return self.reply


def batch(source: Source, count: int, cache: ReplyCache | None = None) -> Batch:
    return Batch(
        [Component("mlp_post_act", 0, index) for index in range(count)],
        lambda component: str(component.component_index),
        cache or ReplyCache(MEBIBYTE),
        source,
        ttl_seconds=60,
        max_reply_bytes=16 * MEBIBYTE,
    )


async def taken(groups: AsyncIterator[list[BatchItem]], least: int) -> list[BatchItem]:
    items: list[BatchItem] = []
    while len(items) < least:
        items += await anext(groups)
    return items


async def test_nothing_is_read_far_ahead_of_who_takes_it() -> None:
    source = Source()
    async with aclosing(batch(source, 1000).groups(1)) as groups:
        assert source.begun == []
        # Windows of 4, 8, 16, 32 and then 64.
        for least, begun in ((1, 4), (3, 4), (1, 12), (8, 28), (16, 60), (32, 124), (64, 188)):
            await taken(groups, least)
            assert len(source.begun) == begun


async def test_large_records_are_read_ahead_by_their_bytes() -> None:
    source = Source(reply=bytes(8 * MEBIBYTE))
    async with aclosing(batch(source, 100).groups(256)) as groups:
        for number in range(20):
            (item,) = await anext(groups)
            assert item.position == number
            # 32 MiB, and the first four whose size nobody knew.
            assert len(source.begun) <= number + 1 + 4


async def test_what_is_in_memory_is_not_read() -> None:
    cache, source = ReplyCache(MEBIBYTE), Source()
    for index in range(0, 50, 2):

        async def load(index: int = index) -> bytes:
            return b"kept %d" % index

        await cache.get(str(index), load, ttl_seconds=60)
    async with aclosing(batch(source, 50, cache).groups(8)) as groups:
        items = await taken(groups, 50)
    assert source.begun == list(range(1, 50, 2))
    assert [item.outcome for item in items] == [
        source.reply if index % 2 else b"kept %d" % index for index in range(50)
    ]


async def test_a_failure_stands_in_its_place() -> None:
    source = Source(fails={3: NotFound("no record of 3")})
    async with aclosing(batch(source, 6).groups(8)) as groups:
        items = await taken(groups, 6)
    assert [item.position for item in items] == list(range(6))
    assert [isinstance(item.outcome, bytes) for item in items] == [True] * 3 + [False] + [True] * 2


async def test_a_defect_ends_the_batch_and_what_it_has_begun() -> None:
    source = Source(fails={5: ZeroDivisionError()}, hangs=frozenset(range(6, 1000)))
    items: list[BatchItem] = []
    with pytest.raises(ZeroDivisionError):
        async with aclosing(batch(source, 1000).groups(1)) as groups:
            async for group in groups:
                items += group
    await asyncio.sleep(0)
    assert [item.position for item in items] == list(range(5))
    assert source.cancelled == source.begun[6:] != []


async def test_who_goes_ends_what_was_begun() -> None:
    source = Source(hangs=frozenset(range(5, 1000)))
    groups = batch(source, 1000).groups(1)
    await taken(groups, 5)
    await groups.aclose()
    await asyncio.sleep(0)
    assert source.cancelled == source.begun[5:] != []
