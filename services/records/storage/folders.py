"""Which folders a request may read, and what their paths are compared as."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

_REMOTE = re.compile(r"^(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)$", re.IGNORECASE)
_AZURE_HOST = re.compile(r"^(?P<account>[a-z0-9]+)\.blob\.core\.windows\.net$")
# Separators, dots and NUL as %-escapes, and an escaped % that would hide another escape.
_ESCAPES = re.compile(r"%(2f|5c|2e|00|25)", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of records or explanations that may be read.

    `path` is what is opened, `name` what answers and errors call it: as configured, or as the
    request wrote it. Nothing that lies outside of `root`, links followed, is opened.
    """

    path: str
    name: str
    root: str

    @classmethod
    def trusted(cls, path: str) -> Folder:
        """A folder that the configuration, or the program itself, names."""
        opened = (canonical_of_configured(path) if is_remote(path) else path) or path
        return cls(path=opened, name=path, root=opened)

    @property
    def remote(self) -> bool:
        """Whether it is on a blob store and not in the file system."""
        return is_remote(self.path)

    @property
    def base_name(self) -> str:
        """The last component of its name, as written: empty after a trailing slash."""
        return self.name.rsplit("/", 1)[-1]

    def file_name(self, relative: str) -> str:
        """What errors call a file in it."""
        return f"{self.name.rstrip('/')}/{relative}"


def is_remote(path: str) -> bool:
    """Whether `path` is a URL."""
    return _REMOTE.match(path) is not None


def looks_like_path(name: str) -> bool:
    """Whether `name` means a path or URL, and not a short name."""
    return "/" in name or "\\" in name or name in (".", "..", "~")


def canonical(path: str) -> str | None:
    """The form in which paths of requests are compared and opened; None where it may not be read.

    A local path is absolute, without `.`, `..` or doubled slashes; a blob's is gs:// or az://,
    also where it was written as an https:// URL of Azure storage. Steps upwards, escaped
    separators, backslashes, control characters, queries and any other scheme give None.
    """
    if _UNPRINTABLE.search(path) or _ESCAPES.search(path):
        return None
    match = _REMOTE.match(path)
    if match is None:
        return _canonical_local(path)
    if any(character in match["rest"] for character in "?#@:"):
        return None
    return _canonical_remote(match["scheme"].lower(), match["rest"])


def canonical_of_configured(path: str) -> str | None:
    """The same for a path of the configuration; None where it is no URL of storage.

    It may step upwards if it is local, and have any character in the name of a blob. Behind https://
    a query is none: it may be a key, which nobody is to see.
    """
    match = _REMOTE.match(path)
    if match is None:
        return posixpath.normpath(path)
    scheme, rest = match["scheme"].lower(), match["rest"]
    host = rest.partition("/")[0]
    if _UNPRINTABLE.search(path) or any(character in host for character in "?#@:%"):
        return None
    if scheme == "https" and ("?" in rest or "#" in rest):
        return None
    return _canonical_remote(scheme, rest)


def is_within(path: str, folder: str) -> bool:
    """Whether the canonical `path` is `folder` or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _canonical_remote(scheme: str, rest: str) -> str | None:
    host, *segments = rest.rstrip("/").split("/")
    if not host or any(segment in ("", ".", "..") for segment in segments):
        return None
    if scheme == "https":
        azure = _AZURE_HOST.match(host.lower())
        if azure is None:
            return None
        scheme, host = "az", azure["account"]
    # An account alone names no place: every folder in it would be a container.
    if scheme not in ("az", "gs") or (scheme == "az" and not segments):
        return None
    return "/".join([f"{scheme}://{host}", *segments])


def _canonical_local(path: str) -> str | None:
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    if not path.startswith("/") or ".." in segments:
        return None
    return "/" + "/".join(segments)
