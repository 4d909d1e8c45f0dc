"""The fuzzers themselves, for some seconds: `make fuzz` runs the same for minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tests.fuzz.__main__ as fuzzing
from tests.conftest import REPOSITORY
from tests.fuzz.targets import TARGETS


def test_fuzzing_for_some_seconds_finds_nothing(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", "12", "--work", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    found = dict(re.findall(r"^(\w+): (\d+) executions", run.stdout, re.MULTILINE))
    assert set(found) == set(TARGETS)
    assert all(int(number) > 2 for number in found.values())


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


def test_what_reaches_something_new_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, corpus = tmp_path / "work" / "shapes", tmp_path / "corpus" / "shapes"
    found.mkdir(parents=True)
    corpus.mkdir(parents=True)
    (corpus / "known").write_bytes(bytes([0, 0, 0, 0, 0]))
    (found / "same").write_bytes(bytes([0, 0, 0, 0, 0]))
    (found / "new").write_bytes(bytes([3, 6, 0, 5, 0]))
    (found / "new and longer").write_bytes(bytes([3, 6, 0, 5, 0, 1, 1]))
    monkeypatch.setattr(fuzzing, "CORPUS", tmp_path / "corpus")
    monkeypatch.chdir(REPOSITORY)
    assert fuzzing.keep("shapes", tmp_path / "work") == 1
    kept = sorted(path.read_bytes() for path in corpus.iterdir())
    assert kept == [bytes([0, 0, 0, 0, 0]), bytes([3, 6, 0, 5, 0])]


def test_a_find_is_told_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fuzz(name: str, seconds: int, work: Path) -> tuple[int, str]:
        return (77, "AssertionError: what was found") if name == "shapes" else (0, "")

    kept: list[str] = []
    monkeypatch.setattr(fuzzing, "fuzz", fuzz)
    monkeypatch.setattr(fuzzing, "keep", lambda name, work: kept.append(name) or 0)
    names = ["records", "shapes"]
    monkeypatch.setattr("sys.argv", ["fuzz", *names, "--keep", "--work", str(tmp_path)])
    assert fuzzing.main() == 1
    assert kept == ["records"]
    assert "what was found" in capsys.readouterr().out


def test_what_does_not_end_is_a_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its time is over before the worker has started.
    monkeypatch.setattr(fuzzing, "_SECONDS_BESIDE", -0.9)
    monkeypatch.chdir(REPOSITORY)
    status, log = fuzzing.fuzz("shapes", 1, tmp_path)
    assert status != 0
    assert "did not end" in log
