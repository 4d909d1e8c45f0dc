"""The storage emulators: data outlives a kill, and a hang ends."""

from __future__ import annotations

from pathlib import Path

import blobfile
import pytest
import urllib3

from services.records.storage.transport import Endpoints, Transport
from tests.emulators.azurite import Azurite
from tests.emulators.gcs import FakeGcs
from tests.emulators.running import Emulator

PATHS = {"azurite": "az://acct/box/a b/é.json", "gcs": "gs://box/a b/é.json"}


@pytest.fixture(params=["azurite", "gcs"])
def emulator(request: pytest.FixtureRequest, tmp_path: Path) -> Emulator:
    program: Path = request.getfixturevalue(f"{request.param}_program")
    return (Azurite if request.param == "azurite" else FakeGcs)(program, tmp_path / "emulator")


def test_data_outlives_a_kill_and_a_hang_ends(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in emulator.environment.items():
        if not name.startswith("NEUROPIL_"):
            monkeypatch.setenv(name, value)
    azure = isinstance(emulator, Azurite)
    path = PATHS["azurite" if azure else "gcs"]
    with emulator:
        if isinstance(emulator, Azurite):
            emulator.create_container("acct", "box")
        elif isinstance(emulator, FakeGcs):
            emulator.create_bucket("box")
        emulator.put(path, b"content")
        emulator.flush()
        endpoints = Endpoints(
            azure=emulator.endpoint if azure else None, gcs=None if azure else emulator.endpoint
        )
        transport = Transport(endpoints)
        context = blobfile.create_context(
            get_http_pool=lambda: transport, retry_limit=0, save_access_token_to_disk=False
        )

        def content() -> bytes:
            return context.BlobFile(path, "rb").read()

        assert content() == b"content"
        emulator.kill()
        with pytest.raises((blobfile.Error, urllib3.exceptions.HTTPError)):
            content()
        emulator.start()
        assert content() == b"content"
        emulator.suspend()
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            urllib3.PoolManager(retries=False, timeout=0.2).request("GET", emulator.endpoint)
        emulator.resume()
        assert content() == b"content"
