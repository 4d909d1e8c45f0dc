"""`python -m tests.load.scalars_bench [--rows ...]`: derived scalars against the bare model.

What `make bench-scalars` runs: GPT-2 small's shape with random weights, on a CPU. F is Hugging
Face's own forward pass, FB its forward and backward pass with frozen weights; both are measured
between the service's calls, in turn, so that a ratio holds whatever else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import neuropil
from neuropil.scalars import v1
from tests.load import scalars_page as calls
from tests.load.processes import REPOSITORY
from tests.load.scalars_models import SHAPES, write_model
from tests.load.scalars_running import (
    HEADER,
    UNJUDGED,
    Row,
    Setting,
    bare,
    in_turn,
    peak_memory,
    service,
    timed,
)


def passes(setting: Setting) -> list[Row]:
    """Forward-only scalars, gradients, and groups of strongest nodes, on one thread."""
    ids = [list(range(setting.tokens))]
    write_norm = {"write_norm": calls.GROUPS["write_norm"]}
    with service(setting, 1) as at, bare(setting, 1) as model:
        n, last = setting.tokens, setting.layers - 1
        found = in_turn(
            {
                "F": lambda _: model("forward", ids),
                "FB": lambda _: model("both", ids),
                "one": timed(lambda _: at.component("mlp_post_act", last, at.run(n, loss=False))),
                "forward": timed(lambda _: at.top_nodes(write_norm, at.run(n, loss=False))),
                "logits": timed(lambda _: at.component("logits", None, at.run(n, loss=False))),
                "gradient": timed(lambda _: at.component("mlp_act_times_grad", 0, at.run(n))),
                "groups": timed(lambda _: at.top_nodes(calls.GROUPS, at.run(n))),
            },
            setting.rounds,
        )

    def row(what: str, name: str, unit: str, at_most: float | None = None) -> Row:
        return Row(what, found[name] * 1e3, found[name] / found[unit], unit, at_most)

    return [
        row("F: Hugging Face forward, all logits", "F", "F"),
        row("FB: Hugging Face forward and backward, frozen weights", "FB", "FB"),
        row("activation of a neuron of the last layer", "one", "F", 0.8),
        row("write norms of all neurons and heads, top and bottom 10, sums", "forward", "F", 0.8),
        row("logits of a token at all positions", "logits", "F", 1.05),
        row("activation times gradient of a neuron of the first layer", "gradient", "FB"),
        row(
            "write norms, act times grad and direct effects of all neurons and heads, "
            "top and bottom 10 a group, sums",
            "groups",
            "FB",
            0.9,
        ),
    ]


def pages(setting: Setting) -> list[Row]:
    """Pages of the debugger: cold, with what is constant remembered, of two runs, and again."""
    ids = [list(range(setting.tokens))]
    n, layers, heads = setting.tokens, setting.layers, int(setting.shape["n_head"])
    with service(setting, 1) as at, bare(setting, 1) as model:
        known = at.run(n)
        first, larger = at.page(known)[0], at.page(at.run(n), count=2 * calls.PAGE_COUNT)[0]

        def ablated(run: v1.InferenceSpec, ablation: neuropil.Ablation) -> v1.InferenceSpec:
            another = v1.InferenceSpec()
            another.CopyFrom(run)
            another.ablations.append(ablation.message())
            return another

        def two(number: int) -> object:
            run = at.run(n)
            neuron = neuropil.Ablation("mlp.post_act", 1, [n // 2, number], 1.0)
            return at.page(run, ablated(run, neuron))

        found = in_turn(
            {
                "FB": lambda _: model("both", ids),
                "cold": timed(lambda _: at.page(at.run(n))),
                "known": timed(
                    lambda i: at.page(ablated(known, calls.unchanged(i, layers, heads)))
                ),
                "larger": timed(lambda _: at.page(at.run(n), count=2 * calls.PAGE_COUNT)),
                "two": timed(two),
                "again": timed(lambda _: at.page(known)),
            },
            setting.rounds,
        )

    def sizes(answer: v1.BatchDeriveResponse) -> str:
        """Number of nodes that a page shows, and its bytes."""
        types = Counter(answer.results[0].top_nodes.nodes.node_types)
        listed = [
            f"{count} {neuropil.names.NODE_TYPES.name(kind)}" for kind, count in types.items()
        ]
        return f"{', '.join(listed)}; {answer.ByteSize():,} bytes"

    def row(what: str, name: str, at_most: float) -> Row:
        return Row(what, found[name] * 1e3, found[name] / found["FB"], "FB", at_most)

    return [
        Row("FB beside the pages", found["FB"] * 1e3, 1.0, "FB"),
        row(f"page, cold ({sizes(first)})", "cold", 2.0),
        row(f"page with twice the nodes of a type, cold ({sizes(larger)})", "larger", 2.0),
        row("page, its nodes' token lists remembered, passes run anew", "known", 1.3),
        row("page of two runs, the second with an ablated neuron, cold", "two", 3.2),
        row("the same page again", "again", 0.2),
    ]


def clients(setting: Setting) -> list[Row]:
    """Requests at once against the same one after another, on two threads."""
    lengths = {
        f"{setting.tokens} tokens": ([setting.tokens] * setting.clients, 1.4),
        f"{setting.short_tokens} tokens": ([setting.short_tokens] * setting.clients, 2.0),
        f"{setting.short_tokens} to {setting.tokens} tokens": (setting.mixed_tokens, 1.5),
    }
    rows = []
    with service(setting, 2) as at:
        works: dict[str, tuple[Callable[[v1.InferenceSpec], object], bool]] = {
            "act times grad of a neuron": (
                lambda run: at.component("mlp_act_times_grad", 0, run),
                True,
            ),
            "three groups of strongest nodes": (
                lambda run: at.top_nodes(calls.GROUPS, run),
                False,
            ),
        }
        for what, (call, aimed) in works.items():
            for name, (n_tokens, target) in lengths.items():

                def alone(_: int, call: Any = call, n: list[int] = n_tokens) -> float:
                    return at.one_by_one(call, n)

                def together(_: int, call: Any = call, n: list[int] = n_tokens) -> float:
                    return at.at_once(call, n)

                found = in_turn({"alone": alone, "together": together}, max(2, setting.rounds // 2))
                rows.append(
                    Row(
                        f"{what}, {name}: {setting.clients} at once, as fast as one by one",
                        found["together"] * 1e3,
                        found["alone"] / found["together"],
                        "x",
                        at_least=target if aimed else None,
                    )
                )
    return rows


def beside(setting: Setting) -> list[Row]:
    """Memory of the process and short calls while clients ask for pages, on two threads."""
    weights = (setting.model / "model.safetensors").stat().st_size
    with service(setting, 2) as at:
        idle = peak_memory(at.pid, "VmRSS")
        probe = subprocess.Popen(
            [sys.executable, "-m", "tests.load.scalars_probe", at.address],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert probe.stdout is not None
        probe.stdout.readline()
        lengths = [setting.tokens] * setting.clients
        for _ in range(max(2, setting.rounds // 2)):
            at.at_once(at.page, lengths)
        printed, _ = probe.communicate("\n")
        peak = peak_memory(at.pid)
    health, catalogue, described = (float(each) for each in printed.split())
    limit = 2 * weights + 0.5e9
    who = f"while {setting.clients} clients ask for pages"
    return [
        Row(f"health check {who}, ms at p99", None, health, "ms", 20),
        Row(f"catalogue {who}, ms at p99", None, catalogue, "ms", 20),
        Row(f"description of the model {who}, ms at p99", None, described, "ms", 20),
        Row("memory of the server before the first call", None, idle / 1e9, "GB"),
        Row(
            f"most memory of the server, {peak / weights:.2f} times the checkpoint's size",
            None,
            peak / 1e9,
            "GB",
            round(limit / 1e9, 2),
        ),
    ]


ROWS: dict[str, tuple[str, Callable[[Setting], list[Row]]]] = {
    "passes": ("1 thread", passes),
    "pages": ("1 thread", pages),
    "clients": ("2 threads", clients),
    "beside": ("2 threads", beside),
}


def table(setting: Setting, names: Sequence[str]) -> Iterator[str]:
    """Lines of a report in Markdown, as they are measured."""
    for name in names:
        threads, measure_rows = ROWS[name]
        yield f"\n### {name}: {setting.tokens} tokens, {threads}, medians of {setting.rounds}\n"
        if setting.tiny:
            yield f"{UNJUDGED}\n"
        yield HEADER
        for row in measure_rows(setting):
            yield row.line(judged=not setting.tiny)


def make_setting(folder: Path, *, tiny: bool, rounds: int) -> Setting:
    """The setting of a shape, whose model is written to the folder unless it is there."""
    name = "tiny-gpt2" if tiny else "gpt2-small"
    model = write_model(folder / name, SHAPES[name])
    if tiny:
        return Setting(model, SHAPES[name], rounds, tokens=12, short_tokens=4, clients=3, tiny=True)
    return Setting(model, SHAPES[name], rounds)


async def measure(*, scale: float = 1.0) -> list[str]:
    """Measure all rows; `scale` below 1 takes a tiny model, for a test that this runs at all."""

    def work() -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            rounds = max(2, int(9 * scale))
            setting = make_setting(Path(folder), tiny=scale < 1, rounds=rounds)
            return list(table(setting, list(ROWS)))

    return await asyncio.to_thread(work)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does this run at all?")
    parser.add_argument("--folder", type=Path, help="keeps the model here for another run")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        setting = make_setting(given.folder or Path(folder), tiny=given.tiny, rounds=given.rounds)
        for line in table(setting, given.rows):
            print(line, flush=True)


if __name__ == "__main__":
    main()
