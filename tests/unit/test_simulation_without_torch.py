"""What the simulation service needs to start, and what is in its package."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_STARTS = """
import asyncio
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "tokenizers", "sentence_transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from services.simulation.app import simulation_services
from shared.settings import ChatSimulator, CompletionsSimulator, Deployment

server = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
deployment = Deployment(
    simulators=(
        ChatSimulator(name="chat", kind="chat", **server),
        CompletionsSimulator(name="completions", kind="completions", **server),
    )
)

async def start():
    async with simulation_services(deployment) as services:
        print(len(services))

asyncio.run(start())
"""


def test_servers_of_others_need_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STARTS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_all_that_is_no_code_is_in_the_package() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["*"]
    package = REPOSITORY / "services" / "simulation"
    files = [
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    ]
    assert {path.suffix for path in files} == {".txt", ".yaml"}
    for path in files:
        assert any(fnmatch(path.name, pattern) for pattern in patterns), path
        assert (path.parent / "__init__.py").exists(), path
