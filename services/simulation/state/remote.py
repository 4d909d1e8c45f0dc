"""State in a blob store of Azure or Google, through blobfile."""

from __future__ import annotations

import asyncio
import builtins
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import blobfile
import structlog
import urllib3
from urllib3.exceptions import HTTPError

from services.simulation.finishing import finished
from services.simulation.state.failures import denied, unavailable
from services.simulation.state.store import Lease, LeaseHeld, checked_name
from shared.errors import NeuropilError
from shared.settings import Storage

RENEWED_EVERY_SECONDS = 1.5
"""Google takes about one write of a blob a second."""
DEAD_AFTER_SECONDS = 5.0
"""An owner that has not renewed its lease for so long is taken for dead."""

_SETTLING_SECONDS = 0.5
_DEFAULTS = Storage()
_AZURE_DOMAIN = ".blob.core.windows.net"
_GCS_HOST = "storage.googleapis.com"
_REFUSED = frozenset({401, 403})
_MISSING = 404
_DELETED_TOO = 200
# Besides its own errors blobfile raises these where a store's answer, or the credentials that the
# environment names, are not what they should be.
_FAILURES = (
    blobfile.Error,
    HTTPError,
    OSError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


class RemoteStateStore:
    """Blobs below a URL; a blob is replaced as a whole."""

    def __init__(self, url: str, storage: Storage = _DEFAULTS) -> None:
        self._url = url.rstrip("/")
        self._operation_seconds = storage.timeout_seconds
        # Of its own: a store that hangs must not hold up what computes in the common threads.
        self._threads = ThreadPoolExecutor(storage.requests_per_store, thread_name_prefix="state")
        pool = _Connections(storage.azure_endpoint, storage.gcs_endpoint)
        self._context = blobfile.create_context(
            # What failed is told once, by `_told`; blobfile would log URLs.
            log_callback=lambda message: _log.debug("state_retry"),
            get_http_pool=lambda: pool,
            retry_limit=storage.retries,
            # Declared as whole seconds, and handed to urllib3, which takes fractions.
            connect_timeout=storage.connect_timeout_seconds,  # type: ignore[arg-type]
            read_timeout=storage.read_timeout_seconds,  # type: ignore[arg-type]
            save_access_token_to_disk=False,
        )

    async def get(self, name: str) -> bytes | None:
        """As `StateStore`."""
        path = self._path(name)
        return await self._told("read", lambda: self._context.read_bytes(path))

    async def put(self, name: str, data: bytes) -> None:
        """As `StateStore`."""
        path = self._path(name)

        def write() -> bool:
            self._context.write_bytes(path, data)
            return True

        if await self._told("written", write) is None:
            raise denied("written", "there is no such container or bucket")

    async def list(self, prefix: str) -> builtins.list[str]:
        """As `StateStore`."""
        path = self._path(prefix)
        found = await self._told("listed", lambda: [*self._context.scanglob(f"{path}/*")])
        return [f"{prefix}/{name}" for name in sorted(each.name for each in found or ())]

    async def delete(self, name: str) -> None:
        """As `StateStore`."""
        path = self._path(name)

        def remove() -> None:
            try:
                self._context.remove(path)
            except blobfile.RequestFailure as error:
                # Some servers say 200 where Google says 204, which blobfile takes for a failure.
                if error.response_status != _DELETED_TOO:
                    raise

        await self._told("written", remove)

    @asynccontextmanager
    async def lease(self, name: str, *, patience_seconds: float) -> AsyncIterator[Lease]:
        """As `StateStore`: a blob that its owner renews, as stores have no locks.

        Of owners that begin at the same moment the last to write wins; all of them look again
        after a moment. Clocks of machines are not compared: an owner is dead when its blob has
        not changed for `DEAD_AFTER_SECONDS`, however long the patience is.
        """
        lease = _WrittenLease(self, name)
        await lease.take(patience_seconds)
        renewing = asyncio.create_task(lease.renew())
        try:
            yield lease
        finally:
            await finished(self._released(lease, renewing, name))

    async def close(self) -> None:
        """Give up what waits; connections are closed with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _told(self, doing: str, work: Callable[[], _Result]) -> _Result | None:
        """What the work gives, away from the event loop; None where there is no such blob."""
        try:
            async with asyncio.timeout(self._operation_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except FileNotFoundError:
            return None
        except TimeoutError as error:
            raise unavailable(doing, "the blob store took too long") from error
        except _FAILURES as error:
            status = error.response_status if isinstance(error, blobfile.RequestFailure) else None
            if status == _MISSING:
                return None
            _log.warning("state_failure", doing=doing, cause=type(error).__name__, status=status)
            # What blobfile raises itself, before it knows any status, is about credentials.
            if status in _REFUSED or type(error) is blobfile.Error:
                raise denied(doing, "the deployment's credentials grant no access to it") from error
            raise unavailable(doing, "the blob store failed") from error

    async def _released(
        self, lease: _WrittenLease, renewing: asyncio.Task[None], name: str
    ) -> None:
        renewing.cancel()
        with suppress(asyncio.CancelledError):
            await renewing
        if not lease.lost:
            # Who comes next would only wait for the lease to run out.
            with suppress(NeuropilError):
                await self.delete(name)

    def _path(self, name: str) -> str:
        return f"{self._url}/{checked_name(name)}"


class _WrittenLease:
    def __init__(self, store: RemoteStateStore, name: str) -> None:
        self._store = store
        self._name = name
        self._owner = secrets.token_hex(16)
        self._beats = 0
        self._renewed = time.monotonic()
        self._taken = False

    @property
    def lost(self) -> bool:
        """Whether another owner has it, or may have taken it as this one was not heard of."""
        return self._taken or time.monotonic() - self._renewed > DEAD_AFTER_SECONDS

    async def take(self, patience_seconds: float) -> None:
        seen = await self._store.get(self._name)
        if seen is not None:
            begun = time.monotonic()
            while (now := await self._store.get(self._name)) is not None:
                waited = time.monotonic() - begun
                if now == seen and waited >= DEAD_AFTER_SECONDS:
                    break
                if now != seen and waited >= patience_seconds:
                    raise LeaseHeld
                await asyncio.sleep(_SETTLING_SECONDS)
        await self._beat()
        await asyncio.sleep(_SETTLING_SECONDS)
        if not await self._is_mine():
            raise LeaseHeld

    async def renew(self) -> None:
        """Renew it until another owner has it; a store that fails is tried again."""
        while not self._taken:
            await asyncio.sleep(RENEWED_EVERY_SECONDS)
            with suppress(NeuropilError):
                if await self._is_mine():
                    await self._beat()
                else:
                    self._taken = True

    async def _beat(self) -> None:
        self._beats += 1
        begun = time.monotonic()
        beat = {"owner": self._owner, "beats": self._beats}
        await self._store.put(self._name, json.dumps(beat).encode())
        self._renewed = begun

    async def _is_mine(self) -> bool:
        found = await self._store.get(self._name)
        return found is not None and self._owner.encode() in found


class _Connections(urllib3.PoolManager):
    """Connections of blobfile, which go to an endpoint where one stands for the public stores."""

    def __init__(self, azure: str | None, gcs: str | None) -> None:
        super().__init__(num_pools=16, maxsize=16, retries=False)
        self._azure = azure
        self._gcs = gcs

    def request(self, method: str, url: str, **options: Any) -> Any:  # type: ignore[override]
        """As urllib3's; the Host header stays that of the public store."""
        asked = urllib3.util.parse_url(url)
        host = asked.host or ""
        endpoint = None
        if host.endswith(_AZURE_DOMAIN):
            endpoint = self._azure
        elif host == _GCS_HOST:
            endpoint = self._gcs
        if endpoint is not None:
            url = endpoint.rstrip("/") + asked.request_uri
            options["headers"] = {**(options.get("headers") or {}), "Host": host}
        return super().request(method, url, **options)
