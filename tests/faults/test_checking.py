"""What the fault runs check is noticed where it is wrong."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuropil.names import component_id
from neuropil.records import v1
from services.records.components import Component, View
from services.records.convert import encoders
from services.records.loading import token_record
from tests.faults.measuring import Phase, Report, _problems
from tests.faults.mix import MLP, Ask, digest
from tests.faults.processes import Redis, Usage
from tests.faults.scenarios import SCENARIOS, World
from tests.faults.setting import DEMO
from tests.faults.truth import Truth
from tests.faults.writing import Writing

OK = ("token record", "local", "ok")


class Listed:
    """A service that takes every explanation and lists what it is told to."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def PutExplanation(self, request: Any, **options: float) -> Any:
        """Take it."""
        return v1.PutExplanationResponse()

    async def ListExplanations(self, request: Any, **options: float) -> Any:
        """List what it was told to."""
        return SimpleNamespace(
            explanations=[v1.Explanation(text=text) for text in self.texts], failures=[]
        )


@pytest.mark.parametrize(
    ("texts", "staleness", "outcome"),
    [
        (["explanation 0", "explanation 1"], 0.0, "ok"),
        (["explanation 0"], 0.0, "WRONG"),
        ([], 60.0, "ok"),
        (["explanation 0", "explanation 1", "explanation 2"], 0.0, "WRONG"),
    ],
)
async def test_a_lost_and_a_foreign_explanation_are_noticed(
    texts: list[str], staleness: float, outcome: str
) -> None:
    service = Listed()
    writing = Writing("local", "/folder", staleness)
    for _ in range(2):
        assert (await writing.put(service, 1))[-1] == "ok"
    service.texts = texts
    assert (await writing.read(service, 1))[-1] == outcome


def test_an_answer_that_is_not_the_files_is_noticed() -> None:
    data = (DEMO / "records" / "mlp" / "0" / "5.json").read_bytes()
    folder = f"{DEMO}/records/mlp"
    record = token_record(data, folder, Component(MLP, 0, 5), View(), "f")
    answered = v1.GetTokenRecordResponse.FromString(encoders().token_record(record))
    request = v1.GetTokenRecordRequest(component=component_id(MLP, 0, 5), datasets=["local"])
    ask = Ask("token record", "local", "GetTokenRecord", request)
    truth = Truth(DEMO, {"local": str(DEMO)})
    truth.check(ask, [answered])
    for change in (
        lambda one: one.random_sequences.tokens.append("more"),
        lambda one: one.top_sequences.tokens.__setitem__(0, "another"),
        lambda one: setattr(one.top_sequences.activations, "data", _flipped(one)),
        lambda one: setattr(one.component, "component_index", 6),
        lambda one: setattr(one, "dataset", "another"),
    ):
        wrong = v1.GetTokenRecordResponse()
        wrong.CopyFrom(answered)
        change(wrong)
        assert digest([wrong]) != digest([answered])
        with pytest.raises(AssertionError):
            truth.check(ask, [wrong])


def _flipped(answered: Any) -> bytes:
    data = bytearray(answered.top_sequences.activations.data)
    data[-1] ^= 1
    return bytes(data)


@pytest.fixture
def report() -> Report:
    """Of a scenario where nothing was wrong."""
    calm = Phase(1.0, Counter({OK: 100}), 0.1)
    return Report(
        SCENARIOS["redis_killed"], calm, calm, calm, 0.0, Usage(1, 1, 1), Usage(1, 1, 1), []
    )


def test_nothing_is_wrong(report: Report, tmp_path: Path) -> None:
    assert _problems(report, World(Redis(tmp_path), [])) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"after": Phase(1.0, Counter({OK: 9, (*OK[:2], "WRONG"): 1}), 0.1)}, "1 wrong answers"),
        ({"fault": Phase(1.0, Counter({OK: 9, (*OK[:2], "INTERNAL"): 2}), 0.1)}, "INTERNAL"),
        ({"fault": Phase(1.0, Counter({OK: 9, (*OK[:2], "UNAVAILABLE"): 2}), 0.1)}, "UNAVAILABLE"),
        ({"fault": Phase(1.0, Counter(), 0.1)}, "no call succeeded"),
        ({"fault": Phase(1.0, Counter({OK: 9}), 5.0)}, "while Redis failed"),
        ({"fault": Phase(1.0, Counter({OK: 9}), 15.0)}, "over its deadline"),
        ({"recovery_seconds": 5.5}, "recovery took 5.5 s"),
        ({"peak": Usage(2**30, 1, 1)}, "memory grew"),
    ],
)
def test_what_is_wrong_is_told(
    report: Report, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    found = _problems(dataclasses.replace(report, **changes), World(Redis(tmp_path), []))
    assert any(told in problem for problem in found)


def test_what_a_dead_store_costs_is_no_problem(report: Report, tmp_path: Path) -> None:
    lost = Phase(1.0, Counter({OK: 9, ("batch", "blob", "UNAVAILABLE"): 5}), 0.1)
    for name, problems in (("store_killed", 0), ("redis_killed", 1)):
        seen = dataclasses.replace(report, scenario=SCENARIOS[name], fault=lost)
        assert len(_problems(seen, World(Redis(tmp_path), []))) == problems
