"""Cutting texts into sequences."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collate import sequences
from services.collate.sequences import Sequence, SequenceFile, cut, pack, words


async def characters(texts: list[str]) -> list[list[str]]:
    """Stands for a tokenizer: a token a character."""
    return [list(text) for text in texts]


async def cut_all(texts: list[str], least: int, most: int) -> list[Sequence]:
    return [sequence async for sequence in cut(texts, characters, least, most)]


@given(st.text())
def test_words_joined_are_the_text(text: str) -> None:
    assert "".join(words(text)) == (text if text.strip() else "")
    assert all(word.strip() for word in words(text))


@given(st.lists(st.integers(0, 9)), st.integers(1, 20))
def test_packing_keeps_all_words_in_order(counts: list[int], most: int) -> None:
    parts = [f"<{number}>" for number in range(len(counts))]
    packed = list(pack(parts, counts, most))
    assert "".join(packed) == "".join(parts)
    for piece in packed:
        held = [counts[int(number)] for number in piece.strip("<>").split("><")]
        assert sum(held) <= most or len(held) == 1


async def test_pieces_are_as_long_as_they_can_be() -> None:
    found = await cut_all(["aa bb cc dd ee"], 1, 8)
    assert [sequence.text for sequence in found] == ["aa bb cc", " dd ee"]
    assert found[1].tokens == list(" dd ee")


async def test_short_ends_and_long_words_are_left_out() -> None:
    found = await cut_all(["aaa bbb c", "x" * 50 + " yyyyy", "", "  "], 4, 7)
    assert [sequence.text for sequence in found] == ["aaa bbb", " yyyyy"]


@pytest.mark.parametrize(("at_once", "letters"), [(1, 1), (3, 10), (7, 100), (1000, 1000)])
async def test_texts_of_any_size_fit_their_calls(
    monkeypatch: pytest.MonkeyPatch, at_once: int, letters: int
) -> None:
    monkeypatch.setattr(sequences, "_BATCH_WORDS", at_once)
    monkeypatch.setattr(sequences, "_BATCH_CHARACTERS", letters)
    calls: list[list[str]] = []

    async def tokenize(texts: list[str]) -> list[list[str]]:
        calls.append(texts)
        return await characters(texts)

    texts = ["one two three four", "five", "six " * 9, "a-rather-long-word seven"]
    found = [s.text async for s in cut(texts, tokenize, 1, 1000)]
    assert "".join(found) == "".join(texts)
    for call in calls:
        assert len(call) <= at_once
        assert sum(map(len, call)) <= letters or len(words("".join(call))) == 1


async def test_sequences_go_round_through_their_file(tmp_path: Path) -> None:
    file = SequenceFile(tmp_path / "sequences.jsonl")
    assert not file.exists()
    texts = ["a\u2028b\x85c\r\nd", "naïve 🧠 \x00"]
    written = await file.write(cut(texts, characters, 1, 100), limit=None)
    assert written == file.count() == 2
    assert list(file.read()) == await cut_all(texts, 1, 100)
    assert await file.write(cut(texts, characters, 1, 100), limit=1) == file.count() == 1
