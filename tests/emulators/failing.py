"""A blob store that hangs, lies, stammers or sends garbage, as no emulator does on request."""

from __future__ import annotations

import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from shared.settings import Storage

CONTENT = b"content"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *args: Any) -> None:
        """Nothing: clients that give up are what is tested."""


class Store:
    """Answers as Azure does, but for blobs whose names say otherwise."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.seen: Counter[str] = Counter()
        self.hosts: set[str] = set()
        self.broken = False
        self.throttled = False
        self.denied: set[str] = set()
        self.drops = 0
        self.closed = False
        self.folders: list[str] | None = None
        self.hanging_hosts: set[str] = set()
        self.go_on = threading.Event()
        self.server = Server(("127.0.0.1", 0), handler_of(self))
        self._scheme = "https" if tls else "http"
        if tls:
            self.server.socket = tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server.server_port}"

    def settings(self, **options: Any) -> Storage:
        chosen = {"read_timeout_seconds": 60.0, "timeout_seconds": 60.0, **options}
        return Storage(azure_endpoint=self.endpoint, gcs_endpoint=self.endpoint, **chosen)

    def close(self) -> None:
        self.closed = True
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()


def handler_of(store: Store) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            url = urlsplit(self.path)
            name = unquote(url.path).rsplit("/", 1)[-1]
            store.seen[name] += 1
            store.hosts.add(self.headers["Host"])
            if self.headers["Host"].split(".")[0] in store.hanging_hosts or name == "hangs":
                store.go_on.wait(60)
                self.close_connection = True
                return
            if store.closed or store.drops > 0:
                store.drops -= 1
                self.close_connection = True
            elif name in store.denied:
                self.send(403, b"secret detail")
            elif store.throttled and self.command != "HEAD":
                self.send(429, b"secret detail")
            elif "maxresults=1" in url.query or self.command == "HEAD":
                self.send(200, CONTENT)
            elif store.broken:
                self.send(503, b"secret detail")
            elif store.folders is not None:
                prefix = parse_qs(url.query)["prefix"][0]
                names = [f"{prefix}{name}/" for name in store.folders]
                self.send(200, msgspec.json.encode({"prefixes": names}))
            elif "comp=list" in url.query or url.path.endswith("/o"):
                self.send(200, b"<garbage" if "comp" in url.query else b"{garbage")
            else:
                BEHAVIOURS.get(name, whole)(self)

        def send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.send_header("Last-Modified", "Sat, 21 Nov 2026 10:00:00 GMT")
            self.send_header("ETag", '"0x8DC0FFEE"')
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Nothing: pytest's output is for failures."""

    return Handler


WHOLE = f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"


def whole(handler: Any) -> None:
    handler.send(206, CONTENT, Content_Range=WHOLE)


def truncated(handler: Any) -> None:
    handler.send(206, CONTENT[:3], len(CONTENT), Content_Range=WHOLE)
    handler.close_connection = True


def too_short_a_range(handler: Any) -> None:
    handler.send(206, CONTENT[:3], Content_Range=WHOLE)


def more_than_asked_for(handler: Any) -> None:
    handler.send(206, b"x" * (5 * 2**20), Content_Range=WHOLE)


def endless(handler: Any) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", WHOLE)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b"x" * 2**20)


def dripping(handler: Any) -> None:
    handler.send(206, b"", 1000, Content_Range="bytes 0-999/1000")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def redirected(handler: Any) -> None:
    handler.send(302, b"", Location="http://127.0.0.1:9/secret")


def bomb(handler: Any) -> None:
    """A gigabyte, packed."""
    packed = zlib.compressobj(9, wbits=31)
    megabyte = bytes(2**20)
    body = b"".join([*(packed.compress(megabyte) for _ in range(2**10)), packed.flush()])
    handler.send(
        206, body, Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}", Content_Encoding="gzip"
    )


def babbling(handler: Any) -> None:
    handler.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")
    handler.close_connection = True


BEHAVIOURS: dict[str, Callable[[Any], None]] = {
    "announces-too-much": lambda handler: handler.send(206, CONTENT, 10**12, Content_Range=WHOLE),
    "dripping": dripping,
    "endless": endless,
    "more-than-asked-for": more_than_asked_for,
    "babbling": babbling,
    "redirected": redirected,
    "too-short-a-range": too_short_a_range,
    "truncated": truncated,
    "whole-with-200": lambda handler: handler.send(200, CONTENT),
    "middle": lambda handler: handler.send(206, CONTENT, Content_Range="bytes 5-11/12"),
    "only-a-part": lambda handler: handler.send(206, CONTENT, Content_Range="bytes 0-6/12"),
    "part-without-range": lambda handler: handler.send(206, CONTENT),
    "conflict": lambda handler: handler.send(409, b"", x_ms_error_code="Other"),
    "teapot": lambda handler: handler.send(418, b"secret detail"),
}


# Its body never comes.
BAD = sorted(BEHAVIOURS)
BEHAVIOURS["bomb"] = bomb
BEHAVIOURS["says-it-is-large"] = lambda handler: handler.send(
    206, b"", 2**20, Content_Range=f"bytes 0-{2**20 - 1}/{10**12}"
)
