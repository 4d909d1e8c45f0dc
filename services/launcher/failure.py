"""A failure that the launcher tells in one line, with the exit code that goes with it."""

from __future__ import annotations


class LauncherFailure(Exception):
    """What was asked for did not work out; the text is a sentence for people."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
