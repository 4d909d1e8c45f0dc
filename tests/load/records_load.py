"""`python -m tests.load.records_load`: what `make load-records` runs.

Runs locust without its page against the given service, or against one of its own over a copy of
the demo's data with a Redis of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tests.faults.processes import REPOSITORY, Redis, Replica

LOCUSTFILE = REPOSITORY / "tests" / "load" / "locustfile_records.py"


def main() -> int:
    """Run locust; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.records_load")
    parser.add_argument("--host", default="", help="HOST:PORT; default: a service of its own")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--spawn-rate", type=float, default=20, help="users a second")
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        host, environment = arguments.host, dict(os.environ)
        if not host:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            host = _serve(stack, folder)
            environment["NEUROPIL_LOAD_WRITES"] = "1"
        command = [
            *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"),
            *("--only-summary", "--host", host, "--users", str(arguments.users)),
            *("--spawn-rate", str(arguments.spawn_rate)),
            *("--run-time", f"{arguments.seconds}s", "--stop-timeout", "30"),
        ]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode


def _serve(stack: contextlib.ExitStack, folder: Path) -> str:
    """Start a service over a copy of the demo, which users may write to; gives its address."""
    demo = REPOSITORY / "data" / "demo"
    shutil.copytree(demo / "records", folder / "records")
    shutil.copytree(demo / "explanations", folder / "explanations")
    datasets = yaml.safe_load((demo / "deployment.yaml").read_text())["datasets"]
    deployment = folder / "deployment.yaml"
    deployment.write_text(yaml.safe_dump({"datasets": datasets}))
    cache = Redis(folder / "redis")
    stack.callback(cache.kill)
    cache.start()
    service = Replica(deployment, folder / "service.log", {"NEUROPIL_CACHE__URL": cache.url})
    stack.callback(service.stop)
    service.start()
    return f"127.0.0.1:{service.port}"


if __name__ == "__main__":
    sys.exit(main())
