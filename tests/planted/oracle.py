"""A simulator that knows what the explanations of the planted model mean."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.interface import (
    OneByOne,
    SimulatedSequence,
    SimulationCost,
    check_request,
)
from tests.planted.meaning import NEURONS, Meaning

ON = np.array([0.0] * 7 + [0.05, 0.15, 0.3, 0.5])
OFF = np.array([0.97, 0.03] + [0.0] * 9)
"""Probabilities of the values 0 to 10 where an explanation holds and where it doesn't."""

MEANINGS: Mapping[str, Meaning] = {
    meaning.explanation: meaning for layer in NEURONS for meaning in layer
}


class OracleSimulator(OneByOne):
    """Knows the words that an explanation means, but not how strongly each counts."""

    kind: ClassVar[str] = "oracle"
    has_exact_probabilities: ClassVar[bool] = True
    language_model: ClassVar[None] = None
    capabilities: ClassVar[tuple[str, ...]] = ()
    description: ClassVar[str] = "Knows what the explanations of the planted model mean."
    state: ClassVar[str] = "ready"

    def __init__(self, name: str = "oracle") -> None:
        self.name = name
        self.model = "oracle 1"
        self.prompt_version = ""

    def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to free."""

    async def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """One result a sequence."""
        check_request(explanation, sequences)
        meaning = MEANINGS[explanation]
        for tokens in sequences:
            holds = meaning.activations(tokens) > 0
            probabilities = np.where(holds[:, np.newaxis], ON, OFF)
            assert probabilities.shape == (len(tokens), NUM_VALUES)
            yield SimulatedSequence(tokens, probabilities, (), SimulationCost(calls=1))
