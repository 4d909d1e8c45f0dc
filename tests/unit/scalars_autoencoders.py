"""Random autoencoders as files, in both layouts, and their definition in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.settings import Autoencoder

Tensors = dict[str, Tensor]


def random_tensors(
    width: int, latents: int, seed: int = 0, activation: str = "relu", scale: float = 0.4
) -> Tensors:
    """The tensors of one layer, named as in Neuropil's own layout without the layer."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int, scale: float) -> Tensor:
        return torch.randn(*sizes, generator=generator) * scale

    tensors = {
        "pre_bias": normal(width, scale=0.1),
        "encoder.weight": normal(latents, width, scale=scale),
        "latent_bias": normal(latents, scale=0.1),
        "decoder.weight": normal(width, latents, scale=scale),
    }
    if activation == "gated":
        tensors["gate_bias"] = normal(latents, scale=0.3)
        tensors["magnitude_scale"] = normal(latents, scale=0.5)
    return tensors


def write_own_layout(
    path: Path,
    dst: str,
    layers: Mapping[int, Tensors],
    activation: str = "ReLU",
    **parameters: str,
) -> Autoencoder:
    """Writes one file for all layers."""
    tensors = {
        f"layers.{layer}.{name}": tensor.contiguous()
        for layer, by_name in layers.items()
        for name, tensor in by_name.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"dst": dst, "activation": activation, **parameters})
    return Autoencoder(name=path.stem, path=str(path))


def saelens_tensors(tensors: Tensors) -> Tensors:
    """The same weights under SAELens's names and in its orientation."""
    names = {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T}
    names["b_dec"] = tensors["pre_bias"]
    if "gate_bias" in tensors:
        names["b_gate"] = tensors["gate_bias"]
        names["b_mag"] = tensors["latent_bias"]
        names["r_mag"] = tensors["magnitude_scale"]
    else:
        names["b_enc"] = tensors["latent_bias"]
    if "threshold" in tensors:
        names["threshold"] = tensors["threshold"]
    return {name: tensor.contiguous() for name, tensor in names.items()}


def write_saelens(
    path: Path, hook: str, tensors: Tensors, architecture: str = "standard", **changes: Any
) -> Autoencoder:
    """Writes the folder of one layer as version 6 does; None takes a key out."""
    path.mkdir(parents=True, exist_ok=True)
    width, latents = tensors["W_enc"].shape
    configuration = {
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.22.1", "hook_name": hook, "model_name": "gpt2"},
        "architecture": architecture,
        **changes,
    }
    configuration = {name: value for name, value in configuration.items() if value is not None}
    (path / "cfg.json").write_text(json.dumps(configuration))
    save_file(tensors, path / "sae_weights.safetensors")
    return Autoencoder(name=path.name, path=str(path))


def latents_by_definition(
    x: Tensor, tensors: Tensors, activation: str, *, k: int = 0, threshold: float = 0.0
) -> Tensor:
    """z, element by element in float64."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    rows: list[list[float]] = []
    for token in x.double():
        centred = token - weights["pre_bias"]
        products = [float(row @ centred) for row in weights["encoder.weight"]]
        biases: Sequence[float] = weights["latent_bias"].tolist()
        pre = [p + b for p, b in zip(products, biases, strict=True)]
        if activation == "relu":
            rows.append([max(each, 0.0) for each in pre])
        elif activation == "topk":
            best = sorted(range(len(pre)), key=lambda n: -pre[n])[:k]
            rows.append([max(p, 0.0) if n in best else 0.0 for n, p in enumerate(pre)])
        elif activation == "jumprelu":
            rows.append([p if p > threshold else 0.0 for p in pre])
        else:
            gates = weights["gate_bias"].tolist()
            scales = weights["magnitude_scale"].exp().tolist()
            rows.append(
                [
                    max(p * s + b, 0.0) if p + g > 0 else 0.0
                    for p, g, s, b in zip(products, gates, scales, biases, strict=True)
                ]
            )
    return torch.tensor(rows, dtype=torch.float64)
