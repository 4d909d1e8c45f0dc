"""The server of docs/simulators.md that is started by hand, as a process of its own."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest

from tests.emulators.openai_server import REPOSITORY


@pytest.mark.torch
def test_started_by_hand_it_refuses_long_prompts_as_others_do() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.emulators.openai_server", "--port", "0"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().split(" at ")[1].split(";")[0]
            for prompt, status in (("the Lord", 200), ("the Lord " * 200, 400)):
                body = {"model": "demo", "prompt": prompt, "max_tokens": 1, "logprobs": 5}
                answer = httpx.post(f"{base_url}/completions", json=body, timeout=60)
                assert answer.status_code == status, answer.text
            assert "maximum context length" in answer.json()["error"]["message"]
        finally:
            process.kill()
