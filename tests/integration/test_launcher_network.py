"""The launcher where there is no network at all, not even loopback's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, leave_out

WITHOUT_NETWORK = ["unshare", "--net", "--map-root-user"]


@pytest.mark.parametrize("command", ["up", "demo"])
def test_without_loopback_it_says_so_and_ends(command: str, tmp_path: Path) -> None:
    if subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, check=False).returncode:
        leave_out("NO NETWORK NAMESPACES: unshare is not permitted here")
    config = tmp_path / "deployment.yaml"
    config.write_text("")
    options = {"up": ["--config", str(config)], "demo": ["--out", str(tmp_path / "report")]}
    done = subprocess.run(
        [*WITHOUT_NETWORK, sys.executable, "-m", "services.launcher", command, *options[command]],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 2, done.stderr
    assert "is its loopback interface up?" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report").exists()
