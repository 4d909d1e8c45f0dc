"""`python -m tests.load.health_probe ADDRESS`: health checks until standard input has a line.

Prints a line once it has begun, and at the end the 99th percentile of the answers' times in ms.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import grpc.aio
import numpy as np
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc


async def main(address: str) -> None:
    """Check every 5 ms."""
    ended = threading.Event()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest())
        print("began", flush=True)

        def wait() -> None:
            sys.stdin.readline()
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        times = []
        while not ended.is_set() or not times:
            started = time.perf_counter()
            await stub.Check(health_pb2.HealthCheckRequest())
            times.append(time.perf_counter() - started)
            await asyncio.sleep(0.005)
    print(float(np.percentile(times, 99)) * 1e3, flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
