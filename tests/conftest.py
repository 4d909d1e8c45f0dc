"""What tests find and need on a machine."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.emulators import azurite as azurite_emulator
from tests.emulators import gcs as gcs_emulator

REPOSITORY = Path(__file__).resolve().parents[1]

REQUIRE_ALL = os.environ.get("NEUROPIL_REQUIRE_ALL_TESTS") == "1"
"""Whether a test that the machine does not allow fails, as it must in continuous integration."""


def pytest_configure() -> None:
    """Let tests interrupt the programs that they start.

    A shell starts what runs in the background with SIGINT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave_out(reason: str) -> None:
    """Leave a test out, loudly; where nothing may be left out, fail it."""
    if REQUIRE_ALL:
        pytest.fail(f"may not be left out here: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference implementation's inputs and outputs."""
    folder = Path(os.environ.get("NEUROPIL_GOLDEN") or REPOSITORY.parent / "shared" / "golden")
    if not (folder / "SHA256SUMS").is_file():
        leave_out(f"THE GOLDEN DATA IS MISSING: no {folder}; set NEUROPIL_GOLDEN to its folder")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        leave_out("NO BROWSER: install chromium to test what a person sees")
    return str(found)


@pytest.fixture(scope="session")
def npm() -> str:
    """Path of Node.js's package manager."""
    found = shutil.which("npm")
    if found is None or shutil.which("node") is None:
        leave_out("NO NODE.JS: install nodejs and npm to test the contract from JavaScript")
    return str(found)


@pytest.fixture(scope="session")
def azurite_program() -> Path:
    """Azurite, installed; `tests.emulators.azurite.Azurite` runs it."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        leave_out("NO NODE.JS: install nodejs and npm to test Azure storage")
    return azurite_emulator.install(str(npm))


@pytest.fixture(scope="session")
def gcs_program() -> Path:
    """fake-gcs-server; `tests.emulators.gcs.FakeGcs` runs it."""
    found = gcs_emulator.program()
    if found is None:
        leave_out("NO GCS EMULATOR: its wheel has no program for this machine")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def azurite(
    azurite_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[azurite_emulator.Azurite]:
    """A running Azurite; tests share it and use containers of their own."""
    folder = tmp_path_factory.mktemp("azurite")
    with azurite_emulator.Azurite(azurite_program, folder) as running:
        yield running


@pytest.fixture(scope="session")
def gcs(
    gcs_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[gcs_emulator.FakeGcs]:
    """A running GCS emulator; tests share it and use buckets of their own."""
    folder = tmp_path_factory.mktemp("gcs")
    with gcs_emulator.FakeGcs(gcs_program, folder) as running:
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs torch, so that it can be left out where torch isn't installed."""
    for item in items:
        path = item.path.relative_to(REPOSITORY).as_posix()
        if any(part in path for part in NEEDS_TORCH):
            item.add_marker(pytest.mark.torch)


NEEDS_TORCH = (
    "test_scalars_",
    "test_simulation_",
    "test_planted_",
    "test_local_language_",
    "test_remote_language_",
    "test_language_model_",
    "test_launcher_score",
    "test_demo_",
    "test_collate_",
    "test_readme",
    "test_search_meaning",
)
"""Beginnings of the names of test files whose subjects compute."""

collect_ignore_glob: list[str] = []
if find_spec("torch") is None:
    # Their imports alone would fail.
    collect_ignore_glob += [f"*/{name}*" for name in NEEDS_TORCH]
if find_spec("atheris") is None:
    # The corpus is replayed without it; only development installs it.
    collect_ignore_glob.append("*/test_fuzz_run*")
