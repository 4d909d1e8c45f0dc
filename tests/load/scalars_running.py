"""What the measurements of derived scalars are made of: a running service, rounds, rows."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import neuropil
from neuropil.channel import open_channel
from neuropil.scalars import v1
from tests.load import scalars_page as calls
from tests.load.processes import server
from tests.load.scalars_floor import Floor, floor
from tests.load.scalars_models import Prompts

UNJUDGED = "A tiny model: targets are for the real shapes, and not judged here."
HEADER = "| what | ms | measured | target | |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Setting:
    """A model, and how much is measured of it."""

    model: Path
    shape: Mapping[str, Any]
    rounds: int
    tokens: int = 64
    short_tokens: int = 16
    clients: int = 8
    tiny: bool = False
    """Whether the model is one that targets are not for."""

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return int(self.shape["n_layer"])

    @property
    def mixed_tokens(self) -> list[int]:
        """Lengths of the prompts of clients who ask for different ones."""
        return [int(n) for n in np.linspace(self.short_tokens, self.tokens, self.clients)]


@dataclass(frozen=True)
class Row:
    """A row of the table: milliseconds, a figure, its unit, and what it should be."""

    what: str
    ms: float | None
    figure: float | None = None
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    def __str__(self) -> str:
        return self.line()

    def line(self, *, judged: bool = True) -> str:
        """The row in Markdown; unjudged where the model is not the one that targets are for."""
        ms = "" if self.ms is None else f"{self.ms:,.1f}"
        figure = "" if self.figure is None else f"{self.figure:.2f} {self.unit}".strip()
        if self.figure is None or (self.at_most is None and self.at_least is None):
            return f"| {self.what} | {ms} | {figure} | | |"
        if self.at_most is not None:
            target, met = f"<= {self.at_most:g}", self.figure <= self.at_most
        else:
            target, met = f">= {self.at_least:g}", self.figure >= (self.at_least or 0)
        verdict = ("pass" if met else "miss") if judged else ""
        return f"| {self.what} | {ms} | {figure} | {target} | {verdict} |"


class Service:
    """A running server, its stub, and prompts that it has not seen."""

    def __init__(self, setting: Setting, stub: v1.DerivedScalarsStub, address: str, pid: int):
        self.setting, self.stub, self.address, self.pid = setting, stub, address, pid
        self.prompts = Prompts(setting.shape["vocab_size"])
        self.loss = neuropil.Loss(
            "logit_diff", targets=[self.prompts.word(3)], distractors=[self.prompts.word(7)]
        )

    def run(self, n_tokens: int, *, loss: bool = True) -> v1.InferenceSpec:
        """A run on a new prompt, ablated as the viewer does where there is a loss."""
        prompt = self.prompts(n_tokens)
        if not loss:
            return calls.inference(prompt)
        return calls.inference(prompt, self.loss, [calls.LAST_SCALE])

    def component(self, scalar_type: str, layer: int | None, run: v1.InferenceSpec) -> object:
        """One component at every token."""
        return self.stub.DeriveComponent(calls.component(scalar_type, layer, run))

    def top_nodes(
        self, groups: Mapping[str, Sequence[str]], run: v1.InferenceSpec
    ) -> v1.ListTopNodesResponse:
        """The strongest nodes."""
        return self.stub.ListTopNodes(calls.top_nodes(run, groups))

    def page(
        self, *runs: v1.InferenceSpec, count: int = calls.PAGE_COUNT
    ) -> list[v1.BatchDeriveResponse]:
        """A page of the debugger, with so many nodes of each type and end."""
        return list(self.stub.BatchDerive(calls.page(runs, count)))

    def at_once(self, call: Callable[[v1.InferenceSpec], object], n_tokens: list[int]) -> float:
        """Seconds of calls that all start together, a thread and a new prompt each."""
        runs = [self.run(n) for n in n_tokens]
        with ThreadPoolExecutor(len(runs)) as pool:
            started = time.perf_counter()
            list(pool.map(call, runs))
            return time.perf_counter() - started

    def one_by_one(self, call: Callable[[v1.InferenceSpec], object], n_tokens: list[int]) -> float:
        """Seconds of calls one after another, on a new prompt each."""
        runs = [self.run(n) for n in n_tokens]
        started = time.perf_counter()
        for run in runs:
            call(run)
        return time.perf_counter() - started


@contextmanager
def service(setting: Setting, threads: int) -> Iterator[Service]:
    """Runs a server on so many threads."""
    with tempfile.TemporaryDirectory() as folder:
        deployment = Path(folder) / "deployment.yaml"
        section = {"name": "bench", "path": str(setting.model), "device": "cpu"}
        deployment.write_text(yaml.safe_dump({"model": section}))
        arguments = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
        with (
            server("services.scalars", *arguments, environment=_threads(threads)) as (address, pid),
            open_channel(address) as channel,
        ):
            yield Service(setting, v1.DerivedScalarsStub(channel), address, pid)


@contextmanager
def bare(setting: Setting, threads: int) -> Iterator[Floor]:
    """Runs the bare model on so many threads."""
    with floor(setting.model, os.environ | _threads(threads)) as found:
        yield found


def in_turn(works: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, float]:
    """Median seconds of each work; a round does each once. The first round doesn't count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = work(number)
            if number > 0:
                times[name].append(seconds)
    return {name: float(np.median(each)) for name, each in times.items()}


def timed(call: Callable[[int], object]) -> Callable[[int], float]:
    """The call with its number, timed."""

    def work(number: int) -> float:
        started = time.perf_counter()
        call(number)
        return time.perf_counter() - started

    return work


def peak_memory(pid: int, field: str = "VmHWM") -> int:
    """Bytes of a process: the most that it ever had, or another figure of its status."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}
