"""`python -m services.scalars`: derived scalars of a deployment's subject model."""

from __future__ import annotations

from services.scalars.app import scalar_services
from shared.rpc.command import run_command

if __name__ == "__main__":
    run_command("scalars", 50052, scalar_services)
