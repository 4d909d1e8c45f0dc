"""A deployment of a tiny model, and its derived-scalars service in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.load.processes import server
from tests.unit.scalars_checkpoint import write_checkpoint


def write_deployment(folder: Path) -> Path:
    """Writes a model and the configuration that serves it; gives the latter."""
    write_checkpoint(folder / "model")
    (folder / "excluded.json").write_text(json.dumps([" the"]))
    path = folder / "deployment.yaml"
    model = {"name": "tiny", "path": "model", "device": "cpu", "excluded_tokens": "excluded.json"}
    path.write_text(yaml.safe_dump({"model": model}))
    return path


@contextmanager
def scalars_service(deployment: Path) -> Iterator[str]:
    """Runs the service; gives its address."""
    arguments = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
    with server("services.scalars", *arguments, environment={"OMP_NUM_THREADS": "1"}) as (
        address,
        _,
    ):
        yield address
