"""`neuropil score` as a user runs it, against services that run, and with those of its own."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.emulators.running import free_port
from tests.faults.bulk_crash import NEURON
from tests.faults.cheap_simulation import CALLS_FILE
from tests.integration.launcher_running import NEUROPIL
from tests.load.processes import REPOSITORY, server

CHEAP = [sys.executable, "-m", "tests.faults.cheap_simulation"]


class Score:
    """Services beside the demo's records, and the command that uses them."""

    def __init__(self, folder: Path, records: str) -> None:
        self.folder = folder
        self.records = records
        self.port = free_port()
        demo = REPOSITORY / "data" / "demo"
        self.config = folder / "deployment.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "datasets": [
                        {
                            "short_name": "demo",
                            "derived_scalar_type": NEURON,
                            "user_visible_name": "demo",
                            "neuron_dataset_path": str(demo / "records" / "mlp"),
                            "explanation_dataset_paths": [str(folder / "explanations")],
                        }
                    ],
                    "simulators": [{"name": "embedding", "kind": "embedding"}],
                    "simulation_state": str(folder / "state"),
                }
            )
        )
        self.service: subprocess.Popen[bytes] | None = None

    def start_service(self) -> None:
        self.service = subprocess.Popen(
            [*CHEAP, "--config", str(self.config), "--port", str(self.port), "--metrics-port", "0"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "NEUROPIL_SERVICES__RECORDS": self.records,
                CALLS_FILE: str(self.folder / "calls"),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill_service(self) -> None:
        assert self.service is not None
        self.service.kill()
        self.service.wait()

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        addresses = ["--address", f"127.0.0.1:{self.port}", "--records-address", self.records]
        return subprocess.Popen(
            [*NEUROPIL, "score", *arguments, *addresses, "--config", str(self.config)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, list[list[str]], str]:
        """Exit code, the printed rows, and what was told."""
        process = self.begin(*arguments)
        printed, told = process.communicate(timeout=120)
        return process.returncode, [line.split("\t") for line in printed.splitlines()], told

    def calls(self) -> int:
        path = self.folder / "calls"
        return path.stat().st_size if path.exists() else 0


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Score]:
    folder = tmp_path_factory.mktemp("score")
    running = Score(folder, "")
    with server(
        "services.records", "--config", str(running.config), "--port", "0", "--metrics-port", "0"
    ) as (records, _):
        running.records = records
        running.start_service()
        yield running
        running.kill_service()


def rows_of(*indices: int, text: str = "names") -> str:
    lines = [f"0,{index},{text} {index}" for index in indices]
    return "\n".join(["layer,component,explanation", *lines, ""])


@pytest.mark.torch
def test_a_budget_stops_it_and_the_same_key_goes_on(score: Score, tmp_path: Path) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out"
    file.write_text(rows_of(*range(7), 10**6))
    usual = ["--dataset", "demo", "--out", str(out), "--max-sequences", "1"]
    usual += ["--calibration", "none", "--concurrency", "1"]
    keyed = [str(file), *usual]
    before = score.calls()
    code, rows, told = score.run(*keyed, "--budget-calls", "6")
    assert code == 0, told
    assert "the budget of calls is used up" in told
    statuses = [row[6] for row in rows[1:]]
    done = statuses.count("scored")
    assert 1 <= done < 7
    assert statuses.count("left") == 8 - done

    code, rows, told = score.run(*keyed, "--put-to", str(score.folder / "explanations"))
    assert code == 1
    assert "1 failed" in told
    statuses = [row[6] for row in rows[1:]]
    assert statuses == ["reused"] * done + ["scored"] * (7 - done) + ["failed"]
    assert str(10**6) in rows[8][7]
    content = json.loads((out / "scores.json").read_text())
    assert content["spent"]["calls"] == score.calls() - before
    with (out / "scores.csv").open(newline="") as csv_file:
        assert [row["put"] for row in csv.DictReader(csv_file)] == ["stored"] * 7 + [""]
    assert (out / "scores.png").stat().st_size > 1000

    first, *_, last = content["scores"]
    assert (first["simulator"], first["calibration"]) == ("cheap", "none")
    assert first["r_squared"] is not None
    assert (last["simulator"], last["r_squared"]) == ("", None)

    # What was stored is an explanation of the dataset, which can be scored by its name.
    code, rows, told = score.run("--layer", "0", "--limit", "1", *usual, "--key", "a key")
    assert code == 0, told
    assert [row[:2] for row in rows[1:]] == [["mlp_post_act 0:0", "names 0"]]
    assert json.loads((out / "scores.json").read_text())["key"] == "a key"


@pytest.mark.torch
def test_a_service_that_is_killed_meanwhile_is_called_again(score: Score, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text(rows_of(*range(100), text="long"))
    before = score.calls()
    process = score.begin(
        *(str(file), "--dataset", "demo", "--out", str(tmp_path / "out"), "--max-sequences", "1"),
        *("--calibration", "none", "--concurrency", "2"),
    )
    deadline = time.monotonic() + 60
    while score.calls() - before < 30 and time.monotonic() < deadline:
        time.sleep(0.01)
    score.kill_service()
    score.start_service()
    printed, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert "doesn't answer, trying for 60 seconds" in told
    assert len(printed.splitlines()) == 101
    spent = json.loads((tmp_path / "out" / "scores.json").read_text())["spent"]["calls"]
    assert 0 <= score.calls() - before - spent <= 2


@pytest.mark.torch
def test_ctrl_c_ends_it_and_says_how_to_go_on(score: Score, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text(rows_of(*range(200), text="stopped"))
    before = score.calls()
    process = score.begin(
        *(str(file), "--dataset", "demo", "--out", str(tmp_path / "out"), "--max-sequences", "1"),
        *("--calibration", "none", "--concurrency", "1"),
    )
    deadline = time.monotonic() + 60
    while score.calls() - before < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "the same command again goes on with it" in told
    assert "Traceback" not in told


@pytest.mark.torch
def test_what_was_proposed_is_kept_for_the_same_command(score: Score, tmp_path: Path) -> None:
    out = tmp_path / "out"
    usual = ["--dataset", "demo", "--layer", "1", "--limit", "2", "--propose", "--out", str(out)]
    usual += ["--max-sequences", "1", "--calibration", "none"]
    code, rows, told = score.run(*usual)
    assert code == 0, told
    assert [row[0] for row in rows[1:]] == ["mlp_post_act 1:0", "mlp_post_act 1:1"]
    assert all(row[1] for row in rows[1:])
    (kept,) = out.glob("proposed-*.jsonl")
    lines = [line for line in kept.read_text(encoding="utf-8").split("\n") if line]
    first = json.loads(lines[0])
    (explained,) = first["explanations"]
    assert explained["provenance"]["explainer"] == "context"
    # A sign that ends lines elsewhere, and fewer components: nothing is asked for again.
    explained["text"] = "one line\u2028and another"
    kept.write_text(json.dumps(first, ensure_ascii=False), encoding="utf-8")
    before = kept.read_bytes()
    code, _, told = score.run(*usual[:5], "1", *usual[6:])
    assert code == 0, told
    (only,) = json.loads((out / "scores.json").read_text(encoding="utf-8"))["scores"]
    assert only["explainer"] == "context"
    assert (only["explanation"], only["status"]) == (explained["text"], "scored")
    assert kept.read_bytes() == before
    # As a crash leaves it.
    kept.write_text(f"{lines[0]}\n{lines[1][:-20]}", encoding="utf-8")
    code, again, told = score.run(*usual)
    assert code == 0, told
    assert [row[6] for row in again[1:]] == ["reused", "reused"]
    assert [row[:6] for row in again[1:]] == [row[:6] for row in rows[1:]]
