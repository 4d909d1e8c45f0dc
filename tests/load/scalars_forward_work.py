"""`python -m tests.load.scalars_forward_work WHO MODEL`: what `scalars_forward` measures.

Reads a JSON line a measurement, `[work, [[token, ...], ...]]`, and answers its seconds
and the peak of memory since everything was imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import PassType
from services.scalars.model.subject import load_subject
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import PreparedInference, Row, run_rows
from services.scalars.passes.losses import Loss, LossKind

Prompts = list[list[int]]
Work = Callable[[str, Prompts], None]

_CAPTURED = (
    Location.MLP_POST_ACT,
    Location.ATTN_QK_PROBS,
    Location.ATTN_VALUE,
    Location.RESID_POST_ATTN,
    Location.RESID_POST_MLP,
)


def padded(prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and mask (B, longest), and the last position of each prompt (B,)."""
    lengths = [len(each) for each in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        mask[row, : len(prompt)] = 1
    return ids, mask, torch.tensor(lengths) - 1


class Theirs:
    """transformers' model; with hooks, what we capture is kept and differentiated."""

    def __init__(self, path: Path, hooks: bool) -> None:
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="eager" if hooks else "sdpa", dtype=torch.float32
        )
        self._model.requires_grad_(False)
        self._kept: list[Tensor] = []
        if hooks:
            self._hook()

    def _hook(self) -> None:
        gpt2 = self._model.config.model_type == "gpt2"
        blocks = self._model.transformer.h if gpt2 else self._model.model.layers
        for block in blocks:
            attention = block.attn if gpt2 else block.self_attn
            attention.register_forward_hook(lambda _, __, output: self._keep(output[1]))
            values = attention.c_attn if gpt2 else attention.v_proj
            values.register_forward_hook(lambda _, __, output: self._keep(output))
            neurons = block.mlp.c_proj if gpt2 else block.mlp.down_proj
            neurons.register_forward_pre_hook(lambda _, inputs: self._keep(inputs[0]))
            middle = block.ln_2 if gpt2 else block.post_attention_layernorm
            middle.register_forward_pre_hook(lambda _, inputs: self._keep(inputs[0]))
            block.register_forward_hook(
                lambda _, __, output: self._keep(output[0] if isinstance(output, tuple) else output)
            )

    def _keep(self, tensor: Tensor) -> None:
        self._kept.append(tensor)

    def __call__(self, work: str, prompts: Prompts) -> None:
        ids, mask, last = padded(prompts)
        # One prompt needs no mask.
        options: dict[str, Any] = {"use_cache": False}
        if len(prompts) > 1:
            options["attention_mask"] = mask
        if work in ("forward", "logits"):
            with torch.inference_mode():
                self._model(ids, logits_to_keep=1 if work == "forward" else 0, **options)
        else:
            embedded = self._model.get_input_embeddings()(ids).requires_grad_()
            base = self._model.base_model
            hidden = base(inputs_embeds=embedded, **options).last_hidden_state
            logits = self._model.lm_head(hidden[torch.arange(len(prompts)), last])
            scalar = (logits[:, 0] - logits[:, 1]).sum()
            torch.autograd.grad(scalar, [embedded, *self._kept])
        self._kept.clear()


class Ours:
    """Our forward pass on the same checkpoint."""

    def __init__(self, path: Path) -> None:
        self._model = load_subject("measured", str(path), "cpu").model

    def __call__(self, work: str, prompts: Prompts) -> None:
        forward = work in ("forward", "logits")
        passes = (PassType.FORWARD,) if forward else tuple(PassType)
        captures = frozenset(
            RawTensorId(location, layer, pass_type)
            for location in _CAPTURED
            for layer in range(self._model.shape.layers)
            for pass_type in passes
        )
        if work == "logits":
            captures |= {RawTensorId(Location.LOGITS, None, PassType.FORWARD)}
        rows = [
            Row(
                PreparedInference(
                    tuple(prompt), (), Loss(LossKind.LOGIT_DIFF, (0,), (1,), len(prompt) - 1)
                ),
                captures,
            )
            for prompt in prompts
        ]
        run_rows(self._model, rows)


def main(arguments: Sequence[str]) -> None:
    """Answer measurements until standard input ends."""
    name, path = arguments[0], Path(arguments[1])
    imported = _peak()
    work: Work = Ours(path) if name == "ours" else Theirs(path, hooks=name == "hooks")
    for line in sys.stdin:
        kind, prompts = json.loads(line)
        started = time.perf_counter()
        work(kind, prompts)
        print(json.dumps([time.perf_counter() - started, _peak() - imported]), flush=True)


def _peak() -> int:
    # Not getrusage: its peak is that of the process that started this one, if that was larger.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
