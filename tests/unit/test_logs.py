"""What a process writes to its log, read from standard error as an operator gets it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

_PROGRAM = """
import logging, structlog
from shared.logs import configure_logs

configure_logs("records")

def parse(prompt):
    raise ValueError("a defect")

for log in (structlog.get_logger("ours"), logging.getLogger("a library's")):
    try:
        parse("what a caller" + " sent")
    except ValueError:
        log.exception("failed\\nlevel: fine")
"""


@pytest.fixture(scope="module")
def logged() -> str:
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert not ended.stdout
    return ended.stderr


def test_an_entry_is_one_line_of_json_whatever_is_in_it(logged: str) -> None:
    entries: list[dict[str, Any]] = [json.loads(line) for line in logged.splitlines()]
    assert [entry["event"] for entry in entries] == ["failed\nlevel: fine"] * 2
    assert {entry["level"] for entry in entries} == {"error"}
    assert all(entry["timestamp"] for entry in entries)


def test_a_trace_names_its_places_and_not_what_callers_sent(logged: str) -> None:
    for line in logged.splitlines():
        (raised,) = json.loads(line)["exception"]
        assert (raised["exc_type"], raised["exc_value"]) == ("ValueError", "a defect")
        assert raised["frames"][-1]["name"] == "parse"
    assert "what a caller sent" not in logged
