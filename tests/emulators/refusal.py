"""What models refuse, in a module of its own: the server's is run as `__main__` too."""

from __future__ import annotations


class Refused(Exception):
    """An answer with a status and a message."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
