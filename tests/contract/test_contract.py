"""The contract: what is checked in is what the protos say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuropil.common import v1 as common
from neuropil.common.v1.derived_scalar_type_pb2 import DerivedScalarType
from neuropil.records import v1 as records
from neuropil.scalars import v1 as scalars
from neuropil.simulation import v1 as simulation
from tests.conftest import leave_out

REPOSITORY = Path(__file__).resolve().parents[2]
STUBS = REPOSITORY / "clients" / "python" / "src"


def tool(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.exists():
        leave_out(f"NO {name}: it comes with the extra dev")
    return str(path)


def test_the_generated_stubs_are_current(tmp_path: Path) -> None:
    tool("protoc-gen-mypy_grpc")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    generate = [sys.executable, str(REPOSITORY / "protos" / "generate.py"), str(tmp_path)]
    subprocess.run(generate, check=True, env=environment, capture_output=True)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*")}
    kept = {path.relative_to(STUBS) for path in STUBS.rglob("*_pb2*.py*") if path.suffix != ".pyc"}
    assert made == kept
    for path in made:
        assert (tmp_path / path).read_bytes() == (STUBS / path).read_bytes(), path


def test_a_breaking_change_is_noticed(tmp_path: Path) -> None:
    buf = tool("buf")
    for source in (REPOSITORY / "protos").rglob("*"):
        if source.is_file() and source.suffix in {".proto", ".yaml"}:
            target = tmp_path / source.relative_to(REPOSITORY / "protos")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    changed = tmp_path / "neuropil" / "common" / "v1" / "component.proto"
    text = changed.read_text()
    assert "int64 component_index = 3" in text
    changed.write_text(text.replace("int64 component_index = 3", "int64 component_index = 4"))
    built = subprocess.run([buf, "build", "-o", "-"], cwd=tmp_path, capture_output=True, check=True)
    image = REPOSITORY / "protos" / "image.binpb"
    found = subprocess.run(
        [buf, "breaking", "-#format=binpb", "--against", str(image)],
        cwd=tmp_path,
        input=built.stdout,
        capture_output=True,
        check=False,
    )
    assert found.returncode != 0
    assert b"component_index" in found.stdout


def test_every_derived_scalar_type_of_the_field_is_there() -> None:
    assert len(DerivedScalarType.items()) == 107
    assert common.DERIVED_SCALAR_TYPE_LOGITS == 1


@pytest.mark.parametrize(
    ("service", "methods"),
    [
        (
            records.DESCRIPTOR.services_by_name["RecordReader"],
            {"GetTokenRecord", "GetTokenPairRecord", "BatchGetRecords", "ListExplanations"},
        ),
        (
            scalars.DESCRIPTOR.services_by_name["DerivedScalars"],
            {"GetModelInfo", "ListScalarTypes", "Derive", "ListTopNodes", "BatchDerive"},
        ),
        (
            simulation.DESCRIPTOR.services_by_name["Simulation"],
            {"Simulate", "FitCalibration", "ApplyCalibration", "ScoreExplanation"},
        ),
    ],
)
def test_services_have_their_methods_and_say_that_they_may_be_repeated(
    service: object, methods: set[str]
) -> None:
    found = service.methods_by_name  # type: ignore[attr-defined]
    assert methods <= set(found)
    for method in found.values():
        assert method.GetOptions().idempotency_level != 0, method.full_name
