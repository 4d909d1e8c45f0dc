"""`python -m tests.faults.clients`: many clients in closed loops, in a process of their own.

It asks for everything while all is well, compares the answers with the files, keeps them, prints
`ready`, and then asks at random until its standard input closes. What each call took and gave goes
to a file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path

import uvloop

from neuropil.channel import open_aio_channel
from neuropil.records.v1 import RecordReaderStub
from tests.faults.mix import Ask, answer, asks, digest, messages
from tests.faults.scenarios import LOCAL
from tests.faults.truth import Truth
from tests.faults.writing import WRITTEN, Call, Writing

DEADLINE_SECONDS = 10.0
_LEARNERS = 4


async def main(arguments: argparse.Namespace) -> None:
    """Learn, announce, ask until standard input closes, write down."""
    roots = dict(root.split("=", 1) for root in arguments.roots)
    mix = asks(roots)
    calls: list[Call] = []
    # A channel each for a few clients, as separate programs would have.
    channels = [open_aio_channel(arguments.address) for _ in range(8)]
    stubs = [RecordReaderStub(channel) for channel in channels]
    expected = await _learn(stubs[0], mix, Truth(Path(roots[LOCAL]), roots))
    writers = [
        Writing(source, f"{roots[source]}/{WRITTEN}", arguments.staleness_seconds)
        for source in arguments.written
    ]
    for writer in writers:
        if (await writer.put(stubs[0], DEADLINE_SECONDS))[-1] != "ok":
            raise RuntimeError("a healthy service does not write")
    print("ready", flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)

    async def client(number: int) -> None:
        choice = random.Random(number)
        while not over.is_set():
            position = choice.randrange(len(mix))
            ask = mix[position]
            began = time.monotonic()
            got = await answer(stubs[number % len(stubs)], ask, DEADLINE_SECONDS)
            outcome = "ok" if got == expected[position] else got
            if outcome != "ok" and not outcome.isupper():
                outcome = "WRONG"
            calls.append((began, time.monotonic(), ask.kind, ask.source, outcome))

    await asyncio.gather(
        *(client(number) for number in range(arguments.clients)),
        *(writer.run(stubs[:2], over, calls, DEADLINE_SECONDS) for writer in writers),
    )
    for channel in channels:
        await channel.close()
    arguments.output.write_text(json.dumps(calls))


async def _learn(stub: RecordReaderStub, mix: list[Ask], truth: Truth) -> list[str]:
    """What a healthy service answers: what the files say, and the same when asked twice."""
    room = asyncio.Semaphore(_LEARNERS)

    async def twice(ask: Ask) -> str:
        async with room:
            if ask.kind == "missing":
                first = await answer(stub, ask, 60)
                if first != "NOT_FOUND":
                    raise RuntimeError(f"a healthy service answers {first} to {ask}")
            else:
                answered = await messages(stub, ask, 60)
                truth.check(ask, answered)
                first = digest(answered)
            if await answer(stub, ask, 60) != first:
                raise RuntimeError(f"a healthy service gives two answers to {ask}")
            return first

    return await asyncio.gather(*(twice(ask) for ask in mix))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("output", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--roots", nargs="+", required=True, help="DATASET=FOLDER")
    parser.add_argument("--written", nargs="*", default=[], help="datasets to write to")
    parser.add_argument("--staleness-seconds", type=float, default=0.0)
    uvloop.run(main(parser.parse_args()))
