"""Step 4: autoencoders. Sparse ones of the MLP's and the attention's writes, every layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from data.recipe.layout import CACHE, MODEL, TRAIN, VALIDATION
from data.recipe.model import Batches, load
from data.recipe.network import Network
from data.recipe.tokenizer import token_stream

STEPS = 1500


@dataclass(frozen=True)
class Design:
    """One autoencoder: what it reads, its activation, its sparsity."""

    dst: str
    activation: str
    latents: int = 128
    k: int = 0
    """Latents kept a token (topk)."""
    sparsity: float = 0.0
    """Weight of the summed latents (relu), where inputs have unit variance in all."""


DESIGNS = (
    Design("resid_delta_mlp", "topk", k=12),
    Design("resid_delta_attn", "relu", sparsity=0.2),
)


@dataclass(frozen=True)
class Figures:
    """How good one layer's autoencoder is on the validation split."""

    variance_explained: float
    latents_active: float
    dead_latents: int


class SparseAutoencoder(nn.Module):
    """The autoencoders of all layers at once; inputs [layers, tokens, width].

    Decoder columns have unit norm, inputs are divided by a scale a layer so that their summed
    variance is 1; `state` folds the scale back into the weights.
    """

    def __init__(self, design: Design, sample: Tensor, seed: int) -> None:
        super().__init__()
        layers, _, width = sample.shape
        generator = torch.Generator().manual_seed(seed)
        mean = sample.mean(1)
        self.design = design
        self.scale: Tensor
        self.register_buffer(
            "scale", (sample - mean[:, None]).square().sum(2).mean(1).sqrt()[:, None, None]
        )
        directions = torch.randn(layers, design.latents, width, generator=generator)
        directions = (directions / directions.norm(dim=2, keepdim=True)).to(sample.device)
        self.pre_bias = nn.Parameter(mean[:, None] / self.scale)
        self.encoder = nn.Parameter(directions.clone())
        self.latent_bias = nn.Parameter(directions.new_zeros(layers, 1, design.latents))
        self.decoder = nn.Parameter(directions.clone())
        """[layers, latents, width]: a row is a latent's write direction."""

    def encode(self, inputs: Tensor) -> Tensor:
        """Latents [layers, tokens, latents] of scaled inputs."""
        pre = (inputs - self.pre_bias) @ self.encoder.mT + self.latent_bias
        if self.design.activation == "relu":
            return pre.relu()
        # As the service does it: the k largest of the rectified values.
        values, indices = pre.relu().topk(self.design.k, dim=2)
        return torch.zeros_like(pre).scatter(2, indices, values)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled reconstructions [layers, tokens, width]."""
        return latents @ self.decoder + self.pre_bias

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring decoder rows back to unit norm."""
        self.decoder.div_(self.decoder.norm(dim=2, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def revive(self, silent: Tensor, errors: Tensor) -> list[tuple[int, Tensor]]:
        """Point silent latents [layers, latents] at the worst reconstructed inputs.

        Returns (layer, latent indices) for the optimiser's state to be cleared.
        """
        moved = []
        for layer in range(len(silent)):
            dead = silent[layer].nonzero().flatten()
            if not len(dead):
                continue
            worst = errors[layer].norm(dim=1).topk(len(dead)).indices
            direction = errors[layer][worst]
            direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-8)
            self.decoder[layer, dead] = direction
            self.encoder[layer, dead] = direction
            self.latent_bias[layer, 0, dead] = 0.0
            moved.append((layer, dead))
        return moved

    def state(self) -> dict[str, Tensor]:
        """Weights in Neuropil's layout, for inputs that are not scaled."""
        tensors: dict[str, Tensor] = {}
        for layer in range(len(self.encoder)):
            scale = self.scale[layer, 0, 0]
            prefix = f"layers.{layer}."
            tensors[prefix + "pre_bias"] = self.pre_bias[layer, 0] * scale
            tensors[prefix + "encoder.weight"] = self.encoder[layer] / scale
            tensors[prefix + "latent_bias"] = self.latent_bias[layer, 0]
            tensors[prefix + "decoder.weight"] = self.decoder[layer].T * scale
        return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


@torch.no_grad()
def activations(network: Network, ids: Tensor, dst: str) -> Tensor:
    """[layers, batch x tokens, width] of one derived scalar type, every layer."""
    _, layers = network(ids)
    return torch.stack([layer[dst].flatten(0, 1) for layer in layers])


def train(
    network: Network,
    stream: npt.NDArray[np.uint16],
    design: Design,
    steps: int,
    console: Console,
    seed: int = 0,
) -> SparseAutoencoder:
    """Fit the autoencoders of one design on activations of `steps` batches of 32 windows."""
    device = network.wte.weight.device
    batches = Batches(stream, network.shape.n_positions, seed + 1)
    sample = activations(network, batches.at(steps, 32)[0].to(device), design.dst)
    autoencoder = SparseAutoencoder(design, sample, seed).to(device)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=2e-3, betas=(0.9, 0.99))
    fired = torch.zeros(autoencoder.latent_bias.shape[0], design.latents, device=device)
    revivals = {steps // 5, 2 * steps // 5, 3 * steps // 5}
    for step in track(range(steps), description=design.dst, console=console):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 3 * (1 - step / steps))
        inputs = activations(network, batches.at(step, 32)[0].to(device), design.dst)
        inputs = inputs / autoencoder.scale
        latents = autoencoder.encode(inputs)
        errors = inputs - autoencoder.decode(latents)
        loss = errors.square().sum(2).mean(1).sum()
        if design.sparsity:
            warm = min(1.0, step / (0.2 * steps))
            loss = loss + warm * design.sparsity * latents.sum(2).mean(1).sum()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        autoencoder.normalise()
        fired += (latents > 0).sum(1)
        if step in revivals:
            for layer, dead in autoencoder.revive(fired == 0, errors.detach()):
                for parameter in (autoencoder.encoder, autoencoder.decoder):
                    optimizer.state[parameter]["exp_avg"][layer, dead] = 0.0
                    optimizer.state[parameter]["exp_avg_sq"][layer, dead] = 0.0
            fired.zero_()
    return autoencoder


@torch.no_grad()
def measure(
    network: Network, autoencoder: SparseAutoencoder, stream: npt.NDArray[np.uint16]
) -> list[Figures]:
    """Figures a layer over consecutive windows of `stream`."""
    length = network.shape.n_positions
    windows = len(stream) // length
    ids = torch.from_numpy(stream[: windows * length].astype(np.int64)).view(windows, length)
    residual, total, square, active, fired = (torch.zeros(()) for _ in range(5))
    count = 0
    for start in range(0, windows, 32):
        inputs = activations(network, ids[start : start + 32], autoencoder.design.dst)
        inputs = inputs / autoencoder.scale
        latents = autoencoder.encode(inputs)
        residual = residual + (inputs - autoencoder.decode(latents)).square().sum((1, 2))
        total = total + inputs.sum(1)
        square = square + inputs.square().sum(1)
        active = active + (latents > 0).float().sum((1, 2))
        fired = fired + (latents > 0).sum(1)
        count += inputs.shape[1]
    variance = (square - total.square() / count).sum(1)
    return [
        Figures(
            variance_explained=round(1 - float(residual[layer] / variance[layer]), 4),
            latents_active=round(float(active[layer]) / count, 2),
            dead_latents=int((fired[layer] == 0).sum()),
        )
        for layer in range(len(variance))
    ]


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    steps: Annotated[int, typer.Option(min=10)] = STEPS,
    only: Annotated[str | None, typer.Option(help="Train only the one that reads this.")] = None,
    cache: Path = CACHE,
    folder: Path = MODEL,
) -> None:
    """Train the autoencoders, write them beside the model, and their figures as JSON."""
    console = Console()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    network = load(folder).to(torch.device(device))
    stream = token_stream(tokenizer, TRAIN, cache)
    held = token_stream(tokenizer, VALIDATION, cache)
    figures_file = folder / "autoencoders.json"
    report = json.loads(figures_file.read_text()) if only and figures_file.exists() else {}
    for design in DESIGNS:
        if only not in (None, design.dst):
            continue
        autoencoder = train(network, stream, design, steps, console)
        path = folder / f"autoencoder_{design.dst}.safetensors"
        save_file(
            autoencoder.state(),
            path,
            metadata={
                "dst": design.dst,
                "activation": design.activation,
                "k": str(design.k) if design.k else "",
                "threshold": "",
            },
        )
        path.chmod(0o644)
        figures = measure(network.cpu(), autoencoder.cpu(), held)
        network.to(torch.device(device))
        report[design.dst] = [vars(layer) for layer in figures]
        console.print(design.dst, figures)
    figures_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
