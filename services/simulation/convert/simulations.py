"""Simulations, how far to trust them, and what they cost, as messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuropil.names import ACTIVATION_SCALES
from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.simulation.sequence_simulation import SequenceSimulation
from services.simulation.simulators.interface import SimulationCost, Simulator, ValidityReport


def simulator_message(simulator: Simulator, *, is_default: bool) -> v1.Simulator:
    """A simulator of the deployment, and what is known of it by now."""
    return v1.Simulator(
        name=simulator.name,
        kind=simulator.kind,
        model=simulator.model,
        has_exact_probabilities=simulator.has_exact_probabilities,
        is_default=is_default,
        description=simulator.description,
        prompt_version=simulator.prompt_version,
        capabilities=simulator.capabilities,
        state=simulator.state,
        runs_language_model=simulator.language_model is not None,
    )


def simulation_message(
    simulation: SequenceSimulation, report: ValidityReport
) -> v1.SequenceSimulation:
    """A sequence's simulation; probabilities go out in single precision."""
    raw = simulation.uncalibrated_simulation
    before: dict[str, Any] = {}
    if raw is not None:
        before = {
            "uncalibrated_expected_activations": to_tensor(raw.expected_activations),
            "uncalibrated_distribution_values": to_tensor(raw.distribution_values),
        }
    return v1.SequenceSimulation(
        tokens=simulation.tokens,
        expected_activations=to_tensor(simulation.expected_activations),
        activation_scale=ACTIVATION_SCALES.value(simulation.activation_scale),
        distribution_probabilities=to_tensor(
            simulation.distribution_probabilities.astype(np.float32)
        ),
        distribution_values=to_tensor(simulation.distribution_values),
        validity=report_message(report),
        **before,
    )


def report_message(report: ValidityReport) -> v1.ValidityReport:
    """How far a simulation can be relied on."""
    return v1.ValidityReport(
        valid_token_count=report.valid,
        missing_token_count=report.missing,
        malformed_token_count=report.malformed,
        token_count_by_reason=dict(report.tokens_by_reason),
    )


def cost_message(cost: SimulationCost) -> v1.SimulationCost:
    """What a simulation cost."""
    return v1.SimulationCost(
        call_count=cost.calls,
        prompt_tokens_computed=cost.prompt_tokens_computed,
        prompt_tokens_reused=cost.prompt_tokens_reused,
        completion_tokens=cost.completion_tokens,
        seconds=cost.seconds,
    )
