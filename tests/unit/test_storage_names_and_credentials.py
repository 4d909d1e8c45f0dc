"""What a failing name server, or one that hands out tokens, says is no word about a record."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
import structlog

from services.records.storage.file_store import FileStore
from services.records.storage.folders import Folder
from services.records.storage.transport import Transport
from shared.errors import FailedPrecondition, Unavailable
from shared.settings import Storage
from tests.emulators.failing import CONTENT, Store


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were looked up, by a name server that knows none of an account."""
    names: list[str] = []
    really = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        names.append(host)
        if host.endswith(".blob.core.windows.net"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return really("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_an_endpoint_that_is_down_is_no_missing_blob(
    looked_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    up = Store()
    files = FileStore(up.settings(retries=0))
    folder = Folder.trusted("az://onlyhere/box/mlp")
    assert files.read(folder, "good") == CONTENT
    up.close()
    calls: list[Callable[[], object]] = [
        lambda: files.read(folder, "good"),
        lambda: files.read(folder, "good"),
        lambda: files.files(folder, "0"),
        lambda: files.update(folder, "1.jsonl", lambda content: b"x", seconds=5),
    ]
    for call in calls:
        with pytest.raises(Unavailable) as caught:
            call()
        assert caught.value.reason == "STORAGE_UNAVAILABLE"
    assert set(looked_up) == {"127.0.0.1"}, "nobody else is asked"


def test_an_account_whose_name_is_not_found(
    looked_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that fails may say so of any."""
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    files = FileStore(Storage(retries=0))
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            files.read(Folder.trusted("az://noaccount/box"), "0/1.json")
        assert caught.value.reason == "STORAGE_UNAVAILABLE"
    assert set(looked_up) == {"noaccount.blob.core.windows.net"}


@pytest.mark.parametrize("key", ["not-base64!", "abcde"])
def test_a_key_that_is_no_base64_is_no_outage(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", f"bad{len(key)}")
    monkeypatch.setenv("AZURE_STORAGE_KEY", key)
    store = Store()
    files = FileStore(store.settings(retries=0))
    with structlog.testing.capture_logs() as logs, pytest.raises(FailedPrecondition) as caught:
        files.read(Folder.trusted(f"az://bad{len(key)}/box"), "0/1.json")
    assert caught.value.reason == "STORAGE_ACCESS_DENIED"
    assert [entry["cause"] for entry in logs] == ["a key that is no base64"]
    assert key not in f"{caught.value.message} {logs}"
    store.close()


class Tokens:
    """Answers every request for a token with one status."""

    def __init__(self) -> None:
        self.status = 200
        self.asked = 0
        tokens = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                tokens.asked += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                body = b'{"error": "secret", "error_description": "secret AADSTS7000215"}'
                self.send_response(tokens.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                """Nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tokens]:
    made = Tokens()
    really = Transport._place

    def place(transport: Transport, url: str, headers: Any) -> tuple[str, str, dict[str, str]]:
        host, url, headers = really(transport, url, headers)
        if host == "login.microsoftonline.com":
            url = f"http://127.0.0.1:{made.server.server_port}/token"
        return host, url, headers

    monkeypatch.setattr(Transport, "_place", place)
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"):
        monkeypatch.setenv(name, "secret")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_credentials_that_get_no_token(tokens: Tokens, status: int) -> None:
    tokens.status = status
    store = Store()
    files = FileStore(store.settings(retries=0))
    try:
        with pytest.raises(FailedPrecondition) as caught:
            files.read(Folder.trusted(f"az://tokens{status}/box"), "good")
    finally:
        store.close()
    assert caught.value.reason == "STORAGE_ACCESS_DENIED"
    assert "secret" not in f"{caught.value.message} {caught.value.metadata}"
    assert tokens.asked == 1
    assert store.seen["good"] == 0


def test_tokens_that_can_not_be_had_now(tokens: Tokens) -> None:
    tokens.status = 503
    store = Store()
    files = FileStore(store.settings(retries=0))
    try:
        with pytest.raises(Unavailable) as caught:
            files.read(Folder.trusted("az://tokens/box"), "good")
    finally:
        store.close()
    assert caught.value.reason == "STORAGE_UNAVAILABLE"
