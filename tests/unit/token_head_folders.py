"""Tokenizers of several kinds, and small token classifiers in Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = [
    "and the lion stood near the old river, then the lions went to 10 cities",
    "def function(self): return value == 3 and not other_value",
    "naïve café déjà vu, of all things; the words 'that' and \"this\"",
    "    indented lines\n\nand blank ones\tand tabs",
]


def byte_level() -> Tokenizer:
    """GPT-2's manner, with RoBERTa's frame, which trims places."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>", "<pad>", "</s>", "<|endoftext|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT's manner: lower case, no accents, no white space."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        LINES,
        trainers.WordPieceTrainer(
            vocab_size=150, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def sentence_piece() -> Tokenizer:
    """Llama 2's manner: a mark for a space, one before the text, bytes for what it doesn't know."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary += ["▁", *"abcdefghilnorstuvw,", "▁t", "▁th", "▁the", "li", "on", "lion", "▁lion"]
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("l", "i"), ("o", "n"), ("li", "on")]
    merges.append(("▁", "lion"))
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """T5's manner: a probability for each piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        LINES * 4,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


KINDS = {
    "byte level": byte_level,
    "word piece": word_piece,
    "sentence piece": sentence_piece,
    "unigram": unigram,
}


def write_head(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    labels: list[str] | None = None,
    positions: int = 64,
    **config: Any,
) -> Path:
    """A BERT of 16 wide vectors with random weights; the same for the same arguments."""
    import torch
    from transformers import BertConfig, BertForTokenClassification

    names = labels if labels is not None else [str(value) for value in range(11)]
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": positions,
        "pad_token_id": 0,
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "initializer_range": 0.5,
        **config,
    }
    BertForTokenClassification(BertConfig(**settings)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change `config.json`."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
