"""The simulation service with a simulator that costs little, and writes down each of its calls."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import numpy as np

from services.simulation.app import simulation_services
from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.interface import (
    OneByOne,
    SimulatedSequence,
    SimulationCost,
    check_request,
)
from services.simulation.simulators.registry import SimulatorRegistry
from shared.rpc.command import run_command
from shared.rpc.server import RpcService
from shared.settings import Deployment

CALLS_FILE = "BULK_CRASH_CALLS"
"""Variable with the path of the file that each call adds a byte to."""

_SECONDS = 0.02


class CheapSimulator(OneByOne):
    """A distribution a token that follows from its text alone."""

    kind: ClassVar[str] = "cheap"
    has_exact_probabilities: ClassVar[bool] = False
    description: ClassVar[str] = "Knows nothing."
    name = "cheap"
    model = "none"
    prompt_version = ""
    language_model = None
    capabilities = ()
    state = "ready"

    def start(self) -> None:
        """Nothing is loaded."""

    async def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """As `Simulator.simulate`; a call a sequence."""
        check_request(explanation, sequences)
        for tokens in sequences:
            # Outlives the process from here on, as what a server has been paid for does.
            _count_call()
            await asyncio.sleep(_SECONDS)
            values = [zlib.crc32(token.encode()) % NUM_VALUES for token in tokens]
            cost = SimulationCost(calls=1, prompt_tokens_computed=len(tokens), seconds=_SECONDS)
            yield SimulatedSequence(tokens, np.eye(NUM_VALUES)[values], cost=cost)

    async def close(self) -> None:
        """Nothing is held."""


def _count_call() -> None:
    with open(os.environ[CALLS_FILE], "ab", buffering=0) as calls:
        calls.write(b".")


@asynccontextmanager
async def _services(deployment: Deployment) -> AsyncIterator[Sequence[RpcService]]:
    registry = SimulatorRegistry([CheapSimulator()], "cheap")
    async with simulation_services(deployment, registry) as services:
        yield services


if __name__ == "__main__":
    run_command("simulation", 50053, _services)
