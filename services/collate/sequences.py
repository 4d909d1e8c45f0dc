"""Cutting texts into sequences of few tokens, at word starts.

A text is split before each run of whitespace; byte-level BPE tokenizers never join tokens over
that border, so the token counts of the words add up and a piece has the same tokens alone as within
its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.formats.encoding import write_atomically

_WORD = re.compile(r"\s*\S+\s*\Z|\s*\S+")
_BATCH_WORDS = 5000
_BATCH_CHARACTERS = 1 << 20

Tokenize = Callable[[list[str]], Awaitable[list[list[str]]]]
"""Texts to the token strings of each."""


@dataclass(frozen=True)
class Sequence:
    """A piece of a text, and its tokens as text."""

    text: str
    tokens: list[str]


def words(text: str) -> list[str]:
    """The words of a text with the whitespace before them; joined they are the text again."""
    return _WORD.findall(text)


def pack(parts: list[str], counts: list[int], most: int) -> Iterator[str]:
    """Join consecutive words while they have at most `most` tokens together.

    A word that alone has more becomes a piece of its own.
    """
    held: list[str] = []
    total = 0
    for part, count in zip(parts, counts, strict=True):
        if held and total + count > most:
            yield "".join(held)
            held, total = [], 0
        held.append(part)
        total += count
    if held:
        yield "".join(held)


async def cut(
    texts: Iterable[str], tokenize: Tokenize, least: int, most: int
) -> AsyncIterator[Sequence]:
    """Sequences of `least` to `most` tokens, in the order of the texts.

    Pieces with fewer tokens (the ends of texts) or more (a word that is too long) are left out.
    """
    for batch in _batches(texts):
        parts = [words(text) for text in batch]
        flat = [part for text in parts for part in text]
        counts = [len(tokens) for tokens in await tokenize(flat)] if flat else []
        pieces: list[str] = []
        start = 0
        for text in parts:
            pieces.extend(pack(text, counts[start : start + len(text)], most))
            start += len(text)
        for piece, tokens in zip(pieces, await tokenize(pieces), strict=True):
            if least <= len(tokens) <= most:
                yield Sequence(piece, tokens)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Consecutive texts, so many together as fit one call; a longer text is cut before a word."""
    held: list[str] = []
    room = _BATCH_CHARACTERS
    words_left = _BATCH_WORDS
    for text in texts:
        for part in _portions(text):
            count = len(words(part))
            if held and (len(part) > room or count > words_left):
                yield held
                held, room, words_left = [], _BATCH_CHARACTERS, _BATCH_WORDS
            held.append(part)
            room -= len(part)
            words_left -= count
    if held:
        yield held


def _portions(text: str) -> Iterator[str]:
    """A text in parts that fit one call each, unless a single word does not."""
    held: list[str] = []
    length = 0
    for word in words(text):
        if held and (length + len(word) > _BATCH_CHARACTERS or len(held) == _BATCH_WORDS):
            yield "".join(held)
            held, length = [], 0
        held.append(word)
        length += len(word)
    if held:
        yield "".join(held)


class SequenceFile:
    """Sequences on disk, a line each, written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        """Whether the sequences were written."""
        return self._path.exists()

    async def write(self, sequences: AsyncIterator[Sequence], limit: int | None) -> int:
        """Write at most `limit` sequences; returns how many there are."""
        lines: list[str] = []
        async for sequence in sequences:
            if limit is not None and len(lines) >= limit:
                break
            lines.append(json.dumps([sequence.text, sequence.tokens], ensure_ascii=False))
        write_atomically(self._path, "".join(line + "\n" for line in lines).encode())
        return len(lines)

    def read(self) -> Iterator[Sequence]:
        """All sequences, in order."""
        with self._path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                text, tokens = json.loads(line)
                yield Sequence(text, tokens)

    def count(self) -> int:
        """Number of sequences."""
        with self._path.open("rb") as file:
            return sum(1 for _ in file)
