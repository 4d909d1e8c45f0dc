"""How both releases of the reference write records into prompts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from services.simulation.prompts.record_format import (
    format_activation_records,
    format_sequences_for_simulation,
)
from services.simulation.prompts.simulation import AllAtOncePrompt, simulation_prompt
from shared.formats.records import ActivationRecord

pytestmark = pytest.mark.golden

RELEASES = {"reference": "simulation.json.gz", "older": "old_release.json.gz"}


@pytest.fixture(params=list(RELEASES))
def helpers(request: pytest.FixtureRequest, golden: Path) -> list[dict[str, Any]]:
    packed = (golden / "simulation" / RELEASES[request.param]).read_bytes()
    content: list[dict[str, Any]] = json.loads(gzip.decompress(packed))["helpers"]
    return content


def test_records_are_formatted_as_the_reference_does(helpers: list[dict[str, Any]]) -> None:
    cases = [case for case in helpers if case["fn"] == "format_activation_records"]
    assert len(cases) == 4
    for case in cases:
        records = [
            ActivationRecord(tokens=record["tokens"], activations=record["activations"])
            for record in case["records"]
        ]
        written = format_activation_records(records, case["max_activation"], **case["kwargs"])
        assert written == case["result"]


def test_sequences_are_formatted_as_the_reference_does(helpers: list[dict[str, Any]]) -> None:
    (case,) = (case for case in helpers if case["fn"] == "format_sequences_for_simulation")
    assert format_sequences_for_simulation(case["tokens"]) == case["result"]


def test_the_examples_take_about_800_tokens_of_gpt_2(golden: Path) -> None:
    tokenizer = Tokenizer.from_file(str(golden / "model" / "tokenizer.json"))
    shared = simulation_prompt("few_shot-1", AllAtOncePrompt).shared
    assert 750 <= sum(len(tokenizer.encode(piece).ids) for piece in shared) <= 850
