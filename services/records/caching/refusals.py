"""Commands that a server does not let its user run: a fault of its configuration, not an outage."""

from __future__ import annotations

import time
from collections.abc import Callable

import hiredis
import structlog

REFUSED_SECONDS = 60.0
"""How long a command that was refused is not tried again."""

# Of a user without the command; of a script's inner command; of a server that does not have it.
_BEGINNINGS = ("NOPERM", "ERR ACL failure in script", "ERR unknown command")

_log = structlog.get_logger(__name__)


class RefusedCommands:
    """What the server's access rules forbid, as it turned out; each is logged once."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def allows(self, command: str) -> bool:
        """Whether to try `command`."""
        until = self._until.get(command)
        return until is None or self._clock() >= until

    def refuses(self, command: str, reply: object, *, instead: str) -> bool:
        """Whether `reply` refuses `command` by the access rules; then it is left for a while."""
        if not isinstance(reply, hiredis.ReplyError) or not str(reply).startswith(_BEGINNINGS):
            return False
        if command not in self._until:
            _log.warning(
                "shared_cache_command_refused",
                command=command,
                detail="the server's access rules do not allow it",
                instead=instead,
            )
        self._until[command] = self._clock() + REFUSED_SECONDS
        return True
