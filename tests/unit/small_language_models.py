"""Small causal language models of several families, with random weights, in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 320

_TEXT = (
    "The lion walked to the river, and the river was wide. She counted 1, 2, 3 and 10 stones.\n"
    "token\tunknown\nvalue\t7\nYes No yes no 0 1 2 3 4 5 6 7 8 9\n"
) * 20


def tokenizer() -> Any:
    """A byte-level BPE tokenizer of `VOCABULARY` ids at most, with marks of beginning and end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([_TEXT], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|begin|>", eos_token="<|end|>"
    )


def configurations() -> dict[str, Any]:
    """A configuration a family."""
    import transformers

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    wide: dict[str, Any] = {
        **common,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    grouped: dict[str, Any] = {**wide, "num_key_value_heads": 2, "head_dim": 8}
    return {
        "gpt2": transformers.GPT2Config(**common, n_embd=32, n_layer=3, n_head=4, n_positions=256),
        "llama": transformers.LlamaConfig(**grouped),
        "qwen3": transformers.Qwen3Config(**{**grouped, "head_dim": 16}),
        "mistral": transformers.MistralConfig(**grouped, sliding_window=12),
        "gemma2": transformers.Gemma2Config(
            **grouped,
            sliding_window=12,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        "gpt_oss": transformers.GptOssConfig(
            **grouped, sliding_window=12, num_local_experts=4, num_experts_per_tok=2
        ),
        "gpt_neox": transformers.GPTNeoXConfig(**wide),
    }


def save(config: Any, folder: Path, *, dtype: str = "float32", scale: float = 4.0) -> Path:
    """A model with random weights, larger than usual so that its answers differ, in `folder`."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
