"""Simulators that load at the same time do not break each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

_LOADS = """
import asyncio
from services.simulation.simulators.registry import SimulatorRegistry
from shared.settings import CausalLmSimulator, Deployment, TokenHeadSimulator

deployment = Deployment(
    simulators=(
        TokenHeadSimulator(name="head", kind="token_head", path="data/demo/token_head"),
        CausalLmSimulator(name="local", kind="causal_lm", path="data/demo/model"),
    )
)

async def load():
    simulators = SimulatorRegistry.from_deployment(deployment)
    simulators.start()
    while any(each.state == "loading" for each in simulators):
        await asyncio.sleep(0.02)
    print(sorted({each.state for each in simulators}))
    await simulators.close()

asyncio.run(load())
"""


@pytest.mark.torch
def test_simulators_that_load_side_by_side_become_ready() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    # A log line of the other thread may come after it.
    assert (done.returncode, "['ready']" in done.stdout.splitlines()) == (0, True), done.stderr
