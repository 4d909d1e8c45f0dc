"""Fuzzes one target in this process: `python -m tests.fuzz.worker TARGET LIBFUZZER-ARGUMENTS`."""

from __future__ import annotations

import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["shared", "services"]):
    from tests.fuzz.mutation import mutated_json, mutated_request
    from tests.fuzz.targets import TARGETS

_MUTATORS: dict[str, Any] = {
    "records": mutated_json,
    "explanations": mutated_json,
    "requests": mutated_request,
}


def main() -> None:
    """Run until libFuzzer's arguments say that it is enough, or an input fails."""
    name, *arguments = sys.argv[1:]
    mutator = _MUTATORS.get(name)
    options: dict[str, Any] = {}
    if mutator is not None:

        def mutate(data: bytes, max_size: int, seed: int) -> bytes:
            changed: bytes = mutator(data, max_size, seed, atheris.Mutate)
            return changed

        options["custom_mutator"] = mutate
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name], **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
