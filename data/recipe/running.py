"""Our own services, started for a step of the recipe and ended with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from data.recipe.layout import DEMO, REPOSITORY
from data.recipe.packages import RecipeError

DEPLOYMENT = DEMO / "deployment.yaml"


@contextmanager
def service(
    name: str,
    *options: str,
    config: Path = DEPLOYMENT,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run `services.<name>` on a free port; gives its address once it answers."""
    command = [sys.executable, "-m", f"services.{name}", "--config", str(config), "--port", "0"]
    command += ["--metrics-port", "0"]
    with open(log or "/dev/null", "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, *options],
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(f"serving {name} "):
                    yield line.split()[2]
                    return
            raise RecipeError(f"the {name} service ended before it served: run {' '.join(command)}")
        finally:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
