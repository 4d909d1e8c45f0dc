"""Step 1: text. Debian packages -> passages of clean text, split by their own hash."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console

from data.recipe.layout import CACHE, HELD_OUT, SPLITS, TRAIN, VALIDATION, passages_path
from data.recipe.packages import RecipeError, fetch, run_unpacked

PASSAGE_CHARACTERS = 1500
VALIDATION_PERCENT = 2
HELD_OUT_PERCENT = 10

_RULE = re.compile(r"^\s*([=\-~^*+.#_\"'|])\1{3,}\s*$")
_WRAPPED_WIDTH = 55
_PYTHON_DOC_LEFT_OUT = {"license.rst.txt", "copyright.rst.txt", "contents.rst.txt"}


@dataclass(frozen=True)
class Passage:
    """About `PASSAGE_CHARACTERS` characters of one source, cut between paragraphs."""

    source: str
    text: str

    @property
    def split(self) -> str:
        """Which split it belongs to: decided by the text alone, so that it never moves."""
        bucket = int.from_bytes(hashlib.sha256(self.text.encode()).digest()[:4], "big") % 100
        if bucket < VALIDATION_PERCENT:
            return VALIDATION
        return HELD_OUT if bucket < VALIDATION_PERCENT + HELD_OUT_PERCENT else TRAIN


def unwrap(paragraph: str) -> str:
    """Join the lines of wrapped prose; anything that doesn't look wrapped is left as it is."""
    lines = paragraph.split("\n")
    if len(lines) < 2 or any(len(line) < _WRAPPED_WIDTH for line in lines[:-1]):
        return paragraph
    indents = {len(line) - len(line.lstrip()) for line in lines[1:]}
    if len(indents) > 1:
        return paragraph
    return " ".join([lines[0].rstrip(), *(line.strip() for line in lines[1:])])


def clean(text: str) -> str:
    """Normalise line ends, drop ruled lines and trailing blanks, unwrap prose."""
    text = text.replace("\r\n", "\n").replace("\t", "    ").replace("\u00a0", " ")
    lines = [line.rstrip() for line in text.split("\n") if not _RULE.match(line)]
    paragraphs = re.split(r"\n{2,}", "\n".join(lines).strip("\n"))
    return "\n\n".join(unwrap(paragraph) for paragraph in paragraphs if paragraph.strip())


def passages(source: str, text: str, size: int = PASSAGE_CHARACTERS) -> Iterator[Passage]:
    """Cut `text` between paragraphs (a blank line) into passages of at least `size` characters.

    The last passage of a source may be shorter.
    """
    held: list[str] = []
    length = 0
    for paragraph in text.split("\n\n"):
        held.append(paragraph)
        length += len(paragraph) + 2
        if length >= size:
            yield Passage(source, "\n\n".join(held))
            held, length = [], 0
    if held and any(paragraph.strip() for paragraph in held):
        yield Passage(source, "\n\n".join(held))


def bible(root: Path) -> Iterator[tuple[str, str]]:
    """Each chapter of the King James Version, a verse a paragraph, without references."""
    printed = run_unpacked(
        root, "usr/bin/bible", "-f", "-p", str(root / "usr/lib"), "Gen1:1-Rev22:21"
    )
    chapters: dict[str, list[str]] = {}
    for line in printed.splitlines():
        match = re.match(r"^(\w+?):\d+ (.+)$", line)
        if match is None:
            raise RecipeError(
                f"the bible program printed a line without a reference: {line[:80]!r}"
            )
        chapters.setdefault(match[1], []).append(match[2].strip())
    for chapter, verses in chapters.items():
        # Two or three verses a paragraph: a passage may end after any of them.
        yield (
            f"bible/{chapter}",
            "\n\n".join(" ".join(verses[i : i + 3]) for i in range(0, len(verses), 3)),
        )


def python_documentation(root: Path) -> Iterator[tuple[str, str]]:
    """Each reStructuredText source of Python's documentation."""
    folder = root / "usr/share/doc/python3.11/html/_sources"
    for path in sorted(folder.rglob("*.rst.txt")):
        if path.name not in _PYTHON_DOC_LEFT_OUT:
            name = path.relative_to(folder).as_posix().removesuffix(".rst.txt")
            yield f"python/{name}", clean(path.read_text(encoding="utf-8"))


def dictionary(root: Path, name: str) -> Iterator[tuple[str, str]]:
    """The entries of a dictd dictionary, its own notices left out."""
    packed = (root / f"usr/share/dictd/{name}.dict.dz").read_bytes()
    text = gzip.decompress(packed).decode("utf-8")
    entries = re.split(r"\n(?=\S)", text)
    kept = [entry for entry in entries if not entry.startswith("00-database")]
    yield name, clean("\n\n".join(kept))


def all_passages(root: Path) -> Iterator[Passage]:
    """Every passage of every source, in a fixed order."""
    sources: Iterable[Iterator[tuple[str, str]]] = (
        bible(root),
        python_documentation(root),
        dictionary(root, "jargon"),
        dictionary(root, "devil"),
    )
    for source in sources:
        for name, text in source:
            yield from passages(name, text)


def main(cache: Path = CACHE) -> None:
    """Fetch the packages and write the three splits."""
    console = Console()
    versions = fetch(cache)
    seen: set[str] = set()
    counts = dict.fromkeys(SPLITS, 0)
    sizes = dict.fromkeys(SPLITS, 0)
    files = {split: passages_path(split, cache).open("w", encoding="utf-8") for split in SPLITS}
    for passage in all_passages(cache / "root"):
        if passage.text in seen:
            continue
        seen.add(passage.text)
        files[passage.split].write(json.dumps(asdict(passage), ensure_ascii=False) + "\n")
        counts[passage.split] += 1
        sizes[passage.split] += len(passage.text)
    for file in files.values():
        file.close()
    (cache / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
    for split in SPLITS:
        console.print(f"{split}: {counts[split]} passages, {sizes[split] / 1e6:.2f} M characters")


if __name__ == "__main__":
    typer.run(main)
