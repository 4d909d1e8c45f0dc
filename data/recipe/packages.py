"""Debian packages as a source of text: fetch them and unpack them, without root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


class RecipeError(Exception):
    """A step of the recipe can't go on; the message says what would let it."""


@dataclass(frozen=True)
class Package:
    """One Debian package: what is read from it, and under which terms."""

    name: str
    licence: str
    optional: bool = False
    """Whether the recipe can go on where the archive no longer has it."""


PACKAGES = (
    Package("bible-kjv-text", "text: public domain (King James Version, 1611)"),
    Package("bible-kjv", "program that prints the packed text: GPL-2+ (not distributed here)"),
    Package("libreadline8", "its library: GPL-3+ (not distributed here)", optional=True),
    Package("python3.11-doc", "PSF-2.0; examples 0BSD"),
    Package("dict-jargon", "public domain (Jargon File 4.4.7)"),
    Package("dict-devil", "public domain (The Devil's Dictionary, Ambrose Bierce, 1911)"),
)


def fetch(folder: Path) -> dict[str, str]:
    """Download and unpack every package into `folder`/root; name -> version.

    What lies there already is not fetched again. Raises RecipeError without apt, network or a
    package that is needed.
    """
    archive, root = folder / "packages", folder / "root"
    archive.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise RecipeError(f"{program} is not installed: this step runs on Debian or Ubuntu")
    versions = {}
    for package in PACKAGES:
        file = _downloaded(archive, package.name)
        if file is None:
            command = ["apt-get", "download", package.name]
            done = subprocess.run(command, cwd=archive, capture_output=True, text=True, check=False)
            file = _downloaded(archive, package.name)
            if file is None:
                if package.optional:
                    continue
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise RecipeError(
                    f"package {package.name} could not be downloaded ({reason}); "
                    "is there a network, and was apt-get update run?"
                )
        subprocess.run(["dpkg-deb", "--extract", str(file), str(root)], check=True)
        versions[package.name] = _version(file)
    return versions


def run_unpacked(root: Path, program: str, *arguments: str) -> str:
    """Standard output of a program inside the unpacked `root`, with the libraries found there."""
    libraries = sorted({str(path.parent) for path in root.rglob("lib*.so*")})
    inherited = os.environ.get("LD_LIBRARY_PATH")
    search = os.pathsep.join(libraries + ([inherited] if inherited else []))
    done = subprocess.run(
        [str(root / program), *arguments],
        env={**os.environ, "LD_LIBRARY_PATH": search},
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()
        raise RecipeError(f"{program} ended with status {done.returncode}: {reason}")
    return done.stdout.decode("utf-8", errors="replace")


def _downloaded(archive: Path, name: str) -> Path | None:
    return max(archive.glob(f"{name}_*.deb"), default=None, key=lambda path: path.stat().st_mtime)


def _version(file: Path) -> str:
    field = subprocess.run(
        ["dpkg-deb", "--field", str(file), "Version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not re.fullmatch(r"[\w.+:~-]+", field):
        raise RecipeError(f"{file.name} has no readable version: {field!r}")
    return field
