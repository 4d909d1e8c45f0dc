"""Readers of models' answers against the reference implementation and its older release.

Where a release has a number, ours is the same. Where it answers zeros, or fails, for what it could
not read, ours is an issue with its reason. `docs/simulators.md` lists these differences.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.simulation.parsing import structured_answers as structured
from services.simulation.parsing.echoed_prompts import (
    NEWLINE_FOLDED,
    EchoedToken,
    HiddenValue,
    read_hidden_values,
)
from services.simulation.parsing.structured_answers import read_structured_answer
from services.simulation.parsing.value_logprobs import NO_VALUE, Unreadable, value_distribution
from services.simulation.sequence_simulation import NORMALIZED_VALUES
from services.simulation.simulators.interface import TokenOutcome

pytestmark = pytest.mark.golden

TOLERANCE = 1e-9
START = "<start>\n"
HIDDEN = "unknown"


@pytest.fixture(scope="module", params=["simulation.json.gz", "old_release.json.gz"])
def release(request: pytest.FixtureRequest, golden: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        gzip.decompress((golden / "simulation" / request.param).read_bytes())
    )
    return content


def cases(release: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [case for case in release["simulators"] if case["kind"] == kind]


def row(values: list[float], probabilities: list[float]) -> np.ndarray[Any, Any]:
    distribution = np.zeros(11)
    for value, probability in zip(values, probabilities, strict=True):
        distribution[int(value)] = probability
    return distribution


def hidden_values(text: str, tokens: list[str]) -> list[HiddenValue]:
    line = text.rindex(START) + len(START)
    places = []
    for token in tokens:
        value = line + len(token) + 1
        places.append(HiddenValue(line, value, len(HIDDEN)))
        line = value + len(HIDDEN) + 1
    return places


def test_value_logprobs(release: dict[str, Any]) -> None:
    underflows = 0
    for case in release["token_logprobs"]:
        wanted = case["result"]
        if not wanted["normalized"]:
            # The releases say 0.0 where no value is among the tokens.
            assert wanted["expected_value"] == 0.0
            with pytest.raises(Unreadable, match=NO_VALUE):
                value_distribution(case["top_logprobs"])
            continue
        ours = value_distribution(case["top_logprobs"])
        if "NaN" in wanted["normalized"].values():
            # The releases divide 0 by 0; all these cases have equally likely values.
            underflows += 1
            kept = [int(value) for value in wanted["normalized"]]
            assert ours[kept] == pytest.approx(1 / len(kept), abs=TOLERANCE)
            continue
        normalized = wanted["normalized"]
        assert ours == pytest.approx(
            row([float(v) for v in normalized], list(normalized.values())), abs=TOLERANCE
        )
        assert ours @ NORMALIZED_VALUES == pytest.approx(wanted["expected_value"], abs=TOLERANCE)
    assert underflows == 2


def test_all_at_once(release: dict[str, Any]) -> None:
    without = with_newline = 0
    assert len(cases(release, "all_at_once")) == 25
    for case in cases(release, "all_at_once"):
        logprobs = case["response_logprobs"]
        text = "".join(logprobs["tokens"])
        echoed = [
            EchoedToken(token, top)
            for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
        ]
        tokens = case["tokens"]
        ours, issues = read_hidden_values(text, hidden_values(text, tokens), echoed)
        reasons = {issue.position: issue.reason for issue in issues}
        wanted = case["result"]
        for position in range(len(tokens)):
            values = wanted["distribution_values"][position]
            probabilities = wanted["distribution_probabilities"][position]
            if not values:
                # The releases say 0.0 for a folded newline, and where there is no value.
                assert wanted["expected_activations"][position] == 0.0
                expected = NEWLINE_FOLDED if tokens[position] == "\n" else NO_VALUE
                with_newline += expected == NEWLINE_FOLDED
                without += expected == NO_VALUE
                assert reasons.pop(position) == expected
                assert not ours[position].any()
                continue
            assert ours[position] == pytest.approx(row(values, probabilities), abs=TOLERANCE)
            assert ours[position] @ NORMALIZED_VALUES == pytest.approx(
                wanted["expected_activations"][position], abs=TOLERANCE
            )
        assert not reasons
    assert with_newline
    assert without


def test_one_at_a_time(release: dict[str, Any]) -> None:
    assert len(cases(release, "one_at_a_time")) == 4
    for case in cases(release, "one_at_a_time"):
        wanted = case["result"]
        for position, top in enumerate(case["response_top_logprobs"]):
            values = wanted["distribution_values"][position]
            probabilities = wanted["distribution_probabilities"][position]
            assert value_distribution(top) == pytest.approx(
                row(values, probabilities), abs=TOLERANCE
            )


SAME = ("valid", "floats")
"""Answers that both read."""

REASONS = {
    # The releases take the number of a text, a truth value or another token.
    "strings": structured.NOT_A_NUMBER,
    "boolean": structured.NOT_A_NUMBER,
    "wrong_tokens_right_count": structured.OTHER_TOKEN,
    # They answer zero for the token.
    "null": structured.NOT_A_NUMBER,
    "text": structured.NOT_A_NUMBER,
    "missing_activation": structured.NOT_A_NUMBER,
    "missing_token": structured.OTHER_TOKEN,
    "list_value": structured.NOT_A_NUMBER,
    "entry_is_string": structured.NOT_AN_OBJECT,
    # They answer zeros for all tokens.
    "too_many": structured.TOO_MANY,
    "not_json": structured.NOT_JSON,
    "fenced": structured.NOT_JSON,
    "no_key": structured.NO_LIST,
    "json_list": structured.NO_LIST,
    "activations_string": structured.NO_LIST,
    "infinity": structured.NOT_JSON,
    "empty": structured.NO_ANSWER,
    # They answer NaN.
    "nan": structured.NOT_JSON,
    # They fail.
    "json_number": structured.NO_LIST,
    "activations_null": structured.NO_LIST,
    "entry_is_number": structured.NOT_AN_OBJECT,
}


def test_structured_answers(golden: Path) -> None:
    packed = (golden / "simulation" / "simulation.json.gz").read_bytes()
    all_cases = cases(json.loads(gzip.decompress(packed)), "logprob_free")
    assert len(all_cases) == 78
    variants = {case["variant"] for case in all_cases}
    assert variants == {*SAME, *REASONS, "out_of_range", "too_few"}
    for case in all_cases:
        tokens, variant = case["tokens"], case["variant"]
        ours, issues = read_structured_answer(case["completion"], tokens)
        reasons = {issue.position: issue.reason for issue in issues}
        if variant in SAME:
            assert not reasons
            assert ours @ NORMALIZED_VALUES == pytest.approx(
                case["result"]["expected_activations"], abs=TOLERANCE
            )
        elif variant == "out_of_range":
            # The releases answer 0 for what is out of range.
            assert list(reasons.values()) == [structured.OUT_OF_RANGE] * 5
            assert ours[3] @ NORMALIZED_VALUES == case["result"]["expected_activations"][3] == 10
        elif variant == "too_few":
            # The releases answer zeros for all tokens; the items that are there are good.
            (issue,) = issues
            assert (issue.position, issue.reason) == (5, structured.NO_ITEM)
            assert issue.outcome is TokenOutcome.MISSING
            assert not any(case["result"]["expected_activations"])
        else:
            assert reasons == dict.fromkeys(range(len(tokens)), REASONS[variant])
            assert not ours.any()


def test_lines_of_the_older_release(golden: Path) -> None:
    packed = (golden / "simulation" / "old_release.json.gz").read_bytes()
    all_cases = cases(json.loads(gzip.decompress(packed)), "logprob_free_old")
    assert len(all_cases) == 12
    for case in all_cases:
        # Its lines "token\tvalue༗\n" as the items that we ask for.
        lines = [line.rpartition("\t") for line in case["completion"].split("༗\n")[:-1]]
        items = [{"token": token, "activation": int(value)} for token, _, value in lines]
        ours, issues = read_structured_answer(
            json.dumps({"activations": items}) if items else case["completion"], case["tokens"]
        )
        if case["variant"] != "valid":
            # It answers zeros; at least one token is reported instead.
            assert issues
            assert not any(case["result"])
            continue
        assert not issues
        expected = ours @ NORMALIZED_VALUES
        for value, theirs, token in zip(expected, case["result"], case["tokens"], strict=True):
            # It loses tokens with a tab, and a full stop at the end.
            assert value == theirs or (theirs == 0 and token in ("\tx", "."))
