"""Readers of models' answers, at the edges that the reference's cases don't reach."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulation.parsing import structured_answers as structured
from services.simulation.parsing.choice_logprobs import answered_choice, choice_probabilities
from services.simulation.parsing.echoed_prompts import (
    NEWLINE_FOLDED,
    NO_LOGPROBS,
    OTHER_TEXT,
    TAB_FOLDED,
    EchoedToken,
    HiddenValue,
    first_token,
    read_hidden_values,
    token_starts,
)
from services.simulation.parsing.structured_answers import read_structured_answer
from services.simulation.parsing.value_logprobs import (
    NO_VALUE,
    NOT_A_LOGPROB,
    Unreadable,
    value_distribution,
)

TOP = {"3": -0.1, "4": -2.5}


@pytest.mark.parametrize("wrong", [math.nan, 0.5, math.inf, None, "x", True])
def test_wrong_logprobs(wrong: float) -> None:
    with pytest.raises(Unreadable, match=NOT_A_LOGPROB):
        value_distribution({"3": -1.0, "4": wrong})


def test_impossible_values() -> None:
    assert value_distribution({"3": -math.inf, "4": -9999.0}) @ np.arange(11) == 4
    with pytest.raises(Unreadable, match=NO_VALUE):
        value_distribution({"3": -math.inf})
    # A wrong number beside a token that is no value changes nothing.
    assert value_distribution({"3": -1.0, "the": math.nan})[3] == 1


@given(
    st.dictionaries(st.sampled_from([str(v) for v in range(11)]), st.floats(-1e6, 0), min_size=1)
)
def test_distributions_add_up(top: dict[str, float]) -> None:
    probabilities = value_distribution(top)
    assert probabilities.sum() == pytest.approx(1)
    assert np.isfinite(probabilities).all()


def read(prompt: str, tokens: list[str], hidden: list[HiddenValue]) -> dict[int, str]:
    echoed = [EchoedToken(token, TOP) for token in tokens]
    probabilities, issues = read_hidden_values(prompt, hidden, echoed)
    reasons = {issue.position: issue.reason for issue in issues}
    for position, row in enumerate(probabilities):
        assert row.sum() == pytest.approx(0 if position in reasons else 1)
    return reasons


PROMPT = "x\ncat\t?\n\n\t?\n"
HIDDEN = [HiddenValue(2, 6, 1), HiddenValue(8, 10, 1)]


@pytest.mark.parametrize(
    ("tokens", "reasons"),
    [
        (["x", "\n", "cat", "\t", "?", "\n", "\n", "\t", "?", "\n"], {}),
        (["<s>", "x", "\n", "ca", "t", "\t", "?", "\n", "\n", "\t", "?", "\n"], {}),
        (["x", "\n", "cat", "\t?", "\n", "\n", "\t", "?", "\n"], {0: TAB_FOLDED}),
        (["x", "\n", "cat\t", "?", "\n", "\n", "\t", "?", "\n"], {0: TAB_FOLDED}),
        (["x", "\n", "cat", "\t", "?", "\n\n", "\t", "?", "\n"], {1: NEWLINE_FOLDED}),
        (["x", "\n", "cat", "\t", "?\n", "\n", "\t", "?", "\n"], {0: NEWLINE_FOLDED}),
        (["x", "\n", "cat", "\t", "?", "\n", "\n\t", "?", "\n"], {1: TAB_FOLDED}),
    ],
)
def test_folded_tokens(tokens: list[str], reasons: dict[int, str]) -> None:
    assert read(PROMPT, tokens, HIDDEN) == reasons


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        ["x"],
        ["x", "\n", "dog", "\t", "?", "\n", "\n", "\t", "?", "\n"],
        ["x", "\n", "cat", "\t", "?", "\n", "\n", "\t", "?", "\n", "0"],
        [" ".join(PROMPT)],
        ["bytes:\\xff", *PROMPT],
    ],
)
def test_other_tokens(tokens: list[str]) -> None:
    if tokens[1:] == list(PROMPT):
        # One that stands before the prompt is the server's own.
        assert token_starts(PROMPT, tokens)
        return
    with pytest.raises(Unreadable, match=OTHER_TEXT):
        read(PROMPT, tokens, HIDDEN)


@pytest.mark.parametrize(
    "pieces",
    [
        ["bytes:\\xc3", "bytes:\\xa9"],
        ["\ufffd", "\ufffd"],
        ["", "é"],
        ["\ufffd", ""],
        ["é"],
    ],
)
def test_halves_of_characters(pieces: list[str]) -> None:
    prompt = "caf" + "é" + "\t?\n"
    hidden = [HiddenValue(0, 5, 1)]
    assert read(prompt, ["caf", *pieces, "\t", "?", "\n"], hidden) == {}
    # They can't stand for what is ASCII.
    with pytest.raises(Unreadable):
        read("cafe\t?\n", ["caf", "\ufffd", "\t", "?", "\n"], hidden)


def test_a_token_that_reads_as_bytes() -> None:
    prompt = "bytes:\\x41\t?\n"
    assert read(prompt, ["bytes:\\x41", "\t", "?", "\n"], [HiddenValue(0, 11, 1)]) == {}


def test_spaces_that_servers_drop() -> None:
    assert token_starts("a b\t?", ["a", "b", "\t", "?"]) == [0, 1, 3, 4]
    assert first_token("the cat", [" cat"]) == "the"
    assert first_token("the cat", ["the", " cat"]) == ""
    assert first_token("the cat", ["dog"]) == ""


def test_no_logprobs_at_a_value() -> None:
    echoed = [EchoedToken("\t", None), EchoedToken("?", None)]
    probabilities, (issue,) = read_hidden_values("\t?", [HiddenValue(0, 1, 1)], echoed)
    assert issue.reason == NO_LOGPROBS
    assert not probabilities.any()


def test_choices() -> None:
    top = {"1": -1.0, " 0": -2.0, "x": -0.1}
    assert choice_probabilities(top, ["0", "1"]).tolist() == [0.0, 1.0]
    both = choice_probabilities(top, ["0", "1"], any_spaces=True)
    assert both == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])
    # The beginning of one choice alone counts for it.
    begun = choice_probabilities({"un": -1.0, "l": -1.0, "": -0.1}, ["likely", "unlikely"])
    assert begun == pytest.approx([0.5, 0.5])
    for wrong in ({}, {"x": -1.0}, {"1": math.nan}, {"1": -math.inf}):
        with pytest.raises(Unreadable):
            choice_probabilities(wrong, ["0", "1"])


def test_answered_choices() -> None:
    for text in ("yes", " yes\n", '{"answer": "yes"}'):
        assert answered_choice(text, ["no", "yes"]).tolist() == [0.0, 1.0]
    for text in ("", "yes, I think", '{"answer": 1}', "[" * 100_000):
        with pytest.raises(Unreadable):
            answered_choice(text, ["no", "yes"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"activations": [{"token": "a", "activation": 1e400}]}', structured.NOT_JSON),
        ("[" * 100_000, structured.NOT_JSON),
        ('{"activations": [{"token": "a", "activation": 10.0001}]}', structured.OUT_OF_RANGE),
        ('{"activations": [{"token": "a", "activation": -0.0001}]}', structured.OUT_OF_RANGE),
        ('{"activations": [{"token": "A", "activation": 1}]}', structured.OTHER_TOKEN),
        ('{"activations": [null]}', structured.NOT_AN_OBJECT),
        ("\ud800", structured.NOT_JSON),
        ("  ", structured.NO_ANSWER),
    ],
)
def test_structured_answers(text: str, reason: str) -> None:
    probabilities, (issue,) = read_structured_answer(text, ["a"])
    assert issue.reason == reason
    assert not probabilities.any()


def test_an_answer_that_was_cut_off() -> None:
    whole = json.dumps({"activations": [{"token": " a", "activation": 2.25}]})
    probabilities, issues = read_structured_answer(whole, ["a"], finished=False)
    assert not issues
    assert probabilities @ np.arange(11) == pytest.approx([2.25])
    _, (issue,) = read_structured_answer(whole[:-5], ["a"], finished=False)
    assert issue.reason == structured.CUT_OFF
