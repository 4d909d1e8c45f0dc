"""`python -m services.simulation`: the simulation service of a deployment."""

from __future__ import annotations

from services.simulation.app import simulation_services
from shared.rpc.command import run_command

if __name__ == "__main__":
    run_command("simulation", 50053, simulation_services)
