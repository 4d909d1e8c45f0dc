"""Tiny random checkpoints of the Llama family, in each of its variants, in Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from torch import Tensor

from tests.unit.scalars_checkpoint import TEXT, make_tokenizer

LAYERS, WIDTH, HEADS, GROUPS, CHANNELS, NEURONS, CONTEXT = 3, 24, 4, 2, 6, 40, 48

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied, older configuration": {
        "tie_word_embeddings": True,
        "rope_parameters": None,
        "rope_theta": 500.0,
        "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "llama 3, wide heads": {
        "rope_parameters": {"rope_theta": 1000.0, **_LLAMA3},
        "head_dim": 8,
        "num_key_value_heads": 1,
    },
    "llama 3, older configuration": {
        "rope_parameters": None,
        "rope_theta": 1000.0,
        "rope_scaling": _LLAMA3,
    },
    "llama, biases, no groups": {
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": None,
    },
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "sliding_window": 8,
        "use_sliding_window": False,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 10, "num_key_value_heads": 2},
    "qwen3, biases": {"model_type": "qwen3", "head_dim": 6, "attention_bias": True},
}
"""Changes to the configuration."""


def make_config(vocab_size: int, **changes: Any) -> dict[str, Any]:
    """A config.json; what is changed to None is null."""
    return {
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "intermediate_size": NEURONS,
        "max_position_embeddings": CONTEXT,
        "vocab_size": vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        **changes,
    }


def make_weights(
    config: dict[str, Any], prefix: str = "model.", seed: int = 0
) -> dict[str, Tensor]:
    """Random weights for a configuration, gains and biases included."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int, scale: float) -> Tensor:
        return torch.randn(*sizes, generator=generator) * scale

    family, neurons = config["model_type"], config["intermediate_size"]
    channels = config.get("head_dim") or WIDTH // HEADS
    heads = HEADS * channels
    groups = (config["num_key_value_heads"] or HEADS) * channels
    bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    weights = {
        f"{prefix}embed_tokens.weight": normal(config["vocab_size"], WIDTH, scale=0.5),
        f"{prefix}norm.weight": 1 + normal(WIDTH, scale=0.2),
    }
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = normal(config["vocab_size"], WIDTH, scale=0.3)
    for layer in range(LAYERS):
        at = f"{prefix}layers.{layer}."
        for name, outputs, inputs, has_bias in (
            ("self_attn.q_proj", heads, WIDTH, bias or family == "qwen2"),
            ("self_attn.k_proj", groups, WIDTH, bias or family == "qwen2"),
            ("self_attn.v_proj", groups, WIDTH, bias or family == "qwen2"),
            ("self_attn.o_proj", WIDTH, heads, bias),
            ("mlp.gate_proj", neurons, WIDTH, mlp_bias),
            ("mlp.up_proj", neurons, WIDTH, mlp_bias),
            ("mlp.down_proj", WIDTH, neurons, mlp_bias),
        ):
            weights[f"{at}{name}.weight"] = normal(outputs, inputs, scale=0.3)
            if has_bias:
                weights[f"{at}{name}.bias"] = normal(outputs, scale=0.2)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}{name}.weight"] = 1 + normal(WIDTH, scale=0.2)
        if family == "qwen3":
            for name in ("q_norm", "k_norm"):
                weights[f"{at}self_attn.{name}.weight"] = 1 + normal(channels, scale=0.2)
    return weights


def byte_level_tokenizer() -> Tokenizer:
    """As Llama 3 and Qwen have it, putting a beginning token before a text where asked to."""
    tokenizer = make_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    """As Llama 2 has it: spaces as U+2581, one put before a text, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    words = [word for line in TEXT.splitlines() for word in line.split() if word.isascii()]
    tokenizer.train_from_iterator([*words * 3, *"abcdefghijklmnopqrstuvwxyz"], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*first, *(piece for piece in trained["vocab"] if piece not in first)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in trained["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in first[:3]])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def write_llama_checkpoint(
    directory: Path,
    variant: str = "llama",
    *,
    config: dict[str, Any] | None = None,
    prefix: str = "model.",
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    without: tuple[str, ...] = (),
) -> Path:
    """Writes a whole model directory; `without` names keys to leave out of config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer() if tokenizer is None else tokenizer
    # A few more rows than tokens, as padded embeddings have.
    vocab_size = tokenizer.get_vocab_size() + 3
    tokenizer.save(str(directory / "tokenizer.json"))
    whole = make_config(vocab_size, **{**VARIANTS[variant], **(config or {})})
    weights = make_weights(whole, prefix)
    for key in without:
        del whole[key]
    (directory / "config.json").write_text(json.dumps(whole))
    save_file(
        {name: tensor.to(dtype) for name, tensor in weights.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    return directory
