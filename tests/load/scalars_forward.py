"""`python -m tests.load.scalars_forward`: whose forward pass to capture activations from.

What `make bench-scalars-forward` runs: transformers' own model as it is (the floor), the same with
hooks that capture what the debugger page needs, and ours on the same checkpoint; each in a process
of its own, on one thread, in turn. Captured are, of all layers, the neurons, attention
probabilities, values and residual streams, and in both passes their gradients. Everything that
changes attention has its probabilities made, so that hooks need transformers' eager attention.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.load.processes import REPOSITORY
from tests.load.scalars_models import SHAPES, write_model

LLAMA_135M = {
    "family": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
MODELS = {"gpt2-small": SHAPES["gpt2-small"], "llama-135m": LLAMA_135M}
TINY = {"tiny-gpt2": SHAPES["tiny-gpt2"], "tiny-llama": SHAPES["tiny-llama"]}

CONTESTANTS = ("bare", "hooks", "ours")
WORKS = {
    "forward": "forward, logits at the last position",
    "logits": "forward, all logits",
    "both": "forward and backward",
    "mixed": "forward and backward, 8 prompts of 16 to 64 tokens",
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script")
    options = parser.parse_args()
    models = TINY if options.tiny else {name: MODELS[name] for name in options.models}
    for name, shape in models.items():
        with tempfile.TemporaryDirectory() as folder:
            path = write_model(Path(folder), shape)
            weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
            for line in table(name, path, weights, options.rounds, options.tokens):
                print(line, flush=True)


def table(name: str, path: Path, weights: int, rounds: int, tokens: int) -> Iterator[str]:
    """Lines of Markdown; a time of hooks or ours is against the bare model's for the same work."""
    mixed = [[*range(1, 1 + length)] for length in _mixed_lengths(tokens)]
    prompts = {work: [[*range(1, 1 + tokens)]] for work in WORKS} | {"mixed": mixed}
    seconds: dict[tuple[str, str], list[float]] = {}
    memory: dict[str, int] = {}
    with ExitStack() as stack:
        started = {each: stack.enter_context(_contestant(each, path)) for each in CONTESTANTS}
        for round_ in range(rounds + 1):
            for work, rows in prompts.items():
                for each, ask in started.items():
                    took, memory[each] = ask(work, rows)
                    if round_:  # the first round warms up
                        seconds.setdefault((work, each), []).append(took)
    yield f"### {name}, {tokens} tokens, 1 thread, medians of {rounds}"
    yield ""
    yield "| work | bare ms | hooks ms | ours ms | hooks / bare | ours / bare | ours / hooks |"
    yield "|---|---|---|---|---|---|---|"
    for work, what in WORKS.items():
        bare, hooks, ours = (statistics.median(seconds[work, each]) * 1e3 for each in CONTESTANTS)
        yield (
            f"| {what} | {bare:.0f} | {hooks:.0f} | {ours:.0f} | {hooks / bare:.2f} "
            f"| {ours / bare:.2f} | {ours / hooks:.2f} |"
        )
    bare, hooks, ours = (memory[each] / weights for each in CONTESTANTS)
    yield (
        f"| peak memory, in checkpoints | {bare:.2f} | {hooks:.2f} | {ours:.2f} "
        f"| {hooks / bare:.2f} | {ours / bare:.2f} | {ours / hooks:.2f} |"
    )
    yield ""


def _mixed_lengths(longest: int) -> list[int]:
    return [longest * part // 8 for part in (2, 3, 4, 5, 5, 6, 7, 8)]


@contextmanager
def _contestant(
    name: str, path: Path
) -> Iterator[Callable[[str, Sequence[Sequence[int]]], tuple[float, int]]]:
    """A process; asked for work it answers its seconds and its peak memory so far, in bytes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.load.scalars_forward_work", name, str(path)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def ask(work: str, prompts: Sequence[Sequence[int]]) -> tuple[float, int]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([work, prompts]) + "\n")
        process.stdin.flush()
        seconds, peak = json.loads(process.stdout.readline())
        return float(seconds), int(peak)

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
