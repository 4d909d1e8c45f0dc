"""Replacing a blob that other writers replace too."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from services.records.storage import metrics
from services.records.storage.failures import write_conflict
from services.records.storage.folders import Folder
from services.records.storage.remote import RemoteStore
from shared.errors import Unavailable

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5
_MAX_FAILURES = 2


def update_blob(
    store: RemoteStore,
    folder: Folder,
    relative: str,
    change: Callable[[bytes | None], bytes],
    *,
    seconds: float,
) -> None:
    """Replace a blob by what `change` makes of its content, None where there is none.

    Nobody's work is lost: the blob is stored only if it is as it was read, else all is done again,
    `change` included, after a pause that grows with every attempt. A write whose answer was lost
    may have happened: the content tells. Raises what the store and `change` raise, and Unavailable
    where others are faster for `seconds`.
    """
    deadline = time.monotonic() + seconds
    pause, failures = _FIRST_PAUSE_SECONDS, 0
    while True:
        found = store.read_version(folder, relative)
        content = change(found.content if found else None)
        if found is not None and content == found.content:
            return
        try:
            if store.replace(folder, relative, content, found.version if found else None):
                return
            metrics.WRITE_CONFLICTS.inc()
        except Unavailable:
            failures += 1
            if failures > _MAX_FAILURES:
                raise
        if time.monotonic() + pause > deadline:
            raise write_conflict(folder.file_name(relative))
        # Writers that collided once would collide again if they paused alike.
        time.sleep(random.uniform(0, pause))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
