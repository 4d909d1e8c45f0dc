"""What an explanation says literally."""

from __future__ import annotations

import time

import pytest

from services.simulation.simulators.cues import Cues
from services.simulation.simulators.words import WordSequence


def matched(explanation: str, *tokens: str) -> list[str]:
    sequence = WordSequence.from_tokens(tokens)
    by_token, by_word = Cues.from_explanation(explanation).match(sequence)
    return [
        token
        for token, own, word, complete in zip(
            tokens, by_token, sequence.word_of_token, sequence.completes, strict=True
        )
        if own or (word >= 0 and by_word[word] and complete)
    ]


ORDINARY = "the words 'king' and 'queen', and names of animals; " * 200

TEXT = ("He", " said", " unto", " the", " li", "on", ",", " 'Sing", "ing", "' 12", "\n", " is BAD")


@pytest.mark.parametrize(
    ("explanation", "expected"),
    [
        ("the word 'unto'", [" unto"]),
        ('the word "Lion"', ["on"]),
        ("the word “unto” or ‘said’", [" said", " unto"]),
        ("the phrase `unto the lion`", ["on"]),
        ("words that end in '-ing'", ["ing"]),
        ("words ending with 'ing'", ["ing"]),
        ("words that end in -ing", ["ing"]),
        ("words that start with 'sa'", [" said"]),
        ("the prefix li-", ["on"]),
        ("the word after 'unto'", [" the"]),
        ("tokens followed by 'said'", ["He"]),
        ("numbers", ["' 12"]),
        ("punctuation", [","]),
        ("commas", [","]),
        ("newlines", ["\n"]),
        ("capitalized words", ["He", "ing", " is BAD"]),
        ("words in all caps", [" is BAD"]),
        ("the first token", ["He"]),
        ("the word « unto »", [" unto"]),
        ("words that end in '-ing', and the word 'to'", ["ing"]),
        ("words ending in 'ing' or 'to'", [" unto", "ing"]),
        ("words starting with 'sa', 'th' and 'un'", [" said", " unto", " the"]),
        ("the words 'end' and 'to'", []),
        ("the word after 'end' and the word after 'unto'", [" the"]),
        ("the phrase ', 'Sing'", []),
        ("after a colon: the word 'unto'", [" unto"]),
        ("the word 'He', and the word after 'the'", ["He", "on"]),
        ("the lion's mane and the dogs' tails", []),
        ("animals", []),
        ("the word ''", []),
    ],
)
def test_cues(explanation: str, expected: list[str]) -> None:
    assert matched(explanation, *TEXT) == expected


@pytest.mark.parametrize(
    ("explanation", "expected"),
    [
        ("the phrase '-ing'", ["ing"]),
        ("the phrases 'a b' and '-ing'", ["ing"]),
        ("words that end in '-ing'", ["ing", " sing"]),
        ("the phrase 'a b', and words that end in '-ing'", ["ing", " sing"]),
    ],
)
def test_hyphens_of_phrases_are_signs(explanation: str, expected: list[str]) -> None:
    assert matched(explanation, " -", "ing", " sing") == expected


@pytest.mark.parametrize(
    "explanation",
    ["after " * 800 + "'a' " * 1250, "before, " * 600 + "'a', " * 1000, "«" + " " * 9_900 + "'a'"],
    ids=["after", "before", "unclosed"],
)
def test_a_long_explanation_is_read_in_time_that_grows_with_its_length(explanation: str) -> None:
    def seconds(text: str) -> float:
        began = time.process_time()
        Cues.from_explanation(text)
        return time.process_time() - began

    ordinary = min(seconds(ORDINARY[: len(explanation)]) for _ in range(3))
    assert seconds(explanation) < 100 * ordinary
    assert Cues.from_explanation(explanation).any


def test_a_quoted_piece_matches_a_token_inside_a_word() -> None:
    assert matched("the piece 'li'", *TEXT) == [" li"]


@pytest.mark.parametrize(
    ("explanation", "has_cues", "says_more"),
    [
        ("the word 'unto'", True, False),
        ("words that end in '-ing'", True, False),
        ("numbers", True, False),
        ("family members such as 'father'", True, True),
        ("the first token of the sequence", True, False),
        ("animals", False, True),
        ("", False, False),
        ("«слово» в тексте", True, True),
    ],
)
def test_what_else_an_explanation_says(explanation: str, has_cues: bool, says_more: bool) -> None:
    cues = Cues.from_explanation(explanation)
    assert (cues.any, cues.says_more) == (has_cues, says_more)


def test_no_tokens_match_nothing() -> None:
    for tokens in ((), (" ",)):
        by_token, by_word = Cues.from_explanation("after 'x', numbers").match(
            WordSequence.from_tokens(tokens)
        )
        assert not by_token.any()
        assert not by_word.any()
