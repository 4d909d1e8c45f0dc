"""Reads the prompt files beside this module: `<name>.yaml`, where the name is the version too."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from typing import Protocol, TypeVar

import msgspec

from shared.errors import ConfigurationError

_FOLDER = resources.files("services.simulation.prompts")
_NAME = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")
_HASH_DIGITS = 8


class PromptFile(Protocol):
    """What every prompt file has."""

    @property
    def version(self) -> str:
        """The name of the file without its ending, such as `few_shot-1`."""
        ...


FileT = TypeVar("FileT", bound=PromptFile)


def names(beginning: str = "") -> tuple[str, ...]:
    """The names of all prompt files that begin so, in alphabetic order."""
    files = (entry.name for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))
    found = (name.removesuffix(".yaml") for name in files)
    return tuple(sorted(name for name in found if name.startswith(beginning)))


@cache
def load(name: str, as_: type[FileT]) -> FileT:
    """The prompt file of that name, checked against the class (a msgspec Struct).

    Raises:
        ConfigurationError: there is no such file, or it doesn't hold what the class declares.
    """
    content = _content(name)
    try:
        loaded = msgspec.yaml.decode(content, type=as_)
    except msgspec.DecodeError as error:
        raise ConfigurationError("prompt", f"{name}.yaml can't be read: {error}") from error
    if loaded.version != name:
        raise ConfigurationError(
            "prompt", f"{name}.yaml says that it is version {loaded.version!r}, not {name!r}"
        )
    return loaded


@cache
def provenance(name: str) -> str:
    """Name and content of a prompt file in one string, such as `few_shot-1+0b1d5a0c`.

    The second part is the beginning of the SHA-256 of the file, so that a changed file can't pass
    for the released one.
    """
    return f"{name}+{hashlib.sha256(_content(name)).hexdigest()[:_HASH_DIGITS]}"


def _content(name: str) -> bytes:
    # The name comes from a configuration: it must not lead out of the folder.
    if _NAME.fullmatch(name):
        try:
            return _FOLDER.joinpath(f"{name}.yaml").read_bytes()
        except FileNotFoundError:
            pass
    raise ConfigurationError(
        "prompt", f"there is no prompt {name!r}; there are {', '.join(names())}"
    )
