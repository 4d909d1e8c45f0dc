"""The measurement of derived scalars runs, and holds what a reader needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.load import scalars_bench, scalars_gpu_bench
from tests.load.processes import REPOSITORY


@pytest.mark.timeout(300)
async def test_derived_scalars_are_measured() -> None:
    text = "\n".join(await scalars_bench.measure(scale=0.2))
    assert text.count("### ") == len(scalars_bench.ROWS)
    assert text.count(" F | <= ") == 3
    assert text.count(" FB | <= ") == 6
    assert text.count(" x | >= ") == 3
    assert text.count(" ms | <= 20 ") == 3
    assert text.count(" GB | <= ") == 1


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
    assert done.stdout.count("| >= 5 ") == 4


def test_without_a_gpu_nothing_is_measured() -> None:
    done = on_gpu()
    assert done.returncode == scalars_gpu_bench.NO_GPU
    assert "no GPU" in done.stderr
