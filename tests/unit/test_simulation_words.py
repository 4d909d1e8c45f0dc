"""Words from tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.simulation.simulators.words import WordSequence, content_words, reading


def test_pieces_of_a_word_point_to_it() -> None:
    sequence = WordSequence.from_tokens(["The", " ch", "er", "ub", "im", ",", " \n", " x_1", ""])
    assert sequence.words == ("The", "cherubim", ",", "x_1")
    assert sequence.word_of_token.tolist() == [0, 1, 1, 1, 1, 2, -1, 3, -1]
    assert sequence.completes.tolist() == [
        True,
        False,
        False,
        False,
        True,
        True,
        False,
        True,
        False,
    ]


def test_a_token_across_words_belongs_to_the_last() -> None:
    sequence = WordSequence.from_tokens(["a b", "c;"])
    assert sequence.words == ("a", "bc", ";")
    assert sequence.word_of_token.tolist() == [1, 2]
    assert sequence.completes.tolist() == [False, True]


def test_no_words_at_all() -> None:
    assert WordSequence.from_tokens([" ", "\n"]).word_of_token.tolist() == [-1, -1]
    assert WordSequence.from_tokens([]).words == ()


@given(st.lists(st.text(max_size=6), max_size=20))
def test_every_word_is_completed_by_one_token_that_points_to_it(tokens: list[str]) -> None:
    sequence = WordSequence.from_tokens(tokens)
    assert len(sequence.word_of_token) == len(sequence.completes) == len(tokens)
    text = "".join(tokens)
    assert "".join(sequence.words) == "".join(text.split()) or any(c.isspace() for c in text)
    completed = sequence.word_of_token[sequence.completes]
    # A token that holds several whole words completes the last of them alone.
    assert len(set(completed.tolist())) == len(completed)
    if sequence.words:
        assert (len(sequence.words) - 1) in completed
    for token, word in zip(tokens, sequence.word_of_token.tolist(), strict=True):
        assert word >= 0 or not token.strip() or token.isspace()


def test_identifiers_are_read_as_their_words() -> None:
    assert reading("ValueError") == "value error"
    assert reading("max_value") == "max value"
    assert reading("___") == "___"
    assert reading("Ὀδυσσεύς") == "ὀδυσσεύς"
    assert len(reading("x" * 1000)) == 48


def test_content_words_leave_out_talk_about_language() -> None:
    assert content_words("words related to the sea, or ships") == ["sea", "ships"]
    assert content_words("the word that is used") == []
