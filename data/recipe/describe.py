"""Step 8: describe. The README beside the model, with its figures."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from data.recipe.autoencoders import DESIGNS, STEPS
from data.recipe.layout import CACHE, MODEL, SPLITS, passages_path
from data.recipe.model import CURVE, Schedule
from data.recipe.packages import PACKAGES

_LICENCE_HEAD = """\
corpus.jsonl.gz, records/ and explanations/ quote Python's documentation, changed only by dropping
ruled lines, joining wrapped lines and cutting it into pieces; model/ was trained on it.
Copyright © 2001-2023 Python Software Foundation; All Rights Reserved.


"""
_TEMPLATE = Path(__file__).with_name("model_readme.md")


def render(cache: Path, folder: Path) -> str:
    """The README's text, from the files that the other steps left."""
    config = json.loads((folder / "config.json").read_text())
    with (folder / CURVE).open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    schedule = Schedule()
    versions = json.loads((cache / "versions.json").read_text())
    counts = {split: _count(passages_path(split, cache)) for split in SPLITS}
    train_tokens = json.loads((cache / "tokens.json").read_text())
    tokens = int(last["tokens"])
    values: dict[str, Any] = {
        **config,
        **asdict(schedule),
        "steps": int(last["step"]),
        "tokens": tokens / 1e6,
        "epochs": tokens / train_tokens["train"],
        "parameters": _parameters(config),
        "packages": "\n".join(
            f"| {package.name} | {versions[package.name]} | {package.licence} |"
            for package in PACKAGES
            if package.name in versions
        ),
        "splits": "".join(
            f"- {split.replace('_', ' ')}: {passages:,} passages, "
            f"{characters / 1e6:.2f} M characters, {train_tokens[split] / 1e6:.2f} M tokens\n"
            for split, (passages, characters) in counts.items()
        ).rstrip("\n"),
        "train_loss": float(last["train_loss"]),
        "train_perplexity": math.exp(float(last["train_loss"])),
        "validation_loss": float(last["validation_loss"]),
        "validation_perplexity": math.exp(float(last["validation_loss"])),
        "windows": f"{32 * STEPS:,}",
        "autoencoders": "\n".join(_autoencoder_rows(folder)),
    }
    return _TEMPLATE.read_text(encoding="utf-8").format(**values)


def _autoencoder_rows(folder: Path) -> list[str]:
    report = json.loads((folder / "autoencoders.json").read_text())
    rows: list[str] = []
    for design in DESIGNS:
        kind = f"topk, k = {design.k}" if design.k else design.activation
        rows.extend(
            f"| {design.dst} | {kind} | {layer} | {design.latents} | "
            f"{figures['variance_explained']:.3f} | {figures['latents_active']:.1f} | "
            f"{figures['dead_latents']} |"
            for layer, figures in enumerate(report[design.dst])
        )
    return rows


def _count(path: Path) -> tuple[int, int]:
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    return len(texts), sum(map(len, texts))


def _parameters(config: dict[str, int]) -> int:
    width, inner = config["n_embd"], config["n_inner"]
    block = 4 * width * width + 4 * width + 2 * width * inner + inner + width + 4 * width
    return (
        (config["vocab_size"] + config["n_positions"]) * width
        + config["n_layer"] * block
        + 2 * width
    )


def python_licence(cache: Path) -> str:
    """The terms of Python's documentation, as it states them itself."""
    source = cache / "root/usr/share/doc/python3.11/html/_sources/license.rst.txt"
    version = json.loads((cache / "versions.json").read_text())["python3.11-doc"].split("-")[0]
    text = source.read_text(encoding="utf-8").replace("|release|", version)
    sections = [
        text[text.index(first) : text.index(after)].split(".. _")[0].rstrip()
        for first, after in (
            ("PSF LICENSE AGREEMENT", "BEOPEN.COM LICENSE AGREEMENT"),
            ("ZERO-CLAUSE BSD LICENSE", "Licenses and Acknowledgements for Incorporated"),
        )
    ]
    return _LICENCE_HEAD + "\n\n\n".join(sections) + "\n"


def main(cache: Path = CACHE, folder: Path = MODEL) -> None:
    """Write README.md beside the model, and the licence of the quoted documentation."""
    (folder / "README.md").write_text(render(cache, folder), encoding="utf-8")
    licence = folder.parent / "LICENSE-python-documentation.txt"
    licence.write_text(python_licence(cache), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
