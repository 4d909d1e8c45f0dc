"""The load of many kinds of user, shortly."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.faults.processes import REPOSITORY


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: locust replaces sockets and threads by gevent's.
    return subprocess.run(
        [sys.executable, "-m", "tests.load.records_load", *arguments],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_kind_of_user_is_served() -> None:
    done = run("--users", "20", "--seconds", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    for method in (
        "GetTokenRecord",
        "GetTokenPairRecord",
        "BatchGetRecords",
        "ListExplanations",
        "ListComponents",
        "PutExplanation",
        "SearchExplanations",
    ):
        assert method in done.stdout + done.stderr


def test_a_service_that_is_not_there_ends_the_run_with_an_error() -> None:
    done = run("--host", "127.0.0.1:1", "--users", "2", "--seconds", "2")
    assert done.returncode != 0
