"""Derived scalars through the service against the bare model, both on one thread.

The model has GPT-2 small's shape and random weights; the floor is Hugging Face's own forward pass
(F) and its forward and backward pass with frozen weights (FB), in a process of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

import neuropil
from neuropil.names import component_id
from neuropil.scalars import v1
from tests.load.processes import REPOSITORY, server

TOKENS = 64
SHAPES = {
    "small": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_inner": 3072, "vocab_size": 50257},
    "tiny": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_inner": 64, "vocab_size": 4096},
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

FLOOR = """
import json, sys, time
import torch
from transformers import GPT2LMHeadModel

torch.set_num_threads(1)
model = GPT2LMHeadModel.from_pretrained(sys.argv[1], attn_implementation="sdpa").eval()
model.requires_grad_(False)
ids = torch.tensor([json.loads(sys.argv[2])])
rounds = int(sys.argv[3])

def forward():
    with torch.inference_mode():
        model(ids)

def both():
    embedded = model.transformer.wte(ids).requires_grad_()
    logits = model(inputs_embeds=embedded).logits[0, -1]
    torch.autograd.grad(logits[0] - logits[1], embedded)

for work in (forward, both):
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    print(sorted(times)[len(times) // 2])
"""


async def measure(*, scale: float = 1.0) -> list[str]:
    """Measure the service and its floor; lines of a report in Markdown.

    `scale` below 1 takes a tiny model, for a test that this runs at all.
    """
    return await asyncio.to_thread(_measure, scale)


def _measure(scale: float) -> list[str]:
    rounds = max(2, int(9 * scale))
    shape = SHAPES["small" if scale >= 1 else "tiny"]
    with tempfile.TemporaryDirectory() as folder:
        model = _write_model(Path(folder) / "model", shape)
        deployment = Path(folder) / "deployment.yaml"
        deployment.write_text(
            yaml.safe_dump({"model": {"name": "bench", "path": str(model), "device": "cpu"}})
        )
        arguments = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
        with (
            server("services.scalars", *arguments, environment=ONE_THREAD) as (address, pid),
            neuropil.connect(scalars=address, timeout=120) as client,
        ):
            prompt = " the" * TOKENS
            token_ids = client.scalars.derive(prompt, ["resid_post_embedding"]).token_ids
            rows = [
                (what, floor, _median(call, rounds))
                for what, floor, call in _calls(client, prompt, shape["n_layer"] - 1)
            ]
            peak = _peak_memory(pid) / (model / "model.safetensors").stat().st_size
        done = subprocess.run(
            [sys.executable, "-c", FLOOR, str(model), json.dumps(token_ids), str(rounds)],
            env=os.environ | ONE_THREAD,
            capture_output=True,
            text=True,
            check=True,
        )
        forward, both = (float(line) for line in done.stdout.split()[-2:])
    floors = {"F": forward, "FB": both}
    lines = [
        f"\n### {len(token_ids)} tokens, 1 thread, medians of {rounds}\n",
        "| what | ms | against |\n|---|---|---|",
        f"| F: Hugging Face forward, all logits | {forward * 1e3:.0f} | 1.00 F |",
        f"| FB: the same and backward, frozen weights | {both * 1e3:.0f} | 1.00 FB |",
    ]
    for what, floor, seconds in rows:
        lines.append(f"| {what} | {seconds * 1e3:.0f} | {seconds / floors[floor]:.2f} {floor} |")
    lines.append(f"\nPeak memory of the server: {peak:.2f} times the checkpoint's size.")
    return lines


def _calls(
    client: neuropil.Client, prompt: str, last_layer: int
) -> list[tuple[str, str, Callable[[], object]]]:
    loss = neuropil.Loss("logit_diff", targets=[" God"], distractors=[" file"])
    groups = {
        "write_norm": ["mlp_write_norm", "unflattened_attn_write_norm"],
        "act_times_grad": ["mlp_act_times_grad", "unflattened_attn_act_times_grad"],
    }

    def component(scalar_type: str, layer: int, with_loss: neuropil.Loss | None = None) -> object:
        inference = v1.InferenceSpec(
            prompt=prompt, loss=None if with_loss is None else with_loss.message()
        )
        spec = v1.ComponentSpec(component=component_id(scalar_type, layer, 3))
        request = v1.DeriveComponentRequest(inference=inference, spec=spec)
        return client.scalars.stub.DeriveComponent(request)

    return [
        (
            "activation of one neuron of the last layer",
            "F",
            lambda: component("mlp_post_act", last_layer),
        ),
        (
            "activation times gradient of one neuron of the first layer, with a loss",
            "FB",
            lambda: component("mlp_act_times_grad", 0, loss),
        ),
        (
            "strongest nodes of two groups, with a loss",
            "FB",
            lambda: client.scalars.top_nodes(prompt, groups, count=10, loss=loss),
        ),
    ]


def _median(call: Callable[[], object], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _write_model(folder: Path, shape: dict[str, int]) -> Path:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**shape, n_positions=128)).save_pretrained(folder)
    # A tokenizer with fewer tokens than the model has rows of embedding is all right.
    shutil.copy(REPOSITORY / "data" / "demo" / "model" / "tokenizer.json", folder)
    return folder
