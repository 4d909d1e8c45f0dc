"""Fuzzes one target in this process: `python -m tests.fuzz.worker TARGET LIBFUZZER-ARGUMENTS`."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["shared", "services"]):
    from tests.fuzz.mutation import MUTATORS
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Run until libFuzzer's arguments say that it is enough, or an input fails."""
    name, *arguments = sys.argv[1:]
    mutator = MUTATORS.get(name)
    options: dict[str, Any] = {}
    if mutator is not None:

        def mutate(data: bytes, max_size: int, seed: int) -> bytes:
            return mutator(data, max_size, seed, atheris.Mutate)

        options["custom_mutator"] = mutate
    # To merge inputs libFuzzer starts this program again, by a shell: what it is to run.
    itself = shlex.join([sys.executable, "-m", "tests.fuzz.worker", name])
    atheris.Setup([itself, *arguments], TARGETS[name], **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
