"""Beside the steps: the token head. A small token-classification model for the demo.

`python -m data.recipe.token_head` trains it on a CPU, in a quarter of an hour, and writes it in the
Hugging Face layout; `token_head_check` scores it on neurons that it never saw.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertForTokenClassification

from data.recipe.layout import CACHE, DEMO, END_OF_TEXT
from data.recipe.token_head_data import (
    RecordExamples,
    embeddings,
    head_tokenizer,
    neighbours,
    texts,
    vocabulary,
    windows,
)
from data.recipe.token_head_rules import Example, Rules

FOLDER = DEMO / "token_head"
NUM_LABELS = 11


@dataclass(frozen=True)
class Schedule:
    """Everything that decides how the weights come out."""

    steps: int = 6000
    batch: int = 48
    peak_learning_rate: float = 2e-3
    final_learning_rate: float = 5e-5
    warmup: int = 180
    weight_decay: float = 0.01
    windows: int = 20_000
    record_share: float = 0.5
    seed: int = 7

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to the final rate."""
        if step < self.warmup:
            return self.peak_learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        rate = self.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        return max(self.final_learning_rate, rate)


def network(tokenizer: Tokenizer) -> BertForTokenClassification:
    """An encoder of 64 wide vectors, which begins with the demo model's embeddings."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=192,
        max_position_embeddings=256,
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=end,
        id2label={value: str(value) for value in range(NUM_LABELS)},
        label2id={str(value): value for value in range(NUM_LABELS)},
    )
    model = BertForTokenClassification(config)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.copy_(torch.from_numpy(embeddings(tokenizer)))
        # So that equal pieces find each other from the first step on.
        for layer in model.bert.encoder.layer[:2]:
            for side in (layer.attention.self.query, layer.attention.self.key):
                side.weight.copy_(0.7 * torch.eye(64) + 0.02 * torch.randn(64, 64))
    return model


class Batches:
    """Examples as padded tensors: one piece a token, the last that reaches into it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._end = tokenizer.token_to_id(END_OF_TEXT)
        self._sequences: dict[tuple[str, ...], tuple[list[int], list[int], list[int]]] = {}

    def sequence(self, tokens: tuple[str, ...]) -> tuple[list[int], list[int], list[int]]:
        """Ids of the pieces, the tokens that have a piece, and the piece of each."""
        known = self._sequences.get(tokens)
        if known is None:
            encoding = self._tokenizer.encode("".join(tokens), add_special_tokens=False)
            ends = np.cumsum([len(token) for token in tokens])
            piece_starts = np.array([span[0] for span in encoding.offsets])
            piece_ends = np.array([span[1] for span in encoding.offsets])
            last = np.searchsorted(piece_starts, ends, side="left") - 1
            starts = np.concatenate(([0], ends[:-1]))
            reached = [
                (t, int(p)) for t, p in enumerate(last) if p >= 0 and piece_ends[p] > starts[t]
            ]
            known = (encoding.ids, [t for t, _ in reached], [p for _, p in reached])
            self._sequences[tokens] = known
        return known

    def __call__(self, examples: list[Example]) -> dict[str, Tensor]:
        rows, targets = [], []
        for each in examples:
            head = self._tokenizer.encode(each.explanation, add_special_tokens=False).ids
            ids, tokens, pieces = self.sequence(each.window.tokens)
            first = [self._end, *head, self._end]
            labels = np.full(len(ids), -100)
            labels[pieces] = each.activations[tokens]
            rows.append((first, [*ids, self._end]))
            targets.append([-100] * len(first) + [int(label) for label in labels] + [-100])
        length = max(len(a) + len(b) for a, b in rows)
        shape = (len(rows), length)
        ids_, types, mask = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        labels_ = torch.full(shape, -100)
        for number, ((a, b), target) in enumerate(zip(rows, targets, strict=True)):
            ids_[number, : len(a) + len(b)] = torch.tensor(a + b)
            types[number, len(a) : len(a) + len(b)] = 1
            mask[number, : len(a) + len(b)] = 1
            labels_[number, : len(target)] = torch.tensor(target)
        return {
            "input_ids": ids_,
            "token_type_ids": types,
            "attention_mask": mask,
            "labels": labels_,
        }


def train(
    model: BertForTokenClassification,
    batches: Batches,
    draw_example: Any,
    schedule: Schedule,
    console: Console,
) -> None:
    """Train the head; shows the loss twenty times."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": schedule.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=schedule.peak_learning_rate,
        betas=(0.9, 0.98),
    )
    model.train()
    recent = 0.0
    for step in range(schedule.steps):
        rate = schedule.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(**batches([draw_example() for _ in range(schedule.batch)])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = 0.99 * recent + 0.01 * float(loss.detach())
        if (step + 1) % max(1, schedule.steps // 20) == 0:
            console.print(f"step {step + 1}: {recent / (1 - 0.99 ** (step + 1)):.4f}")
    model.eval()


def write(model: BertForTokenClassification, tokenizer: Tokenizer, folder: Path) -> None:
    """The Hugging Face layout; weights in half precision, as the file is checked in."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model.config.save_pretrained(folder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_position_embeddings,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    weights = {
        name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main(
    steps: Annotated[int, typer.Option(help="Of 48 examples each.")] = Schedule.steps,
    folder: Path = FOLDER,
    cache: Path = CACHE,
) -> None:
    """Train the head, and write it."""
    console = Console()
    schedule = Schedule(steps=steps)
    draw = random.Random(schedule.seed)
    torch.manual_seed(schedule.seed)
    corpus = texts(cache)
    tokenizer = head_tokenizer(
        corpus, ["the words that are after or before such as and more weakly"]
    )
    sample = windows(corpus, schedule.windows, draw)
    words = vocabulary(sample)
    rules = Rules(words, neighbours(words), draw)
    records = RecordExamples(draw)
    console.print(
        f"{len(sample)} windows, {len(words)} words, {len(records.learned)} neurons to learn from, "
        f"{len(records.checked)} to check"
    )

    def example() -> Example:
        if draw.random() < schedule.record_share:
            return records.example()
        return rules.example(draw.choice(sample))

    model = network(tokenizer)
    console.print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, Batches(tokenizer), example, schedule, console)
    write(model, tokenizer, folder)


if __name__ == "__main__":
    typer.run(main)
