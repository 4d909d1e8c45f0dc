"""`neuropil demo` as a user runs it: done, interrupted, without space, with a dying service."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.launcher_running import Launch, launcher, refused


@pytest.fixture
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    with launcher(tmp_path_factory) as start:
        yield start


@pytest.mark.torch
def test_the_demo_does_the_main_job_and_leaves_only_its_report(
    launch: Launch, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    demo = launch("demo", "--out", str(out))
    assert demo.process.stdout is not None
    printed = demo.process.stdout.read()
    assert demo.wait() == 0, demo.log.read_text()
    assert demo.log.read_text() == ""
    for words in ("top token", "direct effect", "R² before", "R² after", "The report is in"):
        assert words in printed
    assert [path.name for path in out.iterdir()] == ["index.html"]
    assert (out / "index.html").read_text().rstrip().endswith("</html>")
    demo.assert_nothing_is_left()


@pytest.mark.torch
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_interrupted_leaves_nothing(
    launch: Launch, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "report"
    demo = launch("demo", "--out", str(out))
    while not any("serve simulation" in line for line in demo.pids().values()):
        time.sleep(0.01)
    if number == signal.SIGINT:
        time.sleep(6)  # Somewhere within the job, where the machine is not very busy.
    os.killpg(demo.process.pid, number)
    assert demo.wait() == code
    assert demo.words() == ["neuropil: the demo was stopped; nothing is left of it"]
    assert not out.exists()
    demo.assert_nothing_is_left()


@pytest.mark.torch
def test_a_demo_whose_service_dies_says_so(launch: Launch, tmp_path: Path) -> None:
    demo = launch("demo", "--out", str(tmp_path / "report"))
    scalars: list[int] = []
    while not scalars:
        scalars = [pid for pid, line in demo.pids().items() if "serve scalars" in line]
    os.kill(scalars[0], signal.SIGKILL)
    assert demo.wait() == 1
    words = demo.words()
    assert words[-1] == "neuropil: error: scalars: ended by itself with signal 9 (SIGKILL)"
    assert not (tmp_path / "report").exists()
    demo.assert_nothing_is_left()


@pytest.mark.torch
def test_a_demo_whose_report_finds_no_space_leaves_nothing(launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "report"
    program = (
        "import resource, sys\n"
        "from services.launcher.cli import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    demo = launch("demo", "--out", str(out), command=[sys.executable, "-c", program])
    assert demo.wait() == 1
    assert demo.words() == [f"neuropil: error: no report in {out}: File too large"]
    assert not out.exists()
    demo.assert_nothing_is_left()


def test_a_demo_that_can_not_be_done_is_one_line(launch: Launch, tmp_path: Path) -> None:
    config = tmp_path / "empty.yaml"
    config.touch()
    assert "--out: " in refused(launch, "demo", "--out", str(config))
    words = refused(launch, "demo", "--config", str(config), "--out", str(tmp_path / "report"))
    assert words.startswith("model: is missing")
    missing = str(tmp_path / "none.yaml")
    assert missing in refused(launch, "demo", "--config", missing, "--out", str(tmp_path / "r"))
