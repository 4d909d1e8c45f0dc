"""Pieces of a tokenizer and the subject model's tokens: which piece speaks for which token.

The subject's tokens are joined to a text, the text is cut into the classifier's own pieces, and
places in the text say which belong together. A token is spoken for by the last piece that reaches
into it: where a tokenizer cuts a token in several, the one that has read all of it; where one
piece holds several tokens, that piece speaks for each. A token that no piece reaches into (it is
empty, or white space that the tokenizer drops) has none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from services.simulation.simulators.words import readable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NO_PIECE = -1


@dataclass(frozen=True, eq=False, slots=True)
class AlignedPieces:
    """The pieces of a sequence of n tokens.

    `piece_of_token` [n] is a position in `ids`, `NO_PIECE` for a token that has none.
    """

    ids: tuple[int, ...]
    piece_of_token: NDArray[np.int64]


@dataclass(frozen=True)
class PairTemplate:
    """What a tokenizer puts around and between the two texts of a pair, with their type ids."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int]
    """Of: before, first text, between, second text, after."""

    @property
    def pieces(self) -> int:
        """How many pieces it adds."""
        return len(self.before) + len(self.between) + len(self.after)

    @property
    def pieces_before_second(self) -> int:
        """How many of them stand before the second text."""
        return len(self.before) + len(self.between)

    def filled(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
        """The ids and type ids of a pair."""
        parts = (self.before, first, self.between, second, self.after)
        types = [kind for kind, part in zip(self.types, parts, strict=True) for _ in part]
        return [number for part in parts for number in part], types


class PairTokenizer:
    """A tokenizer of the `tokenizers` library that keeps exact places in the text.

    Nothing in a text becomes a special piece, whatever it looks like: only the template adds those.
    """

    def __init__(self, definition: str) -> None:
        """`definition` is the text of a `tokenizer.json`.

        Raises:
            ValueError: it has no piece for a plain letter, or its post-processor drops pieces.
            Exception: it is no such text, as the library says.
        """
        from tokenizers import Tokenizer

        parsed: dict[str, Any] = json.loads(definition)
        # Post-processors trim places; of the pieces themselves they change nothing.
        bare = {**parsed, "post_processor": None, "truncation": None, "padding": None}
        self._tokenizer = Tokenizer.from_str(json.dumps(bare))
        self._tokenizer.encode_special_tokens = True
        self._instead = _unknown_instead(parsed)
        self.template = _template(Tokenizer.from_str(definition))

    @property
    def vocabulary_size(self) -> int:
        """Ids are below it."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def text_ids(self, text: str) -> tuple[int, ...]:
        """The pieces of a text."""
        return self._plain(self._tokenizer.encode(readable(text), add_special_tokens=False).ids)

    def _plain(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._instead.get(number, number) for number in ids)

    def align(self, tokens: Sequence[str]) -> AlignedPieces:
        """The pieces of the tokens' text, and the piece that speaks for each token."""
        text = readable("".join(tokens))
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        lengths = np.fromiter((len(token) for token in tokens), np.int64, len(tokens))
        token_ends = np.cumsum(lengths)
        token_starts = token_ends - lengths
        spans = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        # A piece without any text (an added word boundary, say) speaks for nothing.
        numbers = np.flatnonzero(spans[:, 1] > spans[:, 0])
        starts, ends = spans[numbers, 0], spans[numbers, 1]
        last = np.searchsorted(starts, token_ends, side="left") - 1
        reaches = (last >= 0) & (lengths > 0)
        pieces = np.full(len(tokens), NO_PIECE, dtype=np.int64)
        if len(numbers):
            reaches &= ends[np.maximum(last, 0)] > token_starts
            pieces[reaches] = numbers[last[reaches]]
        return AlignedPieces(self._plain(encoding.ids), pieces)


def _unknown_instead(definition: dict[str, Any]) -> dict[int, int]:
    """Special ids that a unigram model makes of plain text itself, and what stands for them."""
    unknown = definition["model"].get("unk_id")
    if unknown is None:
        return {}
    special = [token["id"] for token in definition.get("added_tokens") or [] if token["special"]]
    return dict.fromkeys(special, unknown)


def _template(tokenizer: Tokenizer) -> PairTemplate:
    """Read from how the tokenizer joins a pair of words."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    count = len(tokenizer.encode("a", add_special_tokens=False).ids)
    joined = tokenizer.encode("a", "a")
    first = [number for number, text in enumerate(joined.sequence_ids) if text == 0]
    second = [number for number, text in enumerate(joined.sequence_ids) if text == 1]
    if not count or len(first) != count or len(second) != count:
        raise ValueError("it has no piece for the letter a, or drops pieces of a pair")
    cuts = (0, first[0], first[-1] + 1, second[0], second[-1] + 1, len(joined.ids))
    types = [int(joined.type_ids[start]) if start < end else 0 for start, end in pairwise(cuts)]
    return PairTemplate(
        tuple(joined.ids[cuts[0] : cuts[1]]),
        tuple(joined.ids[cuts[2] : cuts[3]]),
        tuple(joined.ids[cuts[4] :]),
        (types[0], types[1], types[2], types[3], types[4]),
    )
