"""Vocabulary entries that a direction of the residual stream promotes and suppresses."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from services.scalars.deriving.selection import top_indices
from services.scalars.model.family import SubjectModel
from services.scalars.model.tokenizer import TextTokenizer
from shared.errors import ConfigurationError

_KEY = "model.excluded_tokens"


@dataclass(frozen=True)
class ScoredToken:
    """A vocabulary entry and its score; normalised by the lists' largest absolute score."""

    token: str
    scalar: float
    normalized_scalar: float


@dataclass(frozen=True)
class TopTokens:
    """Entries with the largest and with the smallest scores, the most extreme first."""

    top: tuple[ScoredToken, ...]
    bottom: tuple[ScoredToken, ...]


def read_excluded_tokens(path: str | None) -> frozenset[str]:
    """The token strings that top-token lists leave out; ConfigurationError for a broken file."""
    if path is None:
        return frozenset()
    try:
        return frozenset(msgspec.json.decode(Path(path).read_bytes(), type=list[str]))
    except OSError as error:
        raise ConfigurationError(_KEY, f"{path} can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(_KEY, f"{path} must be a JSON list of strings: {error}") from error


def excluded_entries(tokenizer: TextTokenizer, excluded: Collection[str]) -> frozenset[int]:
    """Ids of the entries that strings stand for.

    That is the one that a string encodes to, and of a string that encodes to several, every entry
    that decodes to it. Parts of UTF-8 sequences decode alike, and are not what they look like.
    """
    found: set[int] = set()
    several = set()
    for text in excluded:
        ids = tokenizer.encode(text)
        if len(ids) == 1:
            found.add(ids[0])
        else:
            several.add(text)
    if several:
        found.update(token for token, text in enumerate(tokenizer.strings) if text in several)
    return frozenset(found)


class VocabularyProjection:
    """Projects directions of the residual stream on the vocabulary.

    Entries whose ids are among `excluded` are never listed.
    """

    def __init__(
        self, model: SubjectModel, tokenizer: TextTokenizer, excluded: Collection[int] = ()
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._excluded = frozenset(excluded)

    @cached_property
    def _listed(self) -> Tensor:
        """Ids of the entries that may be listed."""
        size = len(self._tokenizer.strings)
        listed = [token for token in range(size) if token not in self._excluded]
        return torch.tensor(listed, device=self._model.device)

    def scores(self, direction: Tensor) -> Tensor:
        """(direction · gain of the final layer norm) · unembedding, less its mean: (V,)."""
        write = self._model.write
        logits: Tensor = write.unembedding @ (direction * write.final_norm_gain)
        return logits - logits.mean()

    def top_tokens(self, direction: Tensor, count: int, *, swapped: bool = False) -> TopTokens:
        """The `count` entries that a direction of shape (D,) promotes and suppresses most.

        `swapped` exchanges the two lists, for the direction of a node whose activation is negative:
        what the node promotes when it is active is then what this write suppresses.
        """
        return self.top_of(self.scores(direction), count, swapped=swapped)

    def top_of(self, scores: Tensor, count: int, *, swapped: bool = False) -> TopTokens:
        """The `count` entries with the largest and the smallest of scores (V,)."""
        scores = scores[self._listed]
        lists = [top_indices(scores, count, largest=largest) for largest in (True, False)]
        scale = max((float(values[0].abs()) for values, _ in lists if len(values)), default=0.0)

        def entries(values: Tensor, positions: Tensor) -> tuple[ScoredToken, ...]:
            return tuple(
                ScoredToken(self._tokenizer.strings[token], value, value / scale if scale else 0.0)
                for value, token in zip(
                    values.tolist(), self._listed[positions].tolist(), strict=True
                )
            )

        top, bottom = (entries(*each) for each in lists)
        return TopTokens(bottom, top) if swapped else TopTokens(top, bottom)
