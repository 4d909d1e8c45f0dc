"""Step 5: corpus. The held-out passages, packed: what the records are collated from."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import typer
from rich.console import Console

from data.recipe.layout import CACHE, CORPUS, HELD_OUT, passages_path


def pack(lines: bytes) -> bytes:
    """gzip without a time or a name in it: the same text gives the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(lines)
    return buffer.getvalue()


def main(cache: Path = CACHE, corpus: Path = CORPUS) -> None:
    """Write the held-out passages beside the records."""
    lines = passages_path(HELD_OUT, cache).read_bytes()
    packed = pack(lines)
    corpus.parent.mkdir(parents=True, exist_ok=True)
    corpus.write_bytes(packed)
    count = len(lines.splitlines())
    Console().print(f"{count} passages, {len(packed) / 1e6:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
