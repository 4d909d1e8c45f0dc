"""How much a shared prefix saves: rows after a prefix, against the whole prompt each time.

`python -m tests.load.simulation_prefix_bench` prints a table. The model has GPT-2 small's shape and
random weights; the whole prompt goes through transformers' own forward pass.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PREFIX_TOKENS = 800
OWN_TOKENS = 150
ROWS = 16
_TOKENS_A_LINE = 4
_REPEATS = 3


@dataclass(frozen=True)
class Measured:
    """Seconds a sequence, and what was computed."""

    whole_all_logits: float
    whole: float
    shared: float
    there: float
    alone: float
    computed_by_own: float
    """Tokens computed by own tokens, the prefix being there."""
    difference: float
    """Largest difference of a logit from transformers' own."""
    scale: float
    """Largest logit."""


def measure(folder: Path, repeats: int = _REPEATS) -> Measured:
    """Time all ways in turns; medians."""
    import torch
    import transformers

    from services.simulation.language_models.local.model import LocalModel
    from services.simulation.language_models.local.rows import Row

    model = LocalModel.load(str(folder), "cpu")
    if not model.shares_prefix:
        raise SystemExit(f"the prefix isn't shared: {model.shares_prefix_reason}")
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    draw = np.random.default_rng(0)
    vocabulary = model.vocabulary
    ids = tuple(draw.integers(0, vocabulary, PREFIX_TOKENS).tolist())
    positions = np.arange(_TOKENS_A_LINE - 3, OWN_TOKENS, _TOKENS_A_LINE)
    columns = np.sort(draw.choice(vocabulary, 11, replace=False))
    rows = [
        Row(tuple(draw.integers(0, vocabulary, OWN_TOKENS).tolist()), positions, columns)
        for _ in range(ROWS)
    ]
    wanted = torch.from_numpy(PREFIX_TOKENS + positions)

    def forward(row: Row, **keep: Any) -> Any:
        with torch.inference_mode():
            return plain(torch.tensor([ids + row.ids]), use_cache=False, **keep).logits[0]

    def shared() -> None:
        model.cache.clear()
        model.logits(model.prefix([ids]), rows)

    last = forward(rows[-1], logits_to_keep=wanted)[:, columns].double().numpy()
    prefix = model.prefix([ids])
    results = model.logits(prefix, rows)
    times: dict[str, list[float]] = {name: [] for name in ("all", "whole", "shared", "there", "1")}
    for repeat in range(repeats):
        row = rows[repeat % ROWS]
        times["all"].append(_seconds(lambda row=row: forward(row)))
        times["whole"].append(_seconds(lambda row=row: forward(row, logits_to_keep=wanted)))
        times["shared"].append(_seconds(shared) / ROWS)
        times["there"].append(_seconds(lambda: model.logits(model.prefix([ids]), rows)) / ROWS)
        times["1"].append(_seconds(lambda row=row: model.logits(model.prefix([ids]), [row])))
    median = {name: statistics.median(values) for name, values in times.items()}
    return Measured(
        median["all"],
        median["whole"],
        median["shared"],
        median["there"],
        median["1"],
        sum(result.computed for result in results) / (ROWS * OWN_TOKENS),
        float(np.abs(results[-1].values - last).max()),
        float(np.abs(last).max()),
    )


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def save_model(folder: Path) -> None:
    """A model of GPT-2 small's shape with random weights, and a tokenizer to go with it."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<|begin|>": 0, "a": 1}, unk_token="<|begin|>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def lines(repeats: int = _REPEATS) -> list[str]:
    """The table, in Markdown."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        found = measure(Path(folder), repeats)
    rows = [
        ("the whole prompt, all logits", found.whole_all_logits),
        ("the whole prompt, logits where a value is predicted", found.whole),
        (f"prefix computed once for {ROWS} sequences", found.shared),
        (f"prefix already there, {ROWS} sequences", found.there),
        ("prefix already there, one sequence", found.alone),
    ]
    return [
        f"GPT-2 small's shape, float32, {torch.get_num_threads()} threads, {PREFIX_TOKENS} tokens "
        f"shared, {OWN_TOKENS} own",
        "",
        "| way | seconds a sequence | against all logits | against logits where wanted |",
        "|---|---|---|---|",
        *(
            f"| {name} | {seconds:.3f} | {found.whole_all_logits / seconds:.1f}x "
            f"| {found.whole / seconds:.1f}x |"
            for name, seconds in rows
        ),
        "",
        f"Tokens computed a sequence: {found.computed_by_own:.2f} x its own. Largest difference of "
        f"a logit from transformers' own: {found.difference:.1e} of {found.scale:.2g}.",
    ]


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
