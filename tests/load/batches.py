"""A batch of records against as many calls one by one, and against the least that a stream takes.

The client is the typed client's channel without its decoding: all arms receive the same bytes, and
look at none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import numpy as np

from neuropil.channel import channel_options
from neuropil.records import v1
from tests.load.echo import STREAM

READER = "/neuropil.records.v1.RecordReader"
RECORDS_PER_MESSAGE = 64
"""As the typed client asks for them."""

_ROUNDS = 3


@dataclass(frozen=True)
class Batches:
    """Seconds for a number of cached records, the median of some rounds."""

    one_by_one: float
    one_a_message: float
    several_a_message: float


def measure(address: str, method: str, requests: list[bytes], count: int) -> Batches:
    """Read `count` records, those of the requests over and over, in each way in turn."""
    first = v1.GetTokenRecordRequest.FromString(requests[0])
    parsed = [v1.GetTokenRecordRequest.FromString(each).component for each in requests]
    batch = v1.BatchGetRecordsRequest(
        components=[parsed[number % len(parsed)] for number in range(count)],
        datasets=first.datasets,
    )
    single = batch.SerializeToString()
    batch.max_records_per_message = RECORDS_PER_MESSAGE
    several = batch.SerializeToString()
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        ask = channel.unary_unary(method)
        stream = channel.unary_stream(f"{READER}/BatchGetRecords")

        def one_by_one() -> None:
            for number in range(count):
                ask(requests[number % len(requests)])

        return Batches(
            *_medians(
                one_by_one,
                lambda: _read(stream(single), count),
                lambda: _read(stream(several), 1),
            )
        )


def bare_stream_seconds(address: str, count: int) -> float:
    """Seconds for a stream of as many messages, of the echo server's size, that nobody makes."""
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        stream = channel.unary_stream(STREAM)
        (seconds,) = _medians(lambda: _read(stream(str(count).encode()), count))
        return seconds


def _read(messages: grpc.CallIterator[object], least: int) -> None:
    assert sum(1 for _ in messages) >= least


def _medians(*ways: Callable[[], None]) -> list[float]:
    times: list[list[float]] = []
    for _ in range(_ROUNDS):
        row = []
        for way in ways:
            started = time.perf_counter()
            way()
            row.append(time.perf_counter() - started)
        times.append(row)
    return [float(median) for median in np.median(times, axis=0)]
