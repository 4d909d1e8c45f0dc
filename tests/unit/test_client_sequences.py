"""Texts where the client needs lists of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import neuropil


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
