"""HTTP to blob stores: where it goes, how long it may take, how much it may bring."""

from __future__ import annotations

import io
import re
import threading
import time
from dataclasses import dataclass
from typing import Any

import structlog
import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError

from services.records.storage import metrics
from services.records.storage.circuit import Admission, Circuit
from services.records.storage.operation import (
    GivenUp,
    Operation,
    announce_connections,
    current,
)

AZURE_DOMAIN = ".blob.core.windows.net"
GCS_HOST = "storage.googleapis.com"

# A listing has at most 5,000 entries of some hundred bytes, a blob is asked for in bounded ranges.
MAX_ANSWER_BYTES = 96 * 2**20

# A caller who waited so long without an answer has seen a failure of the store.
_SILENCE_SECONDS = 2.0
_PIECE_BYTES = 2**20
# 429 is no failure of the store: Google answers so where one blob is written too often.
_REQUEST_TIMEOUT = 408
# What a server that hands out tokens says of credentials that are wrong, or of none.
_NO_CREDENTIALS = frozenset({400, 404})
_PARTIAL_CONTENT = 206
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Servers that answer in the place of the public ones, by their URL; None: the public ones."""

    azure: str | None = None
    gcs: str | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for a connection, for a silence, and for an operation with all its requests."""

    connect: float = 2.0
    read: float = 10.0
    operation: float = 30.0


class LeftAlone(Exception):
    """The store failed too often to be asked now."""


class AnswerTooLarge(Exception):
    """The store's answer is larger than anything that was asked for."""


class CredentialsRefused(Exception):
    """A server that hands out access tokens has none for the deployment's credentials."""


class BlobTooLarge(Exception):
    """The blob has `size` bytes, more than the `limit`."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit


class Transport(urllib3.PoolManager):
    """Connections of blobfile to all stores.

    Requests keep their Host header wherever they are sent. An answer is read whole, at most
    `MAX_ANSWER_BYTES`, and compared with the length that it announces. Blobs are asked for whole,
    by a range that ends behind them: an answer with a part only counts as one cut short, and a blob
    of more than `max_blob_bytes`, or than the operation takes, is not read. Raises LeftAlone,
    GivenUp, AnswerTooLarge, CredentialsRefused or BlobTooLarge, which blobfile passes on, and
    urllib3's errors, on which it tries again.
    """

    def __init__(
        self,
        endpoints: Endpoints = Endpoints(),
        timeouts: Timeouts = Timeouts(),
        *,
        connections: int = 16,
        max_blob_bytes: int = 2**26,
    ) -> None:
        super().__init__(num_pools=64, maxsize=connections, retries=False)
        announce_connections(self)
        self.max_blob_bytes = max_blob_bytes
        self._endpoints = endpoints
        self._timeouts = timeouts
        self._circuits: dict[str, Circuit] = {}
        self._lock = threading.Lock()

    def circuit(self, host: str) -> Circuit:
        """What is known of the store at a host."""
        with self._lock:
            if host not in self._circuits:
                self._circuits[host] = Circuit(on_change=lambda is_open: _report(host, is_open))
            return self._circuits[host]

    def request(self, method: str, url: str, **options: Any) -> Any:  # type: ignore[override]
        """As urllib3's; the answer has been read."""
        host, url, headers = self._place(url, options.get("headers"))
        operation = current() or Operation(self._timeouts.operation)
        circuit = self.circuit(host)
        left = operation.seconds_left()
        admission = circuit.enter()
        if admission is Admission.REFUSED:
            metrics.STORE_REQUESTS.labels(host, "not_sent").inc()
            raise LeftAlone(host)
        silence = self._timeouts.read
        if admission is Admission.TRIAL:
            # A store that hung before would hold up one caller a second for all of that time.
            silence = min(silence, self._timeouts.connect)
        begun = time.monotonic()
        try:
            answer = self._answer(
                operation,
                method,
                url,
                body=options.get("body"),
                headers=headers,
                timeout=urllib3.Timeout(
                    connect=min(self._timeouts.connect, left), read=min(silence, left)
                ),
            )
        except BlobTooLarge:
            self._answered(host, circuit, begun)
            raise
        except (HTTPError, OSError, GivenUp, AnswerTooLarge) as error:
            silent = time.monotonic() - begun >= _SILENCE_SECONDS
            given_up = operation.given_up or isinstance(error, GivenUp)
            if not given_up or silent:
                circuit.failed()
            metrics.STORE_REQUESTS.labels(host, "given_up" if given_up else "failed").inc()
            if given_up:
                raise GivenUp from error
            if isinstance(error, NewConnectionError):
                # blobfile would look up whether the account has a name, and take a store that it
                # can't find for one without the blob: be it for a failing name server, or as an
                # endpoint answers for accounts that nobody else knows.
                raise ProtocolError("no connection") from error
            raise
        finally:
            operation.ended_request()
        if answer.status >= 500 or answer.status == _REQUEST_TIMEOUT:
            circuit.failed()
            metrics.STORE_REQUESTS.labels(host, "failed").inc()
            return answer
        self._answered(host, circuit, begun)
        if answer.status in _NO_CREDENTIALS and not _is_store(host):
            raise CredentialsRefused(host)
        return answer

    def _answered(self, host: str, circuit: Circuit, begun: float) -> None:
        circuit.succeeded()
        metrics.STORE_REQUESTS.labels(host, "answered").inc()
        metrics.STORE_SECONDS.labels(host).observe(time.monotonic() - begun)

    def _place(self, url: str, headers: Any) -> tuple[str, str, dict[str, str]]:
        """The host that is asked for, the URL that is asked instead, and the headers."""
        asked = urllib3.util.parse_url(url)
        host = asked.host or ""
        endpoint = None
        if host.endswith(AZURE_DOMAIN):
            endpoint = self._endpoints.azure
        elif host == GCS_HOST:
            endpoint = self._endpoints.gcs
        headers = dict(headers or {})
        if endpoint is None:
            return host, url, headers
        return host, endpoint.rstrip("/") + asked.request_uri, {**headers, "Host": host}

    def _answer(
        self, operation: Operation, method: str, url: str, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        # A redirection could lead anywhere: it is an answer as any other, and no store's.
        response = super().request(
            method, url, preload_content=False, retries=False, redirect=False, **options
        )
        try:
            self._check_blob(response, operation)
            body = b"" if method == "HEAD" else _body(response, operation)
        except BaseException:
            response.close()
            raise
        operation.ended_request()
        response.release_conn()
        return urllib3.HTTPResponse(
            body=body or io.BytesIO(),
            headers=response.headers,
            status=response.status,
            request_method=method,
            enforce_content_length=False,
        )

    def _check_blob(self, response: urllib3.BaseHTTPResponse, operation: Operation) -> None:
        if response.status != _PARTIAL_CONTENT:
            return
        part = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if part is None:
            raise ProtocolError("a part of a blob without its range")
        first, last = int(part[1]), int(part[2])
        size = last + 1 if part[3] == "*" else int(part[3])
        limit = min(self.max_blob_bytes, operation.max_blob_bytes or self.max_blob_bytes)
        if size > limit:
            raise BlobTooLarge(size, limit)
        if (first, last) != (0, size - 1):
            raise ProtocolError(f"only {part[0]}")


def _is_store(host: str) -> bool:
    return host.endswith(AZURE_DOMAIN) or host == GCS_HOST


def _body(response: urllib3.BaseHTTPResponse, operation: Operation) -> bytes:
    announced = response.headers.get("Content-Length", "")
    if announced.isdigit() and int(announced) > MAX_ANSWER_BYTES:
        raise AnswerTooLarge
    pieces: list[bytes] = []
    size = 0
    while piece := response.read1(_PIECE_BYTES):
        size += len(piece)
        if size > MAX_ANSWER_BYTES:
            raise AnswerTooLarge
        pieces.append(piece)
        operation.seconds_left()
    body = b"".join(pieces)
    if "Content-Encoding" not in response.headers:
        if announced.isdigit() and size != int(announced):
            raise ProtocolError(f"{size} bytes came of {announced}")
        part = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 206 and part and size != int(part[2]) - int(part[1]) + 1:
            raise ProtocolError(f"{size} bytes came of the range {part[0]}")
    return body


def _report(host: str, is_open: bool) -> None:
    metrics.STORE_LEFT_ALONE.labels(host).set(is_open)
    if is_open:
        _log.warning("blob_store_left_alone", store=host)
    else:
        _log.info("blob_store_answers_again", store=host)
