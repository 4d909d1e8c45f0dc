"""`python -m tests.load.scalars_floor MODEL DEVICE DTYPE`: the bare model, timed.

Reads a JSON line a measurement, `["forward" | "both", [[token, ...], ...]]`, and answers its
seconds. The tokens are prompts of the same length, which run as one batch. `both` is forward and
backward pass to the embedding's activations, with frozen weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.load.processes import REPOSITORY


class Floor:
    """The process, from the side of who measures."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, work: str, prompts: Sequence[Sequence[int]]) -> float:
        """Seconds of a forward pass (`forward`), or of both passes (`both`)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([work, [list(each) for each in prompts]]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


@contextmanager
def floor(
    model: Path, environment: Mapping[str, str], device: str = "cpu", dtype: str = "float32"
) -> Iterator[Floor]:
    """Runs the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.load.scalars_floor", str(model), device, dtype],
        cwd=REPOSITORY,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the bare model did not start: status {process.wait()}")
        yield Floor(process)
    finally:
        process.terminate()
        process.wait(60)


def main(model_path: str, device: str, dtype: str) -> None:
    """Answer measurements until standard input ends."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        model_path, attn_implementation="sdpa", dtype=getattr(torch, dtype)
    )
    model = model.eval().to(device)
    model.requires_grad_(False)
    embedding = model.get_input_embeddings()

    def forward(ids: torch.Tensor) -> None:
        with torch.inference_mode():
            model(ids, use_cache=False)

    def both(ids: torch.Tensor) -> None:
        embedded = embedding(ids).requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits[:, -1]
        torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), embedded)

    works = {"forward": forward, "both": both}
    print("ready", flush=True)
    for line in sys.stdin:
        name, prompts = json.loads(line)
        ids = torch.tensor(prompts, device=device)
        started = time.perf_counter()
        works[name](ids)
        if device != "cpu":
            torch.cuda.synchronize()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
