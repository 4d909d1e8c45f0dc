"""`python -m tests.faults [SCENARIO ...]`: what `make faults-records` runs.

Prints the Markdown table of docs/reliability.md; ends with status 1 where a guarantee is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
import tempfile
from pathlib import Path

from tests.faults.measuring import HEADER
from tests.faults.scenarios import SCENARIOS
from tests.faults.setting import run_scenario


def main() -> int:
    """Run the named scenarios, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("scenarios", nargs="*", help="names; default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each scenario")
    parser.add_argument("--clients", type=int, default=64)
    arguments = parser.parse_args()
    unknown = set(arguments.scenarios) - set(SCENARIOS)
    if unknown:
        print(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
        return 2
    print(f"{datetime.date.today()}, {arguments.clients} clients, {arguments.seconds:.0f} s each\n")
    print(HEADER, flush=True)
    problems: list[str] = []
    for name in arguments.scenarios or SCENARIOS:
        with tempfile.TemporaryDirectory() as folder:
            report = asyncio.run(
                run_scenario(
                    SCENARIOS[name],
                    Path(folder),
                    seconds=arguments.seconds,
                    clients=arguments.clients,
                )
            )
        print(report.row(), flush=True)
        problems += [f"{name}: {problem}" for problem in report.problems]
    print("\n" + "\n".join(problems or ["No guarantee was broken."]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
