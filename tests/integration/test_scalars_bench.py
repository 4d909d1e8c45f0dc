"""The measurement of derived scalars runs, and holds what a reader needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.load import scalars_bench, scalars_gpu_bench
from tests.load.processes import REPOSITORY
from tests.load.scalars_running import Row

JUDGED = re.compile(r"\b(pass|miss) \|")


@pytest.mark.timeout(300)
async def test_derived_scalars_are_measured() -> None:
    text = "\n".join(await scalars_bench.measure(scale=0.1))
    assert text.count("### ") == len(scalars_bench.ROWS)
    assert text.count(" F | <= ") == 3
    assert text.count(" FB | <= ") == 6
    assert text.count(" x | >= ") == 3
    assert text.count(" ms | <= 20 ") == 3
    assert text.count(" GB | <= ") == 1
    assert "not judged" in text
    assert not JUDGED.search(text)


def test_a_row_tells_whether_its_target_is_met() -> None:
    rows = [Row("x", 1.0, 0.9, "F", 1.0), Row("x", 1.0, 0.9, "F", at_least=1.0)]
    assert [JUDGED.findall(str(row)) for row in rows] == [["pass"], ["miss"]]
    assert not any(JUDGED.search(row.line(judged=False)) for row in rows)


def on_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.load.scalars_gpu_bench", *arguments],
        cwd=REPOSITORY,
        # As on a machine without a GPU.
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)
def test_the_measurement_on_a_gpu_holds_what_a_reader_needs() -> None:
    done = on_gpu("--device", "cpu", "--tiny", "--rounds", "1", "--clients", "1", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("### tiny-") == 4
    assert done.stdout.count(" FB | <= ") == 4 * 5
    assert done.stdout.count("TFLOP/s") == 4
    assert done.stdout.count("| >= 5 |") == 4
    assert not JUDGED.search(done.stdout)


def test_without_a_gpu_nothing_is_measured() -> None:
    done = on_gpu()
    assert done.returncode == scalars_gpu_bench.NO_GPU
    assert "no GPU" in done.stderr
