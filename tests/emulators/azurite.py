"""Azurite, Microsoft's emulator of Azure blob storage: a real server behind az:// and https://."""

from __future__ import annotations

import base64
import fcntl
import hmac
import shutil
import subprocess
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

from tests.emulators.running import Emulator

VERSION = "3.35.0"
ACCOUNT = "acct"
OTHER_ACCOUNT = "other"
KEY = base64.b64encode(b"a key of the emulator").decode()

_REPOSITORY = Path(__file__).resolve().parents[2]
_SECONDS_TO_INSTALL = 300


def install(npm: str) -> Path:
    """Azurite's program, installed by npm where it isn't yet; into an ignored folder."""
    folder = _REPOSITORY / "build" / f"azurite-{VERSION}"
    program = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "azurite.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            options = ["--silent", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts"]
            subprocess.run(
                [npm, "install", *options, "--prefix", str(folder), f"azurite@{VERSION}"],
                cwd=folder,
                check=True,
                timeout=_SECONDS_TO_INSTALL,
            )
            (folder / "installed").touch()
    return program


class Azurite(Emulator):
    """Answers for the accounts `acct` and `other`, whose key is KEY.

    What was stored less than five seconds ago may be lost when it is killed: see `flush`.
    """

    def __init__(self, program: Path, folder: Path, port: int = 0) -> None:
        super().__init__(folder, port)
        self._program = program

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a service finds it and may use it."""
        return {
            "NEUROPIL_STORAGE__AZURE_ENDPOINT": self.endpoint,
            "AZURE_STORAGE_ACCOUNT": ACCOUNT,
            "AZURE_STORAGE_KEY": KEY,
        }

    def command(self) -> list[str]:
        """What starts it."""
        place = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        options = ["--location", str(self.folder / "data"), "--silent", "--disableTelemetry"]
        return ["node", str(self._program), *place, *options, "--skipApiVersionCheck"]

    def variables(self) -> dict[str, str]:
        """Variables of its own environment."""
        return {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY};{OTHER_ACCOUNT}:{KEY}"}

    def create_container(self, account: str, container: str) -> None:
        """Make a container where there is none."""
        self._put(account, container, {"restype": "container"}, {}, b"", (201, 409))

    def put(self, path: str, content: bytes) -> None:
        """Store a blob at az://<account>/<container>/<name>."""
        account, container, name = path.removeprefix("az://").split("/", 2)
        kind = {"x-ms-blob-type": "BlockBlob"}
        self._put(account, f"{container}/{quote(name)}", {}, kind, content, (201,))

    def _put(
        self,
        account: str,
        resource: str,
        query: dict[str, str],
        headers: dict[str, str],
        body: bytes,
        expected: tuple[int, ...],
    ) -> None:
        headers = {**headers, "x-ms-date": formatdate(usegmt=True), "x-ms-version": "2019-02-02"}
        lines = [f"{name}:{value}" for name, value in sorted(headers.items())]
        named = [f"/{account}/{resource}", *(f"{key}:{value}" for key, value in query.items())]
        length, kind = str(len(body) or ""), "application/octet-stream"
        signed = ["PUT", "", "", length, "", kind, *[""] * 6, *lines, *named]
        secret, text = base64.b64decode(KEY), "\n".join(signed).encode()
        signature = base64.b64encode(hmac.digest(secret, text, "sha256")).decode()
        answer = self._http.request(
            "PUT",
            f"{self.endpoint}/{resource}" + "".join(f"?{k}={v}" for k, v in query.items()),
            body=body,
            headers={
                **headers,
                "Content-Type": kind,
                "Host": f"{account}.blob.core.windows.net",
                "Authorization": f"SharedKey {account}:{signature}",
            },
        )
        assert answer.status in expected, (answer.status, answer.data)
