"""The search's index where its service is ended in the middle of something."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import neuropil
from neuropil.names import component_id
from neuropil.records import v1
from services.records.search.documents import FileKey, Text
from services.records.search.index import ExplanationIndex
from shared.formats.encoding import encode
from shared.formats.records import NeuronId
from shared.formats.simulations import (
    NeuronSimulationResults,
    ScoredExplanation,
    ScoredSimulation,
)
from shared.rpc.server import DRAIN_SECONDS
from tests.faults.processes import Replica

MLP = "mlp_post_act"
FILES, KEPT = 800, 20_000


def deployed(root: Path) -> Path:
    (root / "expl").mkdir(exist_ok=True)
    dataset = {
        "short_name": "demo",
        "derived_scalar_type": MLP,
        "user_visible_name": "Demo",
        "neuron_dataset_path": "records",
        "explanation_dataset_paths": ["expl"],
    }
    search = {"semantic": False, "index_path": "index"}
    path = root / "deployment.yaml"
    path.write_text(yaml.safe_dump({"datasets": [dataset], "search": search}))
    return path


def explain(root: Path, count: int) -> None:
    for number in range(count):
        path = root / "expl" / str(number % 8) / f"{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [ScoredExplanation(f"cat {number}", ScoredSimulation([], 0.5))]
        path.write_bytes(encode(NeuronSimulationResults(NeuronId(number, number % 8), texts)))


def keep(root: Path, count: int) -> None:
    """An index of files that are gone by now."""
    index = ExplanationIndex(root / "index", "")
    folder = index.folder(str(root / "expl"))
    for number in range(0, count, 100):
        texts = [Text(f"cat {each}", 0.5) for each in range(number, number + 100)]
        index.replace(FileKey(folder, 0, number), "v1", texts)
    index.commit()
    index.close()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    made = Replica(deployed(tmp_path), tmp_path / "log", {})
    yield made
    made.stop()


def is_held(root: Path) -> bool:
    """Whether a process has the index open: SQLite removes its log with the last one."""
    return bool(list((root / "index").glob("*-wal")))


def documents(root: Path) -> int:
    with sqlite3.connect(root / "index" / "explanations.sqlite3") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (count,) = database.execute("SELECT count(*) FROM documents").fetchone()
        # What was read of a file is there whole: the file and its explanations.
        (files,) = database.execute("SELECT count(*) FROM files").fetchone()
        (of_files,) = database.execute(
            "SELECT count(DISTINCT layer || ' ' || component) FROM documents"
        ).fetchone()
        assert files == of_files
    number: int = count
    return number


def end(replica: Replica, number: signal.Signals = signal.SIGTERM) -> float:
    began = time.monotonic()
    replica.signal(number)
    assert replica.ended() == 0
    assert not replica.unexpected_log_lines()
    return time.monotonic() - began


@pytest.mark.parametrize("wait_seconds", [0.0, 0.3])
def test_an_index_that_is_being_loaded_is_closed(
    tmp_path: Path, replica: Replica, wait_seconds: float
) -> None:
    keep(tmp_path, KEPT)
    replica.start()
    time.sleep(wait_seconds)
    assert end(replica) < DRAIN_SECONDS
    assert not is_held(tmp_path)
    index = ExplanationIndex(tmp_path / "index", "")
    index.load()
    # Its files are gone: how many of them were forgotten depends on when it ended.
    assert index.count()[0] in range(KEPT + 1)
    assert "search_index_replaced" not in replica.log.read_text()
    index.close()


def test_an_index_that_is_being_built_is_closed_and_goes_on_where_it_was(
    tmp_path: Path, replica: Replica
) -> None:
    explain(tmp_path, FILES)
    replica.start()
    time.sleep(0.5)
    assert end(replica) < DRAIN_SECONDS
    assert not is_held(tmp_path)
    assert 0 <= documents(tmp_path) <= FILES
    replica.start()
    assert searched(replica) == FILES
    end(replica, signal.SIGINT)
    assert documents(tmp_path) == FILES


def test_an_index_whose_service_is_killed_goes_on_too(tmp_path: Path, replica: Replica) -> None:
    explain(tmp_path, FILES)
    replica.start()
    time.sleep(0.5)
    os.kill(replica.pid, signal.SIGKILL)
    replica.ended()
    replica.start()
    assert searched(replica) == FILES
    end(replica)
    assert documents(tmp_path) == FILES
    assert "search_index_replaced" not in replica.log.read_text()


def test_a_second_replica_answers_as_the_first_and_leaves_the_folder_to_it(
    tmp_path: Path, replica: Replica
) -> None:
    explain(tmp_path, 20)
    second = Replica(tmp_path / "deployment.yaml", tmp_path / "log 2", {})
    replica.start()
    assert searched(replica) == 20
    try:
        second.start()
        assert searched(second) == 20
        assert "another process has it" in second.log.read_text()
        end(second)
        assert searched(replica) == 20
    finally:
        second.stop()
    end(replica)
    assert documents(tmp_path) == 20


def searched(replica: Replica) -> int:
    """How many explanations there are, once all are indexed."""
    with neuropil.connect(records=f"127.0.0.1:{replica.port}", timeout=30) as client:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            hits, complete = _search(client)
            if complete:
                return hits
            time.sleep(0.1)
    raise TimeoutError(f"not complete: {hits}")


def _search(client: neuropil.Client) -> tuple[int, bool]:
    scalar_type = component_id(MLP, 0, 0).derived_scalar_type
    answer = client.records.stub.SearchExplanations(
        v1.SearchExplanationsRequest(
            dataset=v1.DatasetId(dataset="demo", derived_scalar_type=scalar_type), query="cat"
        )
    )
    assert answer.num_matches == answer.index.num_explanations or not answer.index.complete
    return answer.num_matches, answer.index.complete
