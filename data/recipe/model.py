"""Step 3: model. Train the subject model and save it in the Hugging Face layout."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from data.recipe.layout import CACHE, MODEL, TRAIN, VALIDATION
from data.recipe.network import Network, Shape, cross_entropy
from data.recipe.tokenizer import end_of_text_id, token_stream

CHECKPOINT = "model_checkpoint.pt"
CHECKPOINT_EVERY = 500
CURVE = "training_curve.csv"
CURVE_FIELDS = ("step", "tokens", "learning_rate", "train_loss", "activation_l1", "validation_loss")


@dataclass(frozen=True)
class Schedule:
    """Everything that decides how the weights come out."""

    steps: int = 6000
    batch: int = 32
    peak_learning_rate: float = 3e-3
    final_learning_rate: float = 1.5e-4
    warmup: int = 200
    weight_decay: float = 0.05
    activation_l1: float = 0.1
    """Weight of the sum over layers of the mean absolute MLP activation: sparser neurons."""
    seed: int = 20

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to the final rate."""
        if step < self.warmup:
            return self.peak_learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        span = self.peak_learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


class Batches:
    """Random windows of a token stream; the windows of a step depend on seed and step alone."""

    def __init__(self, stream: npt.NDArray[np.uint16], length: int, seed: int) -> None:
        self._stream = torch.from_numpy(stream.astype(np.int64))
        self._length = length
        self._seed = seed

    def at(self, step: int, batch: int) -> tuple[Tensor, Tensor]:
        """Inputs and next tokens of one step, [batch, length] each."""
        random = np.random.default_rng((self._seed, step))
        starts = random.integers(0, len(self._stream) - self._length - 1, size=batch)
        rows = torch.stack([self._stream[s : s + self._length + 1] for s in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def evaluate(network: Network, stream: npt.NDArray[np.uint16], device: torch.device) -> float:
    """Mean loss in nats a token over consecutive windows of the stream."""
    length = network.shape.n_positions
    windows = (len(stream) - 1) // length
    ids = torch.from_numpy(stream[: windows * length + 1].astype(np.int64))
    inputs, targets = ids[:-1].view(windows, length), ids[1:].view(windows, length)
    total = 0.0
    for start in range(0, windows, 32):
        rows = inputs[start : start + 32].to(device)
        hidden, _ = network(rows)
        loss = cross_entropy(
            hidden.flatten(0, 1),
            network.wte.weight,
            targets[start : start + 32].flatten().to(device),
        )
        total += loss.item() * len(rows)
    return total / windows


def optimiser(network: Network, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW; weight decay on the matrices of the blocks only."""
    decayed = [p for n, p in network.named_parameters() if p.ndim == 2 and n.startswith("blocks")]
    others = [p for n, p in network.named_parameters() if p.ndim != 2 or not n.startswith("blocks")]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": schedule.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=schedule.peak_learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


def train(
    train_stream: npt.NDArray[np.uint16],
    validation_stream: npt.NDArray[np.uint16],
    schedule: Schedule,
    checkpoint: Path,
    device: torch.device,
    console: Console,
) -> tuple[Network, list[dict[str, Any]]]:
    """Train, or go on from the checkpoint; returns the network and its curve."""
    network = Network(Shape(), seed=schedule.seed).to(device)
    optimizer = optimiser(network, schedule)
    curve: list[dict[str, Any]] = []
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        if saved["schedule"] == vars(schedule):
            network.load_state_dict(saved["network"])
            optimizer.load_state_dict(saved["optimizer"])
            curve, first = saved["curve"], saved["step"]
            console.print(f"going on from step {first}")
    batches = Batches(train_stream, network.shape.n_positions, schedule.seed)
    recent: list[tuple[float, float]] = []
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=schedule.steps, completed=first, note="")
        for step in range(first, schedule.steps):
            rate = schedule.learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            inputs, targets = batches.at(step, schedule.batch)
            hidden, layers = network(inputs.to(device))
            loss = cross_entropy(
                hidden.flatten(0, 1), network.wte.weight, targets.flatten().to(device)
            )
            l1 = torch.stack([layer["mlp_post_act"].abs().mean() for layer in layers]).sum()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss + schedule.activation_l1 * l1)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            recent.append((loss.item(), l1.item()))
            done = step + 1
            if done % 50 == 0 or done == schedule.steps:
                means = np.mean(recent, axis=0)
                point: dict[str, Any] = {
                    "step": done,
                    "tokens": done * schedule.batch * network.shape.n_positions,
                    "learning_rate": round(rate, 7),
                    "train_loss": round(float(means[0]), 4),
                    "activation_l1": round(float(means[1]), 4),
                    "validation_loss": None,
                }
                recent.clear()
                if done % 500 == 0 or done == schedule.steps:
                    loss_now = evaluate(network, validation_stream, device)
                    point["validation_loss"] = round(loss_now, 4)
                    console.print(f"step {done}: {point}")
                curve.append(point)
                progress.update(task, note=f"loss {means[0]:.3f}")
            if done % CHECKPOINT_EVERY == 0:
                _save_checkpoint(checkpoint, network, optimizer, schedule, curve, done)
            progress.update(task, completed=done)
    return network, curve


def _save_checkpoint(
    path: Path,
    network: Network,
    optimizer: torch.optim.AdamW,
    schedule: Schedule,
    curve: list[dict[str, Any]],
    step: int,
) -> None:
    temporary = path.with_suffix(".part")
    torch.save(
        {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": vars(schedule),
            "curve": curve,
            "step": step,
        },
        temporary,
    )
    temporary.replace(path)


def save(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json and model.safetensors, the weights as float16."""
    end = end_of_text_id(tokenizer)
    config = json.dumps(network.hugging_face_config(end), indent=1) + "\n"
    (folder / "config.json").write_text(config)
    state = {
        name: tensor.to("cpu", torch.float16)
        for name, tensor in network.hugging_face_state().items()
    }
    path = folder / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)


def load(folder: Path) -> Network:
    """The network as it is stored, its weights as float32."""
    config = json.loads((folder / "config.json").read_text())
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    network = Network(Shape(**{name: config[name] for name in names}))
    network.load_hugging_face_state(load_file(folder / "model.safetensors"))
    return network.eval()


def write_curve(curve: list[dict[str, Any]], folder: Path) -> None:
    """The training curve as CSV and as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with (folder / CURVE).open("w", newline="") as file:
        writer = csv.DictWriter(file, CURVE_FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve)
    figure, axes = plt.subplots(figsize=(6, 3.2), dpi=110, layout="constrained")
    millions = [point["tokens"] / 1e6 for point in curve]
    axes.plot(millions, [point["train_loss"] for point in curve], label="train", linewidth=1)
    checked = [point for point in curve if point["validation_loss"] is not None]
    axes.plot(
        [point["tokens"] / 1e6 for point in checked],
        [point["validation_loss"] for point in checked],
        marker="o",
        markersize=3,
        label="validation",
    )
    axes.set_xlabel("million training tokens")
    axes.set_ylabel("loss, nats a token")
    axes.set_ylim(top=min(6.0, max(point["train_loss"] for point in curve) + 0.1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "training_curve.png", metadata={"Software": ""})
    plt.close(figure)


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    steps: Annotated[int, typer.Option(min=1)] = Schedule.steps,
    cache: Path = CACHE,
    folder: Path = MODEL,
) -> None:
    """Train the subject model on the training split."""
    console = Console()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    network, curve = train(
        token_stream(tokenizer, TRAIN, cache),
        token_stream(tokenizer, VALIDATION, cache),
        Schedule(steps=steps),
        cache / CHECKPOINT,
        torch.device(device),
        console,
    )
    save(network, tokenizer, folder)
    write_curve(curve, folder)


if __name__ == "__main__":
    typer.run(main)
