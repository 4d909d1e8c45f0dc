"""A derived-scalars service whose requests take long, and need much memory, by their length."""

from __future__ import annotations

import math
import re
import resource
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from neuropil.channel import open_channel
from neuropil.names import LOSS_KINDS, component_id
from neuropil.scalars import v1 as scalars
from tests.faults.processes import free_port
from tests.load.processes import server
from tests.unit.scalars_checkpoint import make_tokenizer, write_checkpoint

Call = Any
"""A call that has begun; grpc's stubs have no type for it."""

LAYERS, WIDTH, HEADS, CONTEXT = 4, 128, 32, 8192


@dataclass(frozen=True)
class Served:
    """The running service."""

    stub: scalars.DerivedScalarsStub
    pid: int
    metrics_port: int

    def metric(self, name: str) -> float:
        """The sum over the labels that begin with `name`, a part of a metric's name and labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=20) as answer:
            text = answer.read().decode()
        pattern = rf"^neuropil_scalars_{re.escape(name)}\S* (\S+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))

    def jobs(self, outcome: str) -> float:
        """How many jobs had this outcome."""
        return self.metric(f'jobs_total{{outcome="{outcome}"}}')

    def until(self, name: str, value: float) -> None:
        """Wait for a metric to have a value."""
        deadline = time.monotonic() + 60
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.005)

    def send(self, request: scalars.DeriveComponentRequest, timeout: float = 120) -> Call:
        """Begins a call; its `result` waits."""
        method: Any = self.stub.DeriveComponent
        return method.future(request, timeout=timeout)

    def limit_memory(self, n_bytes: int) -> None:
        """Lets the process have so much more address space than it has now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (size,) = re.findall(r"^VmSize:\s+(\d+) kB$", status, re.MULTILINE)
        limit = int(size) * 1024 + n_bytes
        resource.prlimit(self.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def lift_memory_limit(self) -> None:
        """Ends what `limit_memory` did."""
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.pid, resource.RLIMIT_AS, unlimited)


def request(n_tokens: int, *, last: str = " cat") -> scalars.DeriveComponentRequest:
    """Asks for gradients through all layers, over so many tokens."""
    loss = scalars.LossFunction(
        kind=LOSS_KINDS.value("logit_diff"), target_tokens=[" cat"], distractor_tokens=[]
    )
    prompt = " cat" * (n_tokens - 1) + last
    return scalars.DeriveComponentRequest(
        inference=scalars.InferenceSpec(prompt=prompt, loss=loss),
        spec=scalars.ComponentSpec(component=component_id("mlp_act_times_grad", 0, 3)),
    )


@contextmanager
def service(folder: Path, **batching: float) -> Iterator[Served]:
    """Runs the service, one thread, nothing kept of its runs."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_inner": WIDTH}
    write_checkpoint(
        folder / "model", config=changes | {"n_positions": CONTEXT}, weights=_weights()
    )
    model = {"name": "long", "path": "model", "device": "cpu", "reuse_megabytes": 0}
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump({"model": model | {"batching": batching}}))
    port = free_port()
    arguments = ("--config", str(path), "--port", "0", "--metrics-port", str(port))
    environment = {"OMP_NUM_THREADS": "1"}
    with (
        server("services.scalars", *arguments, environment=environment) as (address, pid),
        open_channel(address) as channel,
    ):
        yield Served(scalars.DerivedScalarsStub(channel), pid, port)


def _weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    vocab_size = make_tokenizer().get_vocab_size() + 3

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator) / math.sqrt(sizes[0])

    weights = {"wte.weight": normal(vocab_size, WIDTH), "wpe.weight": normal(CONTEXT, WIDTH)}
    for name in ("ln_f", *(f"h.{layer}.{norm}" for layer in range(LAYERS) for norm in NORMS)):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)
    for layer in range(LAYERS):
        for name, width in WIDTHS.items():
            weights[f"h.{layer}.{name}.weight"] = normal(WIDTH, width)
            weights[f"h.{layer}.{name}.bias"] = torch.zeros(width)
    return {f"transformer.{name}": tensor for name, tensor in weights.items()}


NORMS = ("ln_1", "ln_2")
WIDTHS = {
    "attn.c_attn": 3 * WIDTH,
    "attn.c_proj": WIDTH,
    "mlp.c_fc": WIDTH,
    "mlp.c_proj": WIDTH,
}
