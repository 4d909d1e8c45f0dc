"""`python -m tests.integration.scalars_mixed [N]`: batched equals alone, on N random requests.

The same requests one by one and many at once, in another order. Servers keep no runs, so that no
answer can come from an earlier one; one that keeps them is held against the same answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import torch
import yaml
from google.protobuf import text_format
from numpy.typing import NDArray
from safetensors.torch import save_file

from neuropil import names
from neuropil.channel import channel_options, open_channel
from neuropil.common import v1 as common
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_array
from tests.integration.scalars_mixed_requests import ONLINE_LATENTS, MixedRequests, Request
from tests.load.processes import server
from tests.unit import scalars_checkpoint as tiny
from tests.unit.scalars_llama_checkpoint import write_llama_checkpoint

CLOSE = 1e-5
"""Most that an element differs by, of its tensor's largest absolute value."""
CLOSE_WHERE_CANCELLED = 1e-4
"""The same for a projection or a single node, where sums over channels cancel.

A layer norm's output does not change with its input's length: gradients before it are orthogonal to
the residual stream but for rounding, and projections on them are small beside what is summed.
"""
SUMS = ("_grad", "attribution", "single_node", "edge_activation", "sum over nodes")
"""Parts of the names of scalars that are such sums."""
CANCELLED = 1e-6
"""A difference of such a sum that is rounding of its terms, which are about 1."""
ROUNDING = 1e-7
"""What is nowhere larger than this is zero but for rounding; activations here are about 1."""
AT_ONCE = 24
INPUTS = {"mlp_post_act": tiny.NEURONS, "resid_delta_mlp": tiny.WIDTH, "resid_delta_attn": 24}
LATENTS, K, THRESHOLD = 32, 6, 0.4

SET_UPS: dict[str, tuple[str, dict[str, str]]] = {
    "model alone": ("gpt2", {}),
    "topk": ("gpt2", {"mlp_post_act": "topk"}),
    "jumprelu and relu": ("gpt2", {"resid_delta_mlp": "jumprelu", "resid_delta_attn": "relu"}),
    "gated": ("gpt2", {"resid_delta_attn": "gated"}),
    "another family": ("llama", {"resid_delta_mlp": "relu"}),
}
"""Family, and activations of autoencoders by what they read."""


@dataclass
class Answer:
    """What was answered: arrays in order, or the status of a refusal."""

    arrays: list[NDArray[Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    latents: list[NDArray[Any]] = field(default_factory=list)
    """The arrays that hold online latents."""
    refused: str = ""

    def add(self, selection: scalars.ScalarSelection, where: str, array: NDArray[Any]) -> None:
        """Adds what was selected."""
        name = names.DERIVED_SCALAR_TYPES.name(selection.derived_scalar_type)
        backward = selection.pass_type == common.PASS_TYPE_BACKWARD
        self.names.append(f"{name}{' backward' if backward else ''}, {where}")
        self.arrays.append(array)
        if name in ONLINE_LATENTS.values() and not backward:
            self.latents.append(array)


@dataclass
class Outcome:
    """How requests compared."""

    requests: int = 0
    tensors: int = 0
    refused: int = 0
    at_boundary: int = 0
    """Tensors that differ as a latent is active in one answer alone, at its activation's edge."""
    cancelled: int = 0
    """Projections and single nodes that differ by more than `CLOSE`, as nearly all cancels."""
    largest_cancelled: float = 0.0
    largest: float = 0.0
    """Largest difference of an element, of its tensor's largest absolute value."""
    wrong: list[str] = field(default_factory=list)
    rows_of_batches: float = 0.0
    """Mean number of inferences that ran together while requests came at once."""


@contextmanager
def serving(
    folder: Path, set_up: str, *, reuse_megabytes: int = 0
) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """Runs a server; gives its address, and what reads its metrics."""
    family, autoencoders = SET_UPS[set_up]
    folder.mkdir(parents=True, exist_ok=True)
    (write_llama_checkpoint if family == "llama" else tiny.write_checkpoint)(folder / "model")
    model: dict[str, Any] = {
        "name": "tiny",
        "path": str(folder / "model"),
        "device": "cpu",
        "reuse_megabytes": reuse_megabytes,
        "autoencoders": [
            {"name": dst, "path": str(_write_autoencoder(folder, dst, activation))}
            for dst, activation in autoencoders.items()
        ],
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump({"model": model}))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    arguments = ("--config", str(path), "--port", "0", "--metrics-port", str(port))
    with server("services.scalars", *arguments, environment={"OMP_NUM_THREADS": "1"}) as (at, _):
        yield at, lambda: _metrics(port)


def compare(address: str, metrics: Callable[[], dict[str, float]], n: int, seed: int) -> Outcome:
    """Asks `n` random requests one by one and at once."""
    with open_channel(address) as channel:
        make = MixedRequests(scalars.DerivedScalarsStub(channel), seed)
        requests = [make() for _ in range(n)]
    alone = asyncio.run(answers(address, requests, at_once=1))
    before = metrics()
    order = np.random.default_rng(seed).permutation(n)
    shuffled = asyncio.run(answers(address, [requests[i] for i in order], at_once=AT_ONCE))
    after = metrics()
    outcome = Outcome(requests=n)
    together = [shuffled[i] for i in np.argsort(order)]
    for request, one, other in zip(requests, alone, together, strict=True):
        hold(outcome, request, one, other)
    rows, batches = (
        after[f"neuropil_scalars_batch_rows_{name}"] - before[f"neuropil_scalars_batch_rows_{name}"]
        for name in ("sum", "count")
    )
    outcome.rows_of_batches = rows / max(1.0, batches)
    return outcome


async def answers(address: str, requests: Sequence[Request], *, at_once: int) -> list[Answer]:
    """The answers to requests, so many of which are under way at once."""
    gate = asyncio.Semaphore(at_once)
    async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
        stub = scalars.DerivedScalarsStub(channel)

        async def ask(request: Request) -> Answer:
            async with gate:
                try:
                    return await _ask(stub, request)
                except grpc.aio.AioRpcError as error:
                    return Answer(refused=f"{error.code().name}: {error.details()}")

        return list(await asyncio.gather(*map(ask, requests)))


def hold(outcome: Outcome, request: Request, one: Answer, other: Answer) -> None:
    """Hold an answer against the same one got alone."""
    if one.refused or other.refused:
        outcome.refused += 1
        if one.refused != other.refused or not one.refused.startswith("INVALID_ARGUMENT"):
            outcome.wrong.append(f"{one.refused!r} alone, {other.refused!r} at once")
        return
    shapes = [[each.shape for each in answer.arrays] for answer in (one, other)]
    if shapes[0] != shapes[1]:
        outcome.wrong.append(f"shapes {shapes[0]} alone, {shapes[1]} at once")
        return
    boundary = any(at_boundary(a, b) for a, b in zip(one.latents, other.latents, strict=True))
    for name, a, b in zip(one.names, one.arrays, other.arrays, strict=True):
        differs = difference(a, b)
        outcome.tensors += 1
        if differs > CLOSE and boundary:
            outcome.at_boundary += 1
        elif differs > CLOSE and _is_cancelled(name, differs, a):
            outcome.cancelled += 1
            outcome.largest_cancelled = max(outcome.largest_cancelled, differs)
        else:
            outcome.largest = max(outcome.largest, differs)
            if differs <= CLOSE:
                continue
            outcome.wrong.append(
                f"{name}: differs by {differs:.2g} of its maximum, {np.abs(a).max():.3g} alone; "
                + text_format.MessageToString(request, as_one_line=True)
            )


def difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Largest difference of elements, of the largest value; inf where inf or NaN differ."""
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return np.inf
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return np.inf
    a, b = one[finite].astype(np.float64), other[finite].astype(np.float64)
    largest = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    if largest <= ROUNDING:
        return 0.0
    return float(np.abs(a - b).max(initial=0.0) / largest)


def at_boundary(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether a latent is active in one of two answers alone, and was nearly not.

    Then the smallest active one of its token (of which topk keeps so many), or the threshold, is
    next to it.
    """
    flipped = np.argwhere((one != 0) != (other != 0))
    for *token, latent in flipped:
        value = max(abs(one[(*token, latent)]), abs(other[(*token, latent)]))
        active = [row[row != 0] for row in (one[tuple(token)], other[tuple(token)])]
        edges = [THRESHOLD, *(float(row.min()) for row in active if row.size)]
        if not any(abs(value - edge) <= 1e-4 * max(1.0, abs(edge)) for edge in edges):
            return False
    return len(flipped) > 0


def _is_cancelled(name: str, differs: float, array: NDArray[Any]) -> bool:
    """Whether a difference is one of rounding in a sum whose terms cancel."""
    if not any(part in name for part in SUMS):
        return False
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    return differs <= CLOSE_WHERE_CANCELLED or differs * largest <= CANCELLED


async def _ask(stub: Any, request: Request) -> Answer:
    answer = Answer()
    if isinstance(request, scalars.ListTopNodesRequest):
        top = (await stub.ListTopNodes(request, timeout=120)).top_nodes
        for each in top.sums:
            answer.arrays.append(to_array(each.values))
            answer.names.append("sum over nodes")
        # Which of several tied nodes are listed is open; the largest and the smallest are not.
        for group in top.groups:
            values = to_array(group.values)
            answer.arrays.append(np.array([values.max(), values.min()]))
            answer.names.append("extremes")
    elif isinstance(request, scalars.BatchDeriveRequest):
        async for part in stub.BatchDerive(request, timeout=120):
            for each in part.results:
                spec = request.inferences[part.position].specs[int(each.name)]
                answer.add(spec.selection, "all layers", to_array(each.selection))
    else:
        frames: dict[tuple[int, int | None], NDArray[Any]] = {}
        async for response in stub.Derive(request, timeout=120):
            if response.HasField("frame"):
                frame = response.frame
                layer = frame.layer_index if frame.HasField("layer_index") else None
                rows = to_array(frame.rows)
                whole = frames.setdefault(
                    (frame.selection, layer), np.full(tuple(frame.shape), np.nan, rows.dtype)
                )
                whole[frame.first_row : frame.first_row + len(rows)] = rows
        for (position, layer), array in frames.items():
            answer.add(request.selections[position], f"layer {layer}", array)
    return answer


def _write_autoencoder(folder: Path, dst: str, activation: str) -> Path:
    """Writes a random autoencoder of every layer; about a third of its latents are active."""
    width = INPUTS[dst]
    generator = torch.Generator().manual_seed(len(dst) + len(activation))

    def normal(*sizes: int, scale: float) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator) * scale

    tensors = {}
    for layer in range(tiny.LAYERS):
        at = f"layers.{layer}"
        tensors[f"{at}.pre_bias"] = normal(width, scale=0.1)
        tensors[f"{at}.encoder.weight"] = normal(LATENTS, width, scale=width**-0.5)
        tensors[f"{at}.latent_bias"] = normal(LATENTS, scale=0.1)
        tensors[f"{at}.decoder.weight"] = normal(width, LATENTS, scale=LATENTS**-0.5)
        if activation == "gated":
            tensors[f"{at}.gate_bias"] = normal(LATENTS, scale=0.1)
            tensors[f"{at}.magnitude_scale"] = normal(LATENTS, scale=0.1)
    metadata = {
        "dst": dst,
        "activation": activation,
        "k": str(K) if activation == "topk" else "",
        "threshold": str(THRESHOLD) if activation == "jumprelu" else "",
    }
    path = folder / f"{dst}.safetensors"
    save_file(tensors, path, metadata=metadata)
    return path


def _metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    found = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in found}


def verdict(outcomes: Sequence[Outcome]) -> str:
    """One line on all comparisons, for people."""
    requests, tensors, refused, boundary, cancelled, wrong = (
        sum(counts)
        for counts in zip(
            *(
                (o.requests, o.tensors, o.refused, o.at_boundary, o.cancelled, len(o.wrong))
                for o in outcomes
            ),
            strict=True,
        )
    )
    return (
        f"{requests} comparisons of a request at once with the same alone, {tensors} tensors: "
        f"largest difference {max(o.largest for o in outcomes):.2g} of a tensor's maximum "
        f"({CLOSE:g} allowed). Counted apart: {boundary} tensors at the edge of a latent's "
        f"activation, {cancelled} small sums of what cancels; {refused} requests refused both "
        f"times. {wrong} wrong: {'fail' if wrong else 'pass'}"
    )


def _number(text: str) -> int:
    n = int(text) if text.isdecimal() else 0
    if n < len(SET_UPS):
        raise argparse.ArgumentTypeError(
            f"a whole number from {len(SET_UPS)} is needed, one for each set-up, not {text!r}"
        )
    return n


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare on every set-up, so many requests in all; status 1 where one differs."""
    parser = argparse.ArgumentParser(description="Whether batched answers equal those alone.")
    parser.add_argument("n", nargs="?", type=_number, default=500, help="requests in all (500)")
    n: int = parser.parse_args(arguments).n
    outcomes = []
    shares = [n // len(SET_UPS)] * len(SET_UPS)
    shares[0] += n - sum(shares)
    for seed, (set_up, share) in enumerate(zip(SET_UPS, shares, strict=True)):
        for reuse in (0, 64):
            with (
                tempfile.TemporaryDirectory() as folder,
                serving(Path(folder), set_up, reuse_megabytes=reuse) as (address, metrics),
            ):
                outcome = compare(address, metrics, share, seed)
            shown = {name: value for name, value in vars(outcome).items() if name != "wrong"}
            kept = "runs kept" if reuse else "no run kept"
            print(f"{set_up}, {kept}: {json.dumps(shown)}", flush=True)
            print("\n".join(outcome.wrong[:10]), end="\n" if outcome.wrong else "", flush=True)
            outcomes.append(outcome)
    print(verdict(outcomes))
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
