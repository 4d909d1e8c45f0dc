"""Reading from a blob store over HTTP: a small server that answers as Azure's does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from services.records.storage.blobs import FileStore
from services.records.storage.folders import Folder
from shared.errors import ResourceExhausted, Unavailable
from shared.settings import Storage

BLOBS = {"/box/mlp/0/1.json": b"content", "/box/mlp/10/2.json": b"x" * 200}


class AzureLike(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hosts: set[str]
    broken = False

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        type(self).hosts.add(self.headers["Host"])
        status, body = 200, BLOBS.get(path)
        if type(self).broken:
            status, body = 503, b"secret detail"
        elif query.get("comp") == ["list"]:
            body = listing(path, query.get("prefix", [""])[0])
        elif body is None:
            status, body = 404, b""
        elif "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            status, body = 206, body[int(first) : int(last) + 1 if last else None]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 10:00:00 GMT")
        self.send_header("x-ms-creation-time", "Sat, 21 Nov 2026 10:00:00 GMT")
        self.send_header("ETag", '"0x8DC0FFEE"')
        if status == 404:
            self.send_header("x-ms-error-code", "BlobNotFound")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing: pytest's output is for failures."""


def listing(container: str, prefix: str) -> bytes:
    names = [path.removeprefix(f"{container}/") for path in BLOBS]
    rest = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    folders = sorted({part.split("/")[0] for part in rest if "/" in part})
    entries = "".join(f"<BlobPrefix><Name>{prefix}{name}/</Name></BlobPrefix>" for name in folders)
    for name in sorted(part for part in rest if "/" not in part):
        entries += (
            f"<Blob><Name>{prefix}{name}</Name><Properties><Content-Length>1</Content-Length>"
            "<Last-Modified>Sat, 21 Nov 2026 10:00:00 GMT</Last-Modified>"
            "<Creation-Time>Sat, 21 Nov 2026 10:00:00 GMT</Creation-Time>"
            "<Etag>0x8DC0FFEE</Etag></Properties></Blob>"
        )
    text = f"<EnumerationResults><Blobs>{entries}</Blobs><NextMarker /></EnumerationResults>"
    return text.encode()


@pytest.fixture
def handler() -> type[AzureLike]:
    return type("Handler", (AzureLike,), {"hosts": set()})


@pytest.fixture
def store(handler: type[AzureLike], monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStore]:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acct")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    endpoint = f"http://127.0.0.1:{server.server_port}"
    yield FileStore(Storage(azure_endpoint=endpoint), max_bytes=100)
    server.shutdown()
    server.server_close()


FOLDERS = [
    Folder.trusted("https://acct.blob.core.windows.net/box/mlp"),
    Folder.trusted("az://acct/box/mlp/"),
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.path)
def test_files_and_folders(store: FileStore, handler: type[AzureLike], folder: Folder) -> None:
    assert store.read(folder, "0/1.json") == b"content"
    assert store.read(folder, "0/2.json") is None
    assert sorted(store.folders(folder)) == ["0", "10"]
    assert store.files(folder, "0") == ["1.json"]
    assert store.files(folder, "5") is None
    assert handler.hosts == {"acct.blob.core.windows.net"}


def test_a_blob_that_is_too_large(store: FileStore) -> None:
    with pytest.raises(ResourceExhausted, match="200 bytes"):
        store.read(FOLDERS[0], "10/2.json")


def test_a_store_that_fails_is_unavailable(store: FileStore, handler: type[AzureLike]) -> None:
    handler.broken = True
    for call in (store.read, store.files):
        with pytest.raises(Unavailable) as caught:
            call(FOLDERS[0], "0/1.json")
        assert caught.value.reason == "STORAGE_UNAVAILABLE"
        assert "secret" not in caught.value.message
