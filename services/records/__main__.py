"""`python -m services.records`: the record service of a deployment."""

from __future__ import annotations

from services.records.app import record_services
from shared.rpc.command import run_command

if __name__ == "__main__":
    run_command("records", 50051, record_services)
