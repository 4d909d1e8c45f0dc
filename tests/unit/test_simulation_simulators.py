"""What all simulators share, and the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from services.simulation.calibration.calibrated_simulator import LinearCalibratedNeuronSimulator
from services.simulation.errors import InvalidInput
from services.simulation.simulators import interface
from services.simulation.simulators.explanation_simulator import ExplanationNeuronSimulator
from services.simulation.simulators.interface import (
    SimulatedSequence,
    SimulationCost,
    TokenIssue,
    TokenOutcome,
    ValidityReport,
    check_request,
)
from services.simulation.simulators.registry import SimulatorRegistry
from shared.errors import ConfigurationError, FailedPrecondition, ResourceExhausted
from shared.formats.records import ActivationRecord
from shared.settings import CompletionsSimulator, Deployment, EmbeddingSimulator


def one_hot(*values: int) -> np.ndarray:
    rows = np.eye(11)[list(values)]
    return np.where(np.asarray(values)[:, None] < 0, 0.0, rows)


ISSUES = (
    TokenIssue(1, TokenOutcome.MISSING, "no logprobs"),
    TokenIssue(2, TokenOutcome.MALFORMED, "not a number"),
)


def test_a_token_without_a_distribution_has_no_activation() -> None:
    result = SimulatedSequence(["a", "b", "c"], one_hot(4, -1, -1), ISSUES)
    simulation = result.simulation()
    assert simulation.expected_activations[0] == 4.0
    assert np.isnan(simulation.expected_activations[1:]).all()
    assert simulation.to_file_class().distribution_values[1:] == [[], []]
    assert result.report == ValidityReport(1, 1, 1, (("no logprobs", 1), ("not a number", 1)))
    assert result.report.coverage == pytest.approx(1 / 3)


def test_reports_and_costs_add_up() -> None:
    report = ValidityReport(1, 1, 0, (("x", 1),)) + ValidityReport(2, 1, 1, (("x", 1), ("y", 1)))
    assert report == ValidityReport(3, 2, 1, (("x", 2), ("y", 1)))
    assert ValidityReport().coverage == 1.0
    cost = SimulationCost(1, 2, 3, 4, 0.5) + SimulationCost(1, 1, 1, 1, 0.25)
    assert cost == SimulationCost(2, 3, 4, 5, 0.75)


def test_too_little_coverage_fails_with_the_reasons() -> None:
    report = ValidityReport(1, 1, 1, (("no logprobs", 1), ("not a number", 1)))
    report.require(1 / 3)
    with pytest.raises(FailedPrecondition) as caught:
        report.require(0.5)
    assert "1 of 3 tokens" in caught.value.message
    assert "no logprobs (1), not a number (1)" in caught.value.message
    assert caught.value.reason == "COVERAGE_TOO_LOW"
    assert caught.value.metadata["malformed_tokens"] == "1"


@pytest.mark.parametrize(
    ("explanation", "sequences", "field"),
    [
        ("", [["a"]], "explanation"),
        (" \n\t", [["a"]], "explanation"),
        ("x", [["a"], []], "sequences[1]"),
    ],
)
def test_impossible_requests_are_refused(
    explanation: str, sequences: list[list[str]], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_request(explanation, sequences)
    assert caught.value.field == field


def test_huge_requests_are_refused() -> None:
    check_request("é" * interface.MAX_EXPLANATION_CHARACTERS, [])
    for explanation, sequences, field in (
        ("x" * (interface.MAX_EXPLANATION_CHARACTERS + 1), [["a"]], "explanation"),
        ("x", [["a"]] * (interface.MAX_SEQUENCES + 1), "sequences"),
        ("x", [["a"] * (interface.MAX_SEQUENCE_TOKENS + 1)], "sequences[0]"),
        ("x", [["a"] * (interface.MAX_TOKENS // 10 + 1)] * 10, "sequences"),
    ):
        with pytest.raises(ResourceExhausted) as caught:
            check_request(explanation, sequences)
        assert caught.value.field == field


class Counting:
    """Simulates a token by the digits in it; a token without digits has no prediction."""

    kind = "counting"
    model = "none"
    prompt_version = ""
    has_exact_probabilities = True
    description = "Reads digits."
    name = "counting"

    def start(self) -> None: ...

    async def close(self) -> None: ...

    async def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncIterator[SimulatedSequence]:
        for tokens in sequences:
            values = [int(token) if token.isdigit() else -1 for token in tokens]
            issues = tuple(
                TokenIssue(position, TokenOutcome.MISSING, "no digit")
                for position, value in enumerate(values)
                if value < 0
            )
            yield SimulatedSequence(tokens, one_hot(*values), issues, SimulationCost(calls=1))


async def test_an_explanation_simulator_adds_up_and_is_calibrated() -> None:
    simulator = ExplanationNeuronSimulator(Counting(), "digits")
    record = ActivationRecord(tokens=["1", "2", "5"], activations=[3.0, 5.0, 11.0])
    calibrated = await LinearCalibratedNeuronSimulator.create(simulator, [record, record])
    simulation = await calibrated.simulate(["4", "0"])
    assert simulation.expected_activations == pytest.approx([9.0, 1.0])
    assert simulator.cost.calls == 3
    assert simulator.report == ValidityReport(8)


async def test_an_explanation_simulator_fails_under_its_coverage() -> None:
    simulator = ExplanationNeuronSimulator(Counting(), "digits", min_coverage=0.5)
    simulation = await simulator.simulate(["1", "x"])
    assert np.isnan(simulation.expected_activations[1])
    with pytest.raises(FailedPrecondition, match=r"1 of 3 tokens.*no digit \(2\)"):
        await simulator.simulate(["1", "x", "y"])


def test_the_registry_knows_names_and_the_default() -> None:
    deployment = Deployment(
        simulators=(
            EmbeddingSimulator(name="first", kind="embedding"),
            EmbeddingSimulator(name="second", kind="embedding"),
        ),
        default_simulator="second",
    )
    registry = SimulatorRegistry.from_deployment(deployment)
    assert [simulator.name for simulator in registry] == ["first", "second"]
    assert registry.get("").name == "second"
    assert registry.get("first").name == "first"
    with pytest.raises(InvalidInput, match="there are first, second") as caught:
        registry.get("third")
    assert caught.value.field == "simulator"


def test_a_key_that_is_not_set_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CompletionsSimulator(
        name="llm",
        kind="completions",
        base_url="http://127.0.0.1:1/v1",
        model="m",
        api_key_env="NEUROPIL_TEST_KEY",
    )
    monkeypatch.delenv("NEUROPIL_TEST_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="NEUROPIL_TEST_KEY is not set") as caught:
        SimulatorRegistry.from_deployment(Deployment(simulators=(settings,)))
    assert caught.value.key == "simulators[0].api_key_env"
