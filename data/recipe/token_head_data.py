"""What the token head is trained on: windows of text under rules, and records of neurons.

No neuron with an explanation in `data/demo/explanations` is learned from, and no sequence that such
a neuron's record holds. Of the others one in ten is kept for a check.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from data.recipe.layout import CACHE, CORPUS, END_OF_TEXT, MODEL, RECORDS
from data.recipe.score import chosen
from data.recipe.token_head_rules import Example, Neighbours, Window, worded
from services.simulation.normalized_activations import normalize_activations
from services.simulation.simulators.words import WordSequence
from shared.formats.decoding import decode_neuron_record
from shared.formats.records import ActivationRecord, NeuronRecord

PIECES = 4096
CHECKED_SHARE = 10
"""One in so many neurons is not learned from."""


def lines(path: Path) -> Iterator[str]:
    """Texts of JSON lines, packed or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as file:
        for line in file:
            yield json.loads(line)["text"]


def texts(cache: Path = CACHE, corpus: Path = CORPUS) -> list[str]:
    """The demo model's training text where the recipe has left it, else the demo's corpus."""
    train = cache / "train.jsonl"
    return list(lines(train if train.exists() else corpus))


def head_tokenizer(corpus: Sequence[str], wordings: Sequence[str]) -> Tokenizer:
    """Byte-level pieces of words, without the space before them.

    So a word has the same pieces in an explanation as in a text, which a tokenizer with spaces in
    its pieces hasn't. Other white space than a space before a word keeps pieces of its own.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"(?<=\S) (?=\S)|^ (?=\S)"), "removed"),
            pre_tokenizers.Split(Regex(r"\s+|\w+|[^\w\s]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*corpus, *wordings], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A {END_OF_TEXT}",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B:1 {END_OF_TEXT}:1",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    return tokenizer


def embeddings(head: Tokenizer, model: Path = MODEL) -> NDArray[np.float32]:
    """Vectors [pieces, width] to begin with: the demo model's, of the piece as a word."""
    demo = Tokenizer.from_file(str(model / "tokenizer.json"))
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("wte.weight"))
    table = weights[name].astype(np.float32)
    rows = [
        table[demo.encode(" " + head.decode([number], skip_special_tokens=False)).ids].mean(axis=0)
        for number in range(head.get_vocab_size())
    ]
    result = np.stack(rows)
    return (0.05 * result / result.std()).astype(np.float32)


def neighbours(vocabulary: Sequence[str], model: Path = MODEL) -> Neighbours:
    """Of the words that are one token of the demo model."""
    demo = Tokenizer.from_file(str(model / "tokenizer.json"))
    weights = load_file(model / "model.safetensors")
    table = next(value for name, value in weights.items() if name.endswith("wte.weight"))
    numbers = {word: demo.token_to_id("Ġ" + word) for word in vocabulary}
    known = {word: number for word, number in numbers.items() if number is not None}
    vectors = table[list(known.values())].astype(np.float32)
    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Neighbours(list(known), vectors)


def window(tokens: Sequence[str]) -> Window:
    """A window with its words."""
    return Window(tuple(tokens), WordSequence.from_tokens(tokens))


def windows(corpus: Sequence[str], count: int, draw: random.Random) -> list[Window]:
    """Windows of 16 to 40 of the demo model's tokens from anywhere in the texts."""
    demo = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    found: list[Window] = []
    while len(found) < count:
        text = draw.choice(corpus)
        start = draw.randrange(max(1, len(text) - 200))
        encoding = demo.encode(text[start : start + 300])
        size = draw.randint(16, 40)
        spans = encoding.offsets[1 : 1 + size]
        if len(spans) >= 16:
            found.append(window([text[start + a : start + b] for a, b in spans]))
    return found


def vocabulary(sample: Sequence[Window], least: int = 3) -> list[str]:
    """Words that occur at least so often, the most frequent first."""
    counts = Counter(word for w in sample for word in w.words.words if len(word) <= 20)
    return [word for word, count in counts.most_common() if count >= least]


class RecordExamples:
    """Examples from records of neurons, explained by rule from their most active words."""

    def __init__(self, draw: random.Random, records: Path = RECORDS / "mlp") -> None:
        self._draw = draw
        scored = {(each.layer, each.neuron) for each in chosen()}
        held_out: set[tuple[str, ...]] = set()
        kept: list[tuple[int, NeuronRecord]] = []
        for number, path in enumerate(sorted(records.glob("*/*.json"))):
            record = decode_neuron_record(path.read_bytes(), str(path))
            if (int(path.parent.name), int(path.stem)) in scored:
                held_out.update(tuple(r.tokens) for r in _all(record))
            else:
                kept.append((number, record))
        self.learned: list[tuple[dict[str, float], list[tuple[Window, NDArray[np.int64]]]]] = []
        self.checked: list[tuple[str, NeuronRecord]] = []
        for number, record in kept:
            words = active_words(record)
            if not words:
                continue
            if number % CHECKED_SHARE == 0:
                self.checked.append((f"the words {', '.join(map(repr, list(words)[:4]))}", record))
                continue
            limit = record.max_activation
            sequences = [
                (window(r.tokens), normalize_activations(r.activations, limit))
                for r in _all(record)
                if tuple(r.tokens) not in held_out and np.isfinite(r.activations).all()
            ]
            self.learned.append((words, sequences))

    def example(self) -> Example:
        """One sequence of one neuron, explained in words."""
        words, sequences = self._draw.choice(self.learned)
        seen, activations = self._draw.choice(sequences)
        names = list(words)[: self._draw.choice((1, 2, 3, 4, 5))]
        return Example(worded(names, self._draw), seen, activations)


def active_words(record: NeuronRecord) -> dict[str, float]:
    """Words at the peaks of the top sequences, by how much of the maximum they reach in all."""
    found: Counter[str] = Counter()
    limit = record.max_activation
    for each in record.most_positive_activation_records:
        sequence = WordSequence.from_tokens(each.tokens)
        for word, activation in zip(sequence.word_of_token, each.activations, strict=True):
            if word >= 0 and np.isfinite(activation) and activation > 0.5 * limit:
                found[sequence.words[word]] += activation / limit
    best = found.most_common(6)
    return {word: weight for word, weight in best if weight >= 0.1 * best[0][1]}


def _all(record: NeuronRecord) -> list[ActivationRecord]:
    by_quantile = record.random_sample_by_quantile or []
    return [
        *record.most_positive_activation_records,
        *record.random_sample,
        *(each for part in by_quantile for each in part),
    ]
