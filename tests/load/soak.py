"""`python -m tests.load.soak`, what `make soak-records` runs: does the service keep its size?

It reads in every way that there is, and samples what the service's process holds: memory, open
files, threads. Once it has warmed up, none of them may grow.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import uvloop
import yaml

from neuropil.channel import open_aio_channel
from neuropil.names import component_id
from neuropil.records import v1
from tests.faults.mix import NEURONS as ON_BLOBS
from tests.faults.processes import Redis, Replica, Usage, usage
from tests.faults.setting import BLOB_ROOT, DEMO, new_store, upload

MLP, HEADS = "mlp_post_act", "attn_write_norm"
NEURONS, NUM_HEADS, NUM_CORRUPT = 256, 4, 8
WORKERS = 16
GROWTH_BYTES = 6 * 2**20
"""How much more the last quarter may hold than the second one."""
READS_UNTIL_COLD = 5_000
"""Redis is emptied this often, so that reads are cold again."""

EXPECTED_CODES = {
    "missing": {"NOT_FOUND"},
    "unknown dataset": {"NOT_FOUND"},
    "corrupt": {"DATA_LOSS"},
    "bad request": {"INVALID_ARGUMENT"},
    "left": {"CANCELLED", "DEADLINE_EXCEEDED", "OK"},
}


@dataclass(frozen=True)
class Soaked:
    """What a run showed."""

    reads: int
    seconds: float
    outcomes: Counter[tuple[str, str]]
    """By kind and code."""
    samples: list[Usage]
    problems: list[str]

    def quarter(self, number: int) -> list[Usage]:
        """The samples of a quarter of the run, from 0."""
        size = len(self.samples) // 4
        return self.samples[number * size : (number + 1) * size]

    def growth_bytes(self) -> float:
        """Mean memory of the last quarter less that of the second."""
        second, last = (
            float(np.mean([sample.rss_bytes for sample in self.quarter(number)]))
            for number in (1, 3)
        )
        return last - second

    def lines(self) -> list[str]:
        """A report in Markdown."""
        rows = [
            f"| {number + 1} | {np.mean([each.rss_bytes for each in quarter]) / 2**20:.1f}"
            f" | {max(each.rss_bytes for each in quarter) / 2**20:.1f}"
            f" | {max(each.num_files for each in quarter)}"
            f" | {max(each.num_threads for each in quarter)} |"
            for number in range(4)
            if (quarter := self.quarter(number))
        ]
        kinds: Counter[str] = Counter()
        for (kind, _), count in self.outcomes.items():
            kinds[kind] += count
        return [
            f"{datetime.date.today()}: {self.reads:,} reads in {self.seconds:.0f} s"
            f" ({self.reads / self.seconds:,.0f}/s): "
            + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
            + ".",
            "",
            "| quarter | mean RSS MiB | largest | most open files | most threads |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Growth from the second to the last quarter: {self.growth_bytes() / 2**20:+.1f} MiB.",
        ]


async def soak(reads: int, folder: Path) -> Soaked:
    """Start a service on files in `folder`, read, and sample."""
    deployment = _deployment(folder)
    cache = Redis(folder / "redis")
    store = new_store(folder / "azurite")
    environment = {**store.environment, "NEUROPIL_CACHE__URL": cache.url}
    replica = Replica(deployment, folder / "service.log", environment)
    with contextlib.ExitStack() as stack:
        stack.callback(cache.kill)
        cache.start()
        stack.callback(store.kill)
        store.start()
        upload(store)
        stack.callback(replica.stop)
        replica.start()
        async with open_aio_channel(f"127.0.0.1:{replica.port}") as channel:
            stub = v1.RecordReaderStub(channel)
            began = time.monotonic()
            samples, outcomes = await _read(stub, replica, cache, reads, folder)
            seconds = time.monotonic() - began
        replica.stop()
        problems = _unexpected(outcomes)
        problems += [f"in the log: {line}" for line in replica.unexpected_log_lines()[:5]]
        if replica.ended() != 0:
            problems.append(f"the service ended with status {replica.ended()}")
    return Soaked(reads, seconds, outcomes, samples, problems)


async def _read(
    stub: Any, replica: Replica, cache: Redis, reads: int, folder: Path
) -> tuple[list[Usage], Counter[tuple[str, str]]]:
    outcomes: Counter[tuple[str, str]] = Counter()
    numbers = iter(range(reads))
    samples: list[Usage] = []
    every = max(1, reads // 400)

    def empty_redis() -> None:
        with cache.client() as client:
            client.flushall()

    async def work(seed: int) -> None:
        choice = random.Random(seed)
        kinds = _kinds(stub, choice, str(folder / "explanations"))
        names, weights = [*kinds], [weight for weight, _ in kinds.values()]
        for number in numbers:
            if number % every == 0:
                samples.append(usage(replica.pid))
            if number % READS_UNTIL_COLD == READS_UNTIL_COLD - 1:
                await asyncio.to_thread(empty_redis)
            (kind,) = choice.choices(names, weights)
            try:
                await kinds[kind][1]()
                outcomes[kind, "OK"] += 1
            except grpc.aio.AioRpcError as error:
                outcomes[kind, error.code().name] += 1

    await asyncio.gather(*(work(seed) for seed in range(WORKERS)))
    return samples, outcomes


def _kinds(
    stub: Any, choice: random.Random, explanations: str
) -> dict[str, tuple[float, Callable[[], Awaitable[object]]]]:
    """Ways to read, and how often each comes."""

    def token(index: int, datasets: list[str], **options: Any) -> Any:
        request = v1.GetTokenRecordRequest(component=component_id(MLP, 0, index), datasets=datasets)
        return stub.GetTokenRecord(request, timeout=30, **options)

    def pair() -> Any:
        head = component_id(HEADS, 0, choice.randrange(NUM_HEADS))
        return stub.GetTokenPairRecord(
            v1.GetTokenPairRecordRequest(component=head, datasets=["demo"]), timeout=30
        )

    def with_view() -> Any:
        request = v1.GetTokenRecordRequest(
            component=component_id(MLP, 0, choice.randrange(NEURONS)),
            datasets=["demo"],
            view=v1.RecordView(
                include_moments=choice.random() < 0.5, include_quantile_samples=True
            ),
        )
        return stub.GetTokenRecord(request, timeout=30)

    async def batch(size: int) -> None:
        first = choice.randrange(NEURONS)
        components = [component_id(MLP, 0, first + offset) for offset in range(size)]
        datasets = ["blob", "demo"] if choice.random() < 0.3 else ["demo"]
        request = v1.BatchGetRecordsRequest(components=components, datasets=datasets)
        async for _ in stub.BatchGetRecords(request, timeout=60):
            pass

    def search() -> Any:
        dataset = v1.DatasetId(
            dataset="demo", derived_scalar_type=component_id(MLP, 0, 0).derived_scalar_type
        )
        # Words that are there, and one that never comes again.
        query = f"words joining {choice.choice(('a clause', 'names', 'numbers'))} {choice.random()}"
        request = v1.SearchExplanationsRequest(dataset=dataset, query=query, page_size=5)
        return stub.SearchExplanations(request, timeout=30)

    def listing() -> Any:
        dataset = v1.DatasetId(
            dataset="demo", derived_scalar_type=component_id(MLP, 0, 0).derived_scalar_type
        )
        return stub.ListComponents(
            v1.ListComponentsRequest(dataset=dataset, page_size=choice.randint(1, 100)), timeout=30
        )

    def explained() -> Any:
        request = v1.ListExplanationsRequest(
            component=component_id(MLP, 0, choice.choice((6, 55, 208, 244)))
        )
        request.explanation_datasets.paths.append(explanations)
        return stub.ListExplanations(request, timeout=30)

    async def left() -> None:
        call = token(choice.randrange(NEURONS), ["demo"])
        await asyncio.sleep(choice.random() * 0.003)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call

    return {
        "warm": (40, lambda: token(choice.randrange(16), ["demo"])),
        "wide": (20, lambda: token(choice.randrange(NEURONS), ["demo"])),
        "view": (5, with_view),
        "pair": (4, pair),
        "batch": (3, lambda: batch(10)),
        "large batch": (0.2, lambda: batch(200)),
        "blob": (10, lambda: token(choice.randrange(ON_BLOBS), ["blob"])),
        "search": (4, search),
        "explanations": (6, explained),
        "list": (4, listing),
        # Names that never come again: nothing may be kept of them for ever.
        "missing": (6, lambda: token(choice.randrange(10**6, 10**12), ["demo"])),
        "unknown dataset": (4, lambda: token(1, [f"no-{choice.random()}"])),
        "corrupt": (3, lambda: token(NEURONS + choice.randrange(NUM_CORRUPT), ["broken"])),
        "bad request": (3, lambda: token(1, [])),
        "left": (2, left),
    }


def _unexpected(outcomes: Counter[tuple[str, str]]) -> list[str]:
    return [
        f"{count} reads ({kind}) ended with {code}"
        for (kind, code), count in outcomes.items()
        if code not in EXPECTED_CODES.get(kind, {"OK"})
    ]


def _deployment(folder: Path) -> Path:
    shutil.copytree(DEMO / "records" / "mlp" / "0", folder / "mlp" / "0")
    shutil.copytree(DEMO / "records" / "attn" / "0", folder / "attn" / "0")
    shutil.copytree(DEMO / "explanations", folder / "explanations")
    good = (DEMO / "records" / "mlp" / "0" / "0.json").read_bytes()
    broken = folder / "broken" / "0"
    broken.mkdir(parents=True)
    for number in range(NUM_CORRUPT):
        (broken / f"{NEURONS + number}.json").write_bytes(good[: -(number + 1) * 997])
    datasets = [
        {
            "short_name": name,
            "derived_scalar_type": scalar_type,
            "user_visible_name": name,
            "neuron_dataset_path": path,
            "explanation_dataset_paths": [str(folder / "explanations")],
        }
        for name, path, scalar_type in (
            ("demo", str(folder / "mlp"), MLP),
            ("demo", str(folder / "attn"), HEADS),
            ("broken", str(folder / "broken"), MLP),
            ("blob", f"{BLOB_ROOT}/records/mlp", MLP),
        )
    ]
    deployment = folder / "deployment.yaml"
    deployment.write_text(yaml.safe_dump({"datasets": datasets, "cache": {"memory_megabytes": 1}}))
    return deployment


def main() -> int:
    """Soak, print, and end with status 1 where something grew or went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.soak")
    parser.add_argument("--reads", type=int, default=200_000)
    reads = parser.parse_args().reads
    with tempfile.TemporaryDirectory() as folder:
        soaked = uvloop.run(soak(reads, Path(folder)))
    problems = list(soaked.problems)
    if soaked.growth_bytes() > GROWTH_BYTES:
        problems.append(f"memory grew by {soaked.growth_bytes() / 2**20:.1f} MiB")
    for what in ("num_files", "num_threads"):
        second, last = (
            max(getattr(each, what) for each in soaked.quarter(number)) for number in (1, 3)
        )
        if last > second + 8:
            problems.append(f"{what} grew from {second} to {last}")
    print("\n".join([*soaked.lines(), "", *(problems or ["Nothing grew."])]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
