"""The state of a job on disk: what it is bound to, how far it came, and what it holds."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataLoss, FailedPrecondition
from shared.formats.encoding import write_atomically

Arrays = dict[str, NDArray[Any]]

WORK_FOLDER = ".collate"
MANIFEST = "collation.json"


class Checkpoint:
    """Files of an unfinished job under `<out>/.collate`; each appears whole or not at all."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.folder = out / WORK_FOLDER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes off; FailedPrecondition where one is at work already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FailedPrecondition(
                    f"another process is collating into {self._out}", field="out"
                ) from None
            try:
                yield
            finally:
                self._drop_if_empty()
        finally:
            os.close(handle)

    def _drop_if_empty(self) -> None:
        # Refused before it began, a job leaves nothing behind in somebody's folder.
        if [path.name for path in self.folder.glob("*")] == ["lock"]:
            self.clear()

    def bind(self, job: dict[str, Any]) -> None:
        """Begin `job`, or go on with it; FailedPrecondition where another was begun here."""
        path = self.folder / "job.json"
        if path.exists():
            differing = differences(self._read_json(path), job)
            if differing:
                raise FailedPrecondition(
                    f"{self._out} holds an unfinished job that differs in {', '.join(differing)}; "
                    "finish it with the same options, begin again with --overwrite, "
                    "or choose another folder",
                    field="out",
                )
            return
        write_atomically(path, json.dumps(job, indent=1).encode())

    def save(self, position: int, arrays: Arrays) -> None:
        """Remember that the first `position` sequences are in `arrays`."""
        buffer = io.BytesIO()
        np.savez(buffer, position=np.int64(position), **arrays)  # type: ignore[arg-type]
        write_atomically(self.folder / "state.npz", buffer.getvalue())

    def load(self) -> tuple[int, Arrays] | None:
        """What `save` wrote last; None where it never did."""
        path = self.folder / "state.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            return int(arrays.pop("position")), arrays
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataLoss(
                f"checkpoint {path} can't be read ({error}); begin again with --overwrite",
                metadata={"file": str(path)},
            ) from error

    def finished(self) -> dict[str, Any] | None:
        """The manifest of a finished job; None where there is none."""
        path = self._out / MANIFEST
        return self._read_json(path) if path.exists() else None

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest and drop the unfinished job's files."""
        data = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self._out / MANIFEST, data.encode())
        self.clear()

    def clear(self) -> None:
        """Drop the unfinished job's files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataLoss(
                f"{path} can't be read ({error})", metadata={"file": str(path)}
            ) from error
        if not isinstance(value, dict):
            raise DataLoss(f"{path} holds no object", metadata={"file": str(path)})
        return value


def differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Keys, sorted, whose JSON values differ."""
    return sorted(
        key
        for key in mine.keys() | other.keys()
        if json.dumps(mine.get(key)) != json.dumps(other.get(key))
    )
