"""What commands say where a package that they need is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "package"),
    [(["up", "--config", "none.yaml"], "httpx"), (["demo", "--out", "none"], "jinja2")],
)
def test_a_command_names_the_package_and_how_to_get_it(arguments: list[str], package: str) -> None:
    # As if the package were not there: an import of it raises what it raises then.
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from services.launcher.cli import run\nsys.exit(run({arguments!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"neuropil: error: {arguments[0]} needs {package}, which is not installed; "
        "pip install 'neuropil-services[all]'\n"
    )
    assert not done.stdout
