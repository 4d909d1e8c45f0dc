"""Small tokenizers of the kinds that open models have, each with its habits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from services.simulation.prompts.simulation import AllAtOncePrompt, simulation_prompt

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

BYTES = [f"<0x{value:02X}>" for value in range(256)]


def corpus() -> list[str]:
    """Text that holds what prompts hold, so that whole words and lines get tokens of their own."""
    prompt = simulation_prompt("few_shot-1", AllAtOncePrompt)
    text = prompt.text("names of colors", ["The", " red", " house"]).text
    return [text, text.replace("\t", " "), "unknown 10 unknown\n\n\t\t\n 7 8 9 10\tunknown\n"] * 3


def byte_level(regex: str | None = None, begins: bool = False, never_seen: str = "\0") -> Tokenizer:
    """GPT-2's kind; with a regular expression, that of Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if regex is None
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(regex), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text.replace(never_seen, "") for text in corpus()]
    tokenizer.train_from_iterator(texts, trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return tokenizer


def sentencepiece_bpe(byte_fallback: bool = True) -> Tokenizer:
    """Llama 2's kind: a space before every text, bytes for what has no token."""
    whole = Tokenizer(models.BPE(unk_token="<unk>"))
    whole.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    words = [word for text in corpus() for word in text.replace("\t", "\n").split("\n")]
    whole.train_from_iterator(words, trainer)
    trained = json.loads(whole.to_str())["model"]
    vocabulary = dict(trained["vocab"])
    # As in the original, "10" has no token of its own.
    merges = [tuple(m) for m in trained["merges"] if not any(c.isdigit() for c in "".join(m))]
    if byte_fallback:
        for name in BYTES:
            vocabulary[name] = len(vocabulary)
    for character in "0123456789▁":
        vocabulary.setdefault(character, len(vocabulary))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token="<unk>",
            byte_fallback=byte_fallback,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """A SentencePiece unigram model with bytes, split at its spaces."""
    words = {word for text in corpus() for word in text.split()}
    scores = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    scores += [(name, -12.0) for name in BYTES]
    scores += [(f"▁{word}", -8.0) for word in sorted(words)]
    scores += [(word, -8.5) for word in sorted(words) if len(word) > 1]
    characters = sorted({c for word in words for c in word} | {"▁"})
    scores += [(character, -9.5) for character in characters]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


def wordpiece(blanks: bool) -> Tokenizer:
    """BERT's kind, without case; with `blanks`, a tab and a newline are tokens of their own."""
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    words = {word for text in corpus() for word in text.lower().split()}
    characters = {c for word in words for c in word}
    pieces = [*sorted(words | characters), *(f"##{c}" for c in sorted(characters))]
    vocabulary = {name: number for number, name in enumerate([*names, *dict.fromkeys(pieces)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, clean_text=not blanks)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    if blanks:
        tokenizer.add_tokens([AddedToken(blank, normalized=False) for blank in ("\t", "\n")])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte level, as Llama 3": lambda: byte_level(LLAMA3, begins=True),
    "byte level, digits apart": lambda: byte_level(QWEN, never_seen="unknown"),
    "SentencePiece BPE": sentencepiece_bpe,
    "SentencePiece unigram": unigram,
    "WordPiece with blanks": lambda: wordpiece(blanks=True),
}
"""The kinds that can write a prompt."""


def text_of(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    """The text that ids stand for, exactly: no space is added or taken away."""
    names: list[str] = [tokenizer.id_to_token(i) for i in ids]
    if '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["pre_tokenizer"]):
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))
    parts: list[bytes] = []
    for name in names:
        if name in BYTES:
            parts.append(bytes([BYTES.index(name)]))
        else:
            parts.append(name.removeprefix("##").replace("▁", " ").encode())
    return b"".join(parts).decode()


def save_model(
    folder: Path, tokenizer: Tokenizer, family: str = "gpt2", seed: int = 0, **sizes: Any
) -> Path:
    """A small model with random weights and this tokenizer, as Hugging Face saves them."""
    import torch
    import transformers

    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    torch.manual_seed(seed)
    vocabulary = tokenizer.get_vocab_size(with_added_tokens=True)
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1280} | sizes
        config = transformers.GPT2Config(vocab_size=vocabulary, initializer_range=0.3, **sizes)
    else:
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
        } | sizes
        config = transformers.LlamaConfig(vocab_size=vocabulary, initializer_range=0.3, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
