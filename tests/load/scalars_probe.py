"""`python -m tests.load.scalars_probe ADDRESS`: short calls until standard input has a line.

Prints a line once it has begun, and at the end the 99th percentile of the answers' times in ms: of
health checks, of the catalogue and of the model's description.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import grpc.aio
import numpy as np
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuropil.scalars import v1


async def main(address: str) -> None:
    """Call each in turn, every 5 ms."""
    ended = threading.Event()
    async with grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        stub = v1.DerivedScalarsStub(channel)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "health": lambda: health.Check(health_pb2.HealthCheckRequest()),
            "catalogue": lambda: stub.ListScalarTypes(v1.ListScalarTypesRequest()),
            "model": lambda: stub.GetModelInfo(v1.GetModelInfoRequest()),
        }
        for call in calls.values():
            await call()
        print("began", flush=True)

        def wait() -> None:
            sys.stdin.readline()
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        times: dict[str, list[float]] = {name: [] for name in calls}
        while not ended.is_set() or not times["model"]:
            for name, call in calls.items():
                started = time.perf_counter()
                await call()
                times[name].append(time.perf_counter() - started)
                await asyncio.sleep(0.005)
    print(*(float(np.percentile(each, 99)) * 1e3 for each in times.values()), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
