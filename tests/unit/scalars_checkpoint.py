"""A tiny random GPT-2 with a tokenizer of its own, in Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

LAYERS, WIDTH, HEADS, NEURONS, CONTEXT = 3, 24, 3, 40, 24

TEXT = """The cat sat on the mat. The dog sat on the log, and the cat saw the dog.
Paris, France. Ottawa, Canada. Berlin, Germany. Is it 42? Yes, 42 it is: naïve café, Straße, 東京.
"""


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer, as GPT-2's is, trained on a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines() * 3, trainer)
    return tokenizer


def make_config(vocab_size: int, **changes: Any) -> dict[str, Any]:
    """A config.json for the tiny model."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": LAYERS,
        "n_embd": WIDTH,
        "n_head": HEADS,
        "n_inner": NEURONS,
        "n_positions": CONTEXT,
        "vocab_size": vocab_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        **changes,
    }


def make_weights(vocab_size: int, prefix: str = "transformer.", seed: int = 0) -> dict[str, Tensor]:
    """Random weights, biases and gains included, large enough that nothing is nearly linear."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int, scale: float) -> Tensor:
        return torch.randn(*sizes, generator=generator) * scale

    weights = {
        "wte.weight": normal(vocab_size, WIDTH, scale=0.5),
        "wpe.weight": normal(CONTEXT, WIDTH, scale=0.2),
        "ln_f.weight": 1 + normal(WIDTH, scale=0.2),
        "ln_f.bias": normal(WIDTH, scale=0.1),
    }
    for layer in range(LAYERS):
        for name, sizes in {
            "attn.c_attn": (WIDTH, 3 * WIDTH),
            "attn.c_proj": (WIDTH, WIDTH),
            "mlp.c_fc": (WIDTH, NEURONS),
            "mlp.c_proj": (NEURONS, WIDTH),
        }.items():
            weights[f"h.{layer}.{name}.weight"] = normal(*sizes, scale=0.25)
            weights[f"h.{layer}.{name}.bias"] = normal(sizes[1], scale=0.1)
        for name in ("ln_1", "ln_2"):
            weights[f"h.{layer}.{name}.weight"] = 1 + normal(WIDTH, scale=0.2)
            weights[f"h.{layer}.{name}.bias"] = normal(WIDTH, scale=0.1)
    return {prefix + name: tensor for name, tensor in weights.items()}


def write_checkpoint(
    directory: Path,
    *,
    prefix: str = "transformer.",
    config: dict[str, Any] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """Writes a whole model directory; changes to the configuration and the weights win."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    # A few more rows than tokens, as padded embeddings have.
    vocab_size = tokenizer.get_vocab_size() + 3
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps(make_config(vocab_size, **(config or {}))))
    tensors = {**make_weights(vocab_size, prefix), **(weights or {})}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
