"""`python -m tests.integration.caching_replica URL KEY SECONDS`: a replica whose loads take long.

It says when it asks, when it begins to load and when it has its reply, a line each.
"""

from __future__ import annotations

import asyncio
import sys

from services.records.caching.replies import ReplyCache
from services.records.caching.shared_cache import SharedCache


async def main(url: str, key: str, seconds: float) -> None:
    """Ask once, by ten at once."""
    cache = ReplyCache(2**20, SharedCache(url))

    async def load() -> bytes:
        print("loading", flush=True)
        await asyncio.sleep(seconds)
        return key.encode()

    print("asking", flush=True)
    replies = await asyncio.gather(*(cache.get(key, load, ttl_seconds=60) for _ in range(10)))
    assert replies == [key.encode()] * 10
    print("replied", flush=True)
    await cache.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
