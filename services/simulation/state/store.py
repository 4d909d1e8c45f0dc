"""Small files that outlive the service, on a local folder or in a blob store."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from shared.errors import ConfigurationError, FailedPrecondition
from shared.settings import Storage

SETTING = "simulation_state"
"""Key of the configuration that says where the state is kept."""

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_BLOB_SCHEMES = ("gs://", "az://", "https://")


class LeaseHeld(Exception):
    """Somebody else holds the lease, and is alive."""


class Lease(Protocol):
    """The right to be the only one who writes below a name."""

    @property
    def lost(self) -> bool:
        """Whether another owner took it, because this one did not renew it in time."""
        ...


class StateStore(Protocol):
    """Keeps bytes by name.

    A name is parts of letters, digits, `.`, `_` and `-`, joined by `/`. Every method may raise
    Unavailable (STATE_UNAVAILABLE), ResourceExhausted (STATE_STORAGE_FULL) and FailedPrecondition
    (STATE_ACCESS_DENIED).
    """

    async def get(self, name: str) -> bytes | None:
        """What is kept under a name; None where nothing is."""
        ...

    async def put(self, name: str, data: bytes) -> None:
        """Keep bytes; they outlive a crash once this returns. Readers see the old ones or these."""
        ...

    async def list(self, prefix: str) -> list[str]:
        """Names directly below a folder, ascending, whole; none where there is no such folder."""
        ...

    async def delete(self, name: str) -> None:
        """Forget a name; nothing happens where there is none."""
        ...

    def lease(self, name: str, *, patience_seconds: float) -> AbstractAsyncContextManager[Lease]:
        """Hold the lease of a name inside the block.

        An owner that was killed does not hold it for more than a few seconds.

        Raises:
            LeaseHeld: another owner, of this process or not, holds it for all of the patience.
        """
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...


def checked_name(name: str) -> str:
    """The name, where it is one; ValueError where not, which is a defect of the caller's."""
    if not all(_PART.fullmatch(part) for part in name.split("/")):
        raise ValueError(f"{name!r} is no name of the state store")
    return name


def not_configured(what: str) -> FailedPrecondition:
    """The error of a call that needs the store where the deployment has none."""
    return FailedPrecondition(
        f"{what} needs a place that outlives the service; set {SETTING} to a folder or a blob URL",
        reason="STATE_NOT_CONFIGURED",
        metadata={"setting": SETTING},
    )


def open_state(location: str, storage: Storage | None = None) -> StateStore:
    """The store at a folder, or at a gs://, az:// or https:// URL; `storage` is for blob stores.

    Raises:
        ConfigurationError: a URL of another kind, or no library for blob stores.
    """
    if "://" not in location:
        from services.simulation.state.local import LocalStateStore

        return LocalStateStore(location)
    if not location.startswith(_BLOB_SCHEMES):
        raise ConfigurationError(
            SETTING, f"{location!r} is no folder and no URL of {', '.join(_BLOB_SCHEMES)}"
        )
    try:
        from services.simulation.state.remote import RemoteStateStore
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            SETTING, f"a blob URL needs {error.name}, which is not installed"
        ) from error
    return RemoteStateStore(location, storage or Storage())
