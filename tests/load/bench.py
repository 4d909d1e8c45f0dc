"""`python -m tests.load.bench [SECTION ...]`: what `make bench` runs.

Every figure is compared with a floor that is measured in the same run, because absolute figures
move with the machine and its neighbours. Prints Markdown; docs/performance.md keeps what it printed
(with a date).
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import uvloop

from tests.load import (
    gateway_bench,
    records_bench,
    redis_client_bench,
    scalars_bench,
    simulation_bench,
)

SECTIONS: dict[str, Callable[[], Awaitable[list[str]]]] = {
    "records": records_bench.measure,
    "redis-client": redis_client_bench.measure,
    "scalars": scalars_bench.measure,
    "simulation": simulation_bench.measure,
    "gateway": gateway_bench.measure,
}


def main(names: list[str]) -> int:
    """Run the named sections, or all."""
    unknown = set(names) - set(SECTIONS)
    if unknown:
        print(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
        return 2
    for name in names or SECTIONS:
        print(f"\n## {name}", flush=True)
        print("\n".join(uvloop.run(SECTIONS[name]())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
