"""HTTP to blob stores: where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import urllib3

AZURE_DOMAIN = ".blob.core.windows.net"
GCS_HOST = "storage.googleapis.com"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Servers that answer in the place of the public ones, by their URL; None: the public ones."""

    azure: str | None = None
    gcs: str | None = None


class Transport(urllib3.PoolManager):
    """Connections of blobfile; requests keep their Host header wherever they are sent."""

    def __init__(self, endpoints: Endpoints) -> None:
        super().__init__(retries=False)
        self._endpoints = endpoints

    def request(self, method: str, url: str, **options: Any) -> Any:  # type: ignore[override]
        """As urllib3's."""
        asked = urllib3.util.parse_url(url)
        host = asked.host or ""
        endpoint = None
        if host.endswith(AZURE_DOMAIN):
            endpoint = self._endpoints.azure
        elif host == GCS_HOST:
            endpoint = self._endpoints.gcs
        if endpoint is not None:
            options["headers"] = {**(options.get("headers") or {}), "Host": host}
            url = endpoint.rstrip("/") + asked.request_uri
        return super().request(method, url, **options)
