"""`python -m tests.faults.bulk_crash`: a bulk run whose service is killed in the middle.

Real services in processes of their own, over the demo's records: the simulation service gets
SIGKILL while it scores, and is started again, until the run is done. What `make bulk-crash` runs.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import neuropil
from neuropil.simulation import v1
from services.simulation.bulk.journal import run_folder
from tests.emulators.running import free_port
from tests.faults.cheap_simulation import CALLS_FILE
from tests.load.processes import REPOSITORY, server

NEURON = "mlp_post_act"
CHEAP = "tests.faults.cheap_simulation"
KEY = "a run that is killed"
SENTENCES = (
    "names of animals",
    "words about the sea",
    "the word 'the'",
    "numbers and dates",
    "verbs in the past",
)
_READS = re.compile(
    r'^neuropil_rpc_seconds_count\{code="OK",method="GetTokenRecord",.*\} (\S+)$', re.MULTILINE
)


@dataclass
class CrashReport:
    """What became of the run."""

    components: int
    kills: int
    concurrency: int
    scored: set[int] = field(default_factory=set)
    told_before_a_kill: set[int] = field(default_factory=set)
    reused: set[int] = field(default_factory=set)
    failures: dict[int, str] = field(default_factory=dict)
    calls_of_results: int = 0
    calls_spent: int = 0
    records_read: int = 0
    """By the record service's own count: one for every time that an item was begun."""
    calls_of_simulator: int | None = None
    """By its own count, where it has one: with those that were lost with the service."""
    files_put: int = 0
    seconds: float = 0.0

    @property
    def repeated(self) -> int:
        """Items that were begun more than once."""
        return self.records_read - self.components

    def problems(self) -> Iterator[str]:
        """What it does not keep of what is promised."""
        if self.failures:
            yield f"{len(self.failures)} failed, such as {next(iter(self.failures.items()))}"
        if len(self.scored) != self.components:
            yield f"{self.components - len(self.scored)} are lost"
        if not self.told_before_a_kill <= self.reused:
            lost = self.told_before_a_kill - self.reused
            yield f"{len(lost)} were told of, and scored again"
        if not 0 <= self.repeated <= self.kills * self.concurrency:
            yield f"{self.repeated} were begun again; {self.kills * self.concurrency} may be"
        if self.calls_of_results != self.calls_spent:
            yield f"{self.calls_spent} calls counted, {self.calls_of_results} in the results"
        if self.calls_of_simulator is not None:
            vain = self.calls_of_simulator - self.calls_spent
            if not 0 <= vain <= self.kills * self.concurrency:
                yield f"{vain} calls of the simulator were made in vain"
        if self.files_put != self.components:
            yield f"{self.files_put} of {self.components} were stored"


def crash(
    folder: Path,
    *,
    components: int,
    kills: int,
    concurrency: int,
    module: str = "services.simulation",
) -> CrashReport:
    """Score explanations of the demo's neurons, and kill the service so often meanwhile.

    `module` runs the service, by default that of the embedding simulator; `CHEAP` has one that
    counts its own calls.
    """
    report = CrashReport(components, kills, concurrency)
    config = _deployment(folder)
    target = str(folder / "explanations")
    calls = folder / "calls"
    metrics = free_port()
    begun = time.monotonic()
    arguments = ("--config", str(config), "--port", "0", "--metrics-port")
    with server("services.records", *arguments, str(metrics)) as (records, _):
        with neuropil.connect(records=records) as client:
            requests = _requests(client, components)
        for remaining in range(kills, -1, -1):
            kill_at = len(report.scored) + max(1, (components - len(report.scored)) // 2)
            environment = {"NEUROPIL_SERVICES__RECORDS": records, CALLS_FILE: str(calls)}
            with server(module, *arguments, "0", environment=environment) as (address, process):
                _one_run(address, process, requests, target, report, kill_at if remaining else None)
        url = f"http://127.0.0.1:{metrics}/metrics"
        with urllib.request.urlopen(url) as answer:
            report.records_read = sum(
                int(float(count)) for count in _READS.findall(answer.read().decode())
            )
    if calls.exists():
        report.calls_of_simulator = calls.stat().st_size
    report.files_put = len(list((folder / "explanations").rglob("*.jsonl")))
    report.seconds = time.monotonic() - begun
    assert (folder / "state" / run_folder(KEY) / "run.json").exists()
    return report


def _one_run(
    address: str,
    process: int,
    requests: list[v1.ScoreExplanationRequest],
    target: str,
    report: CrashReport,
    kill_at: int | None,
) -> None:
    """Read the run until it ends, or until so many are scored: then the service is killed."""
    report.reused = set()
    told: set[int] = set()
    report.calls_of_results = 0
    with neuropil.connect(simulation=address) as client, suppress(neuropil.NeuropilError):
        events = client.simulation.bulk_score(
            requests,
            KEY,
            max_concurrency=report.concurrency,
            explanation_dataset=target,
        )
        with closing(events):
            for event in events:
                if isinstance(event, neuropil.BulkSummary):
                    report.calls_spent = event.spent.call_count
                if not isinstance(event, neuropil.BulkResult):
                    continue
                if event.scored is None:
                    report.failures[event.position] = event.failure
                    continue
                told.add(event.position)
                report.scored.add(event.position)
                report.calls_of_results += event.scored.provenance.cost.call_count
                if event.reused:
                    report.reused.add(event.position)
                if kill_at is not None and len(report.scored) >= kill_at:
                    os.kill(process, signal.SIGKILL)
                    report.told_before_a_kill |= told
                    return
    assert kill_at is None, "the run ended before its service was killed"


def _deployment(folder: Path) -> Path:
    demo = REPOSITORY / "data" / "demo"
    content = {
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
        "default_simulator": "embedding",
        "calibration": "none",
        "simulation_state": str(folder / "state"),
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _requests(client: neuropil.Client, count: int) -> list[v1.ScoreExplanationRequest]:
    neurons = [
        (layer, index)
        for layer in client.records.layers("demo", NEURON)
        for index in client.records.components("demo", NEURON, layer)
    ]
    assert len(neurons) >= count, f"the demo has {len(neurons)} neurons"
    return [
        client.simulation.score_request(
            SENTENCES[number % len(SENTENCES)], NEURON, *neuron, "demo", max_sequences=1
        )
        for number, neuron in enumerate(neurons[:count])
    ]


def main() -> int:
    """Run it, and say what became of it; status 1 where something is lost or done too often."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.bulk_crash")
    parser.add_argument("--components", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=4)
    arguments = parser.parse_args()
    least = arguments.kills * arguments.concurrency + 1
    if arguments.components < least:
        parser.error(f"--components: at least {least}, so that the run lasts until it is killed")
    with tempfile.TemporaryDirectory() as folder:
        report = crash(
            Path(folder),
            components=arguments.components,
            kills=arguments.kills,
            concurrency=arguments.concurrency,
        )
    print(
        f"{len(report.scored)} of {report.components} scored and {report.files_put} stored in "
        f"{report.seconds:.0f} s, the service killed {report.kills} times; "
        f"{report.repeated} begun again, at most {report.kills * report.concurrency} were running; "
        f"{report.calls_spent} calls counted"
    )
    problems = list(report.problems())
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
