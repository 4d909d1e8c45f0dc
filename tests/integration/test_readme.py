"""What the READMEs show works as it is written there, on the demo deployment."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.load.processes import REPOSITORY

OURS = "/srv/explanations/ours"
"""Where an example stores explanations."""


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it stores them here."""
    return tmp_path_factory.mktemp("explanations") / "ours"


@pytest.fixture(scope="module")
def running(ours: Path) -> Iterator[dict[str, str]]:
    """The demo deployment on free ports; addresses by service."""
    ports = [f"--{name}-port=0" for name in ("http", "records", "scalars", "simulation")]
    config = str(REPOSITORY / "data" / "demo" / "deployment.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "services.launcher", "up", "--config", config, *ports],
        cwd=REPOSITORY,
        env=os.environ
        | {
            "NEUROPIL_ALLOWED_PATH_PREFIXES": json.dumps([str(ours.parent)]),
            "NEUROPIL_SIMULATION_STATE": str(ours.parent / "state"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        addresses: dict[str, str] = {}
        assert process.stdout is not None
        for line in process.stdout:
            name, _, address = line.strip().partition(" ")
            addresses[name] = address
            if {"ready", "records", "scalars", "simulation"} <= set(addresses):
                break
        yield addresses
    finally:
        process.terminate()
        process.communicate(timeout=60)


def examples(page: str, language: str) -> list[str]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("page", "count"), [("README.md", 1), ("clients/python/README.md", 7)])
def test_the_python_examples_run(
    page: str, count: int, running: dict[str, str], ours: Path, tmp_path: Path
) -> None:
    connect = ", ".join(f"{s}='{running[s]}'" for s in ("records", "scalars", "simulation"))
    found = examples(page, "python")
    assert len(found) == count
    for example in found:
        changed, number = re.subn(
            r"neuropil\.connect\([^)]*\)", f"neuropil.connect({connect})", example
        )
        changed = changed.replace('"127.0.0.1:50051"', repr(running["records"]))
        changed = changed.replace(f'"{OURS}"', repr(str(ours)))
        assert number == 1 or running["records"] in changed
        script = tmp_path / "example.py"
        script.write_text(changed, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        assert "nan" not in done.stdout
        if OURS in example:
            assert str(ours) in done.stdout
            assert list(ours.rglob("*.jsonl"))
        if "records.batch" in example:
            # Records and hits are shown, and not only the component that has none.
            assert all(each in done.stdout for each in ("mlp_post_act", "NOT_FOUND", "Bible"))
            assert len(done.stdout.splitlines()) > 3


def test_the_curl_example_runs(running: dict[str, str]) -> None:
    (example,) = [text for text in examples("README.md", "sh") if text.startswith("curl")]
    words = shlex.split(example.replace("\\\n", " "))
    assert "http://127.0.0.1:8000/neuron_record" in words
    words = [word.replace("http://127.0.0.1:8000", running["ready"]) for word in words]
    done = subprocess.run(words, capture_output=True, check=True, timeout=60)
    answer = orjson.loads(done.stdout)
    assert answer["topActivations"]
    assert answer["maxActivation"] > 0


def answers(page: str, running: dict[str, str]) -> list[dict[str, Any]]:
    """Of each curl example of a page."""
    found = []
    for example in examples(page, "sh"):
        words = shlex.split(example.replace("\\\n", " "))
        words = [word.replace("http://127.0.0.1:8000", running["ready"]) for word in words]
        done = subprocess.run(words, capture_output=True, check=True, timeout=60)
        found.append(orjson.loads(done.stdout))
    return found


def test_the_curl_examples_of_the_routes_run(running: dict[str, str]) -> None:
    explained, scored, scalars = answers("docs/http.md", running)
    told_explained, told_scored = map(orjson.loads, examples("docs/http.md", "json"))
    assert explained["explanations"] == told_explained["explanations"]
    assert explained["dataset"].endswith(told_explained["dataset"])
    assert scored["score"] == pytest.approx(told_scored["score"], abs=0.01)
    assert scored["datasetPath"].endswith(told_scored["datasetPath"])
    tokens = scalars["inferenceAndTokenData"]["tokensAsStrings"]
    assert len(scalars["derivedScalarsResponseData"]["activations"]) == len(tokens) > 1


def test_the_javascript_example_runs(running: dict[str, str], npm: str, tmp_path: Path) -> None:
    (example,) = examples("README.md", "js")
    assert "127.0.0.1:50051" in example
    install = [npm, "install", "--silent", "--no-audit", "--no-fund"]
    packages = re.findall(r"npm install ([^`]+)`", (REPOSITORY / "README.md").read_text())
    subprocess.run([*install, *packages[0].split()], cwd=tmp_path, check=True, timeout=120)
    script = tmp_path / "example.js"
    script.write_text(example.replace("127.0.0.1:50051", running["records"]))
    (tmp_path / "protos").symlink_to(REPOSITORY / "protos")
    done = subprocess.run(
        ["node", str(script)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Demo - MLP neurons" in done.stdout


def test_stubs_of_all_protos_can_be_generated(tmp_path: Path) -> None:
    protos = sorted(
        str(path.relative_to(root))
        for root in (REPOSITORY / "protos", REPOSITORY / "protos" / "third_party")
        for path in root.rglob("*.proto")
        if root.name == "third_party" or "third_party" not in path.parts
    )
    include = ["-I", "protos", "-I", "protos/third_party"]
    out = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *include, *out, *protos],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("*_pb2.py"))) == len(protos)


def test_every_link_leads_somewhere() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
