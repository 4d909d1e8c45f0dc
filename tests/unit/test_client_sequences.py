"""Sequences of tokens and their activations, as the client takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import neuropil
from neuropil._token_sequences import token_sequences


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda of: of.simulate("kings", "the king"), "sequences is a text"),
        (lambda of: of.simulate("kings", [[" a"], "the king"]), r"sequences\[1\] is a text"),
        (lambda of: of.simulate_explanations(["kings"], "the king"), "tokens is a text"),
        (lambda of: of.simulate_explanations("kings", [" a"]), "explanations is one text"),
        (lambda of: of.fit_calibration("linear", [0], [1], sequences=["a"]), r"sequences\[0\] is"),
    ],
)
def test_letters_are_not_taken_for_tokens(call: Callable[[Any], object], named: str) -> None:
    with (
        neuropil.connect(simulation="127.0.0.1:1") as client,
        pytest.raises(ValueError, match=named),
    ):
        call(client.simulation)


@pytest.mark.parametrize(
    ("sequences", "activations", "words"),
    [
        ([["a", "b"]], [[1.0]], r"activations\[0\] has shape \[1\], and sequences\[0\] has 2"),
        ([["a"]], [[[1.0]]], r"activations\[0\] has shape \[1, 1\]"),
        ([["a"]], [[1.0], [2.0]], "activations are of 2 sequences, and sequences has 1"),
        (["ab"], [[1.0, 2.0]], r"sequences\[0\] is a text"),
    ],
)
def test_a_sequence_has_one_activation_a_token(
    sequences: list[list[str]], activations: list[list[float]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        token_sequences(sequences, activations)
