"""Step 2: tokenizer. A byte-level BPE vocabulary trained on the training split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from data.recipe.layout import CACHE, END_OF_TEXT, MODEL, SPLITS, TRAIN, passages_path

VOCABULARY = 4096


def texts(split: str, cache: Path = CACHE) -> Iterator[str]:
    """The passages of a split."""
    with passages_path(split, cache).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def train(corpus: Iterator[str], size: int = VOCABULARY) -> Tokenizer:
    """A GPT-2 style tokenizer: byte-level BPE, id 0 is the end-of-text token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """Id of the end-of-text token; ValueError where the tokenizer has none."""
    found = tokenizer.token_to_id(END_OF_TEXT)
    if found is None:
        raise ValueError(f"the tokenizer has no token {END_OF_TEXT}")
    return int(found)


def token_stream(tokenizer: Tokenizer, split: str, cache: Path = CACHE) -> npt.NDArray[np.uint16]:
    """All passages of a split as one stream of ids, with end-of-text between them."""
    end = end_of_text_id(tokenizer)
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts(split, cache))):
        ids.append(end)
        ids.extend(encoding.ids)
    return np.array(ids, dtype=np.uint16)


def main(cache: Path = CACHE, model: Path = MODEL) -> None:
    """Train the tokenizer and write it beside the model."""
    tokenizer = train(texts(TRAIN, cache))
    model.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(model / "tokenizer.json"))
    counts = {split: len(token_stream(tokenizer, split, cache)) for split in SPLITS}
    (cache / "tokens.json").write_text(json.dumps(counts) + "\n")
    Console().print(f"{tokenizer.get_vocab_size()} tokens; of the splits: {counts}")


if __name__ == "__main__":
    typer.run(main)
