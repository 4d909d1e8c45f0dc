"""Models with random weights in the shapes that are measured, and prompts for them."""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-small": {
        "family": "gpt2",
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "n_inner": 3072,
        "vocab_size": 50257,
        "n_positions": 1024,
    },
    "llama-1b": {
        "family": "llama",
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "tiny-gpt2": {
        "family": "gpt2",
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 2,
        "n_inner": 64,
        "vocab_size": 2048,
        "n_positions": 128,
    },
    "tiny-llama": {
        "family": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "vocab_size": 2048,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    },
}
"""Sizes under the names that Hugging Face's configurations have for them."""


def write_model(folder: Path, shape: Mapping[str, Any], dtype: str = "float32") -> Path:
    """Writes a checkpoint of this shape with a tokenizer, unless the folder has one."""
    if (folder / "tokenizer.json").is_file():
        return folder
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    sizes = {"bos_token_id": 0, "eos_token_id": 0} | dict(shape)
    family = sizes.pop("family")
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        if family == "gpt2":
            model: Any = GPT2LMHeadModel(GPT2Config(**sizes))
        else:
            model = LlamaForCausalLM(LlamaConfig(**sizes))
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    _write_tokenizer(folder / "tokenizer.json", shape["vocab_size"])
    return folder


def words(count: int) -> list[str]:
    """Words of four letters, as many as asked for; with a space before, each is one token."""
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    return ["".join(each) for each in itertools.islice(letters, count)]


class Prompts:
    """Prompts of random tokens, never the same twice."""

    def __init__(self, vocabulary_size: int, seed: int = 0) -> None:
        self._words = words(vocabulary_size)
        self._random = np.random.default_rng(seed)

    def __call__(self, n_tokens: int) -> str:
        """A prompt of so many tokens."""
        chosen = self._random.integers(len(self._words), size=n_tokens)
        return "".join(f" {self._words[index]}" for index in chosen)

    def word(self, index: int) -> str:
        """A token by its id."""
        return f" {self._words[index]}"


def _write_tokenizer(path: Path, vocabulary_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {f"Ġ{word}": index for index, word in enumerate(words(vocabulary_size))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))
