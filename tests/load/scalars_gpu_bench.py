"""`python -m tests.load.scalars_gpu_bench`: derived scalars on a GPU against the bare model.

What `make bench-scalars-gpu` runs. Models with random weights are made on the spot; nothing is
fetched. The servicer runs in this process, without a wire: what is measured is the engine. F and FB
are Hugging Face's own passes in the same type on the same device. The floors of a batch's passes
are the times that this device needs to read the weights of layers once a pass, as fast as it
copies, and to multiply by them, as fast as it multiplies large matrices.

Ends with status 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

import neuropil
from neuropil.scalars import v1
from services.scalars.data_plane import DataPlane
from services.scalars.engine.queueing import BatchLimits
from services.scalars.engine.worker import Engine
from services.scalars.model.subject import load_subject
from services.scalars.service import DerivedScalarsService
from tests.load import scalars_page as calls
from tests.load.scalars_models import SHAPES, Prompts, write_model
from tests.load.scalars_running import HEADER, UNJUDGED, Row

NO_GPU = 3
TIMES_AT_MOST_CLIENTS = 5.0
"""Throughput that many clients should have, as a multiple of one's."""


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    tokens: int
    rounds: int
    clients: tuple[int, ...]


class Served:
    """The servicer of a model in this process."""

    def __init__(self, service: DerivedScalarsService, data_plane: DataPlane) -> None:
        self._service = service
        self.shape = data_plane.subject.model.shape
        self._prompts = Prompts(self.shape.vocab_size)
        self._loss = neuropil.Loss(
            "logit_diff", targets=[self._prompts.word(3)], distractors=[self._prompts.word(7)]
        )

    def run(self, n_tokens: int, *, loss: bool = True) -> v1.InferenceSpec:
        """A run on a new prompt."""
        prompt = self._prompts(n_tokens)
        if not loss:
            return calls.inference(prompt)
        return calls.inference(prompt, self._loss, [calls.LAST_SCALE])

    async def component(self, name: str, layer: int | None, run: v1.InferenceSpec) -> object:
        """One component at every token."""
        return await self._service.DeriveComponent(calls.component(name, layer, run), None)

    async def groups(self, run: v1.InferenceSpec) -> v1.ListTopNodesResponse:
        """Three groups of strongest nodes."""
        request = calls.top_nodes(run, calls.GROUPS)
        return await self._service.ListTopNodes(request, None)

    async def page(self, *runs: v1.InferenceSpec) -> list[v1.BatchDeriveResponse]:
        """A page of the debugger."""
        return [each async for each in self._service.BatchDerive(calls.page(runs), None)]


@contextmanager
def served(model: Path, device: str, dtype: str) -> Iterator[Served]:
    """Loads a model, with batches that a GPU has room for."""
    subject = load_subject("bench", str(model), device, dtype)
    limits = BatchLimits(rows=64, tokens=8192, n_bytes=16 << 30)
    engine = Engine(subject.model, subject.autoencoders, batches=limits)
    try:
        data_plane = DataPlane(subject, engine)
        yield Served(DerivedScalarsService(data_plane), data_plane)
    finally:
        engine.close()


class Bare:
    """Hugging Face's model, and the rates of its device."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        from transformers import AutoModelForCausalLM

        self._device, self._dtype = device, getattr(torch, dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=self._dtype
        )
        self._model = model.eval().to(device).requires_grad_(False)
        embedding = self._model.get_input_embeddings()
        self.layer_parameters = sum(
            each.numel() for each in self._model.parameters() if each is not embedding.weight
        )

    def forward(self, n_tokens: int) -> float:
        """Seconds of a forward pass with all logits."""
        ids = torch.arange(n_tokens, device=self._device)[None]

        def work() -> None:
            with torch.inference_mode():
                self._model(ids, use_cache=False)

        return self._timed(work)

    def both(self, n_tokens: int) -> float:
        """Seconds of a forward and a backward pass, weights frozen."""
        ids = torch.arange(n_tokens, device=self._device)[None]

        def work() -> None:
            embedded = self._model.get_input_embeddings()(ids).requires_grad_()
            logits = self._model(inputs_embeds=embedded, use_cache=False).logits[0, -1]
            torch.autograd.grad(logits[0] - logits[1], embedded)

        return self._timed(work)

    def rates(self, *, tiny: bool) -> tuple[float, float]:
        """Bytes read and written a second, and operations a second of a matrix product."""
        size = 256 if tiny else 8192
        square = torch.randn(size, size, device=self._device, dtype=self._dtype)
        other = torch.empty_like(square)
        n_bytes = 2 * square.nbytes
        copied = [self._timed(lambda: other.copy_(square)) for _ in range(10)]
        multiplied = [self._timed(lambda: torch.mm(square, square, out=other)) for _ in range(10)]
        return n_bytes / min(copied), 2 * size**3 / min(multiplied)

    def _timed(self, work: Callable[[], object]) -> float:
        synchronize(self._device)
        started = time.perf_counter()
        work()
        synchronize(self._device)
        return time.perf_counter() - started


def synchronize(device: str) -> None:
    """Wait for what the device was given."""
    if device != "cpu":
        torch.cuda.synchronize()


async def seconds(call: Callable[[int], Awaitable[object]], rounds: int) -> float:
    """Median seconds of a call with its number; the first doesn't count."""
    times = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        await call(number)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


async def against_the_bare_model(at: Served, bare: Bare, amount: Amount) -> list[Row]:
    """The rows of one client, which `make bench-scalars` has for a CPU."""
    n, rounds, layers = amount.tokens, amount.rounds, at.shape.layers
    heads = at.shape.attn_heads
    known = at.run(n)

    def again(number: int) -> v1.InferenceSpec:
        run = v1.InferenceSpec()
        run.CopyFrom(known)
        run.ablations.append(calls.unchanged(number, layers, heads).message())
        return run

    async def two(number: int) -> object:
        run, ablated = at.run(n), v1.InferenceSpec()
        ablated.CopyFrom(run)
        neuron = neuropil.Ablation("mlp.post_act", 1, [n // 2, number], 1.0)
        ablated.ablations.append(neuron.message())
        return await at.page(run, ablated)

    def figure(times: Sequence[float]) -> float:
        return statistics.median(times[1:])

    forward = figure([bare.forward(n) for _ in range(rounds + 1)])
    both = figure([bare.both(n) for _ in range(rounds + 1)])
    await at.page(known)
    works: list[tuple[str, float, str, float | None, Callable[[int], Awaitable[object]]]] = [
        (
            "activation of a neuron of the last layer",
            forward,
            "F",
            0.8,
            lambda _: at.component("mlp_post_act", layers - 1, at.run(n, loss=False)),
        ),
        (
            "logits of a token at all positions",
            forward,
            "F",
            1.05,
            lambda _: at.component("logits", None, at.run(n, loss=False)),
        ),
        (
            "activation times gradient of a neuron of the first layer",
            both,
            "FB",
            None,
            lambda _: at.component("mlp_act_times_grad", 0, at.run(n)),
        ),
        ("three groups of strongest nodes", both, "FB", 0.9, lambda _: at.groups(at.run(n))),
        ("page, cold", both, "FB", 2.0, lambda _: at.page(at.run(n))),
        ("page, token lists remembered", both, "FB", 1.3, lambda i: at.page(again(i))),
        ("page of two runs, cold", both, "FB", 3.2, two),
        ("the same page again", both, "FB", 0.2, lambda _: at.page(known)),
    ]
    rows = [
        Row("F: Hugging Face forward, all logits", forward * 1e3, 1.0, "F"),
        Row("FB: the same and backward, frozen weights", both * 1e3, 1.0, "FB"),
    ]
    for what, floor, unit, at_most, call in works:
        taken = await seconds(call, rounds)
        rows.append(Row(what, taken * 1e3, taken / floor, unit, at_most))
    return rows


async def by_clients(at: Served, bare: Bare, amount: Amount, *, tiny: bool) -> list[str]:
    """Throughput of clients at once, and their passes against the floors."""
    bandwidth, operations = bare.rates(tiny=tiny)
    width = next(bare._model.parameters()).element_size()
    weights = bare.layer_parameters
    lines = [
        f"\n{bandwidth / 1e9:,.0f} GB/s copied, {operations / 1e12:,.1f} TFLOP/s multiplied, "
        f"{weights / 1e6:,.0f} M parameters of layers\n",
        "| three groups, clients at once | requests/s | times 1 client | target | "
        "a request, ms | passes, ms | floor of bytes, ms | floor of operations, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    alone = 0.0
    for count in amount.clients:
        passes: list[float] = []

        async def round_of(_: int, count: int = count, passes: list[float] = passes) -> None:
            found = await asyncio.gather(*(at.groups(at.run(amount.tokens)) for _ in range(count)))
            # Every answer says how long its batch's passes took; a batch counts once.
            passes.append(sum({each.inference.seconds for each in found}))

        taken = await seconds(round_of, amount.rounds)
        rate = count / taken
        alone = alone or rate
        of_bytes = 2 * weights * width / bandwidth
        of_operations = 4 * weights * amount.tokens * count / operations
        target = ""
        if count == max(amount.clients) > 1:
            met = rate / alone >= TIMES_AT_MOST_CLIENTS
            verdict = "" if tiny else "pass" if met else "miss"
            target = f">= {TIMES_AT_MOST_CLIENTS:g} {verdict}".rstrip()
        lines.append(
            f"| {count} | {rate:,.1f} | {rate / alone:.2f} | {target} | {taken * 1e3:,.1f} | "
            f"{statistics.median(passes[1:]) * 1e3:,.1f} | {of_bytes * 1e3:,.2f} | "
            f"{of_operations * 1e3:,.2f} |"
        )
    return lines


async def measure(
    names: Sequence[str],
    dtypes: Sequence[str],
    device: str,
    amount: Amount,
    folder: Path,
    *,
    tiny: bool = False,
) -> None:
    """Prints the tables of models and types, as they are measured."""
    for name in names:
        model = write_model(folder / name, SHAPES[name])
        for dtype in dtypes:
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            print(f"\n### {name}, {dtype}, {amount.tokens} tokens, medians of {amount.rounds}\n")
            if tiny:
                print(f"{UNJUDGED}\n")
            bare = Bare(model, device, dtype)
            with served(model, device, dtype) as at:
                print(HEADER)
                for row in await against_the_bare_model(at, bare, amount):
                    print(row.line(judged=not tiny), flush=True)
                for line in await by_clients(at, bare, amount, tiny=tiny):
                    print(line, flush=True)
            if device != "cpu":
                most = torch.cuda.max_memory_allocated() / 1e9
                print(f"\nMost memory of the device, both models on it: {most:.2f} GB")
            del bare


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or say that there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--models", nargs="+", default=["gpt2-small", "llama-1b"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="tiny models: does this run at all?")
    parser.add_argument("--folder", type=Path, help="keeps the models here for another run")
    given = parser.parse_args(arguments)
    if given.device != "cpu" and not torch.cuda.is_available():
        print(
            f"no GPU: torch {torch.__version__} finds none on this machine; nothing was measured",
            file=sys.stderr,
        )
        return NO_GPU
    models = ["tiny-gpt2", "tiny-llama"] if given.tiny else given.models
    amount = Amount(12 if given.tiny else given.tokens, given.rounds, tuple(given.clients))
    where = torch.cuda.get_device_name() if given.device != "cpu" else platform.processor() or "cpu"
    print(f"{where}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = cast("Path", given.folder or Path(temporary))
        asyncio.run(measure(models, given.dtypes, given.device, amount, folder, tiny=given.tiny))
    return 0


if __name__ == "__main__":
    sys.exit(main())
