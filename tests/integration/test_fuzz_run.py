"""The fuzzers themselves, for some seconds: `make fuzz` runs the same for minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY


def test_fuzzing_for_some_seconds_finds_nothing(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", "6", "--work", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    found = dict(re.findall(r"^(\w+): (\d+) executions", run.stdout, re.MULTILINE))
    assert set(found) == {"records", "explanations", "requests", "shapes"}
    assert all(int(number) > 20 for number in found.values())


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "nothing", "--work", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "no target is called nothing" in run.stderr
