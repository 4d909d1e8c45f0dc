"""Step 6: records. Collate the held-out corpus through our own scalars service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from data.recipe.layout import CORPUS, RECORDS, REPOSITORY
from data.recipe.packages import RecipeError
from data.recipe.running import service

COLLATE_OPTIONS = (
    *("--most-tokens", "32"),
    *("--least-tokens", "16"),
    *("--top", "12"),
    *("--random", "12"),
    *("--per-quantile", "3"),
    *("--quantile", "0.5", "--quantile", "0.75", "--quantile", "0.95"),
    *("--significant-digits", "4"),
    *("--seed", "0"),
)


def main(
    corpus: Path = CORPUS,
    out: Path = RECORDS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again.")] = False,
) -> None:
    """Write the record of every neuron and head of the demo model."""
    with service("scalars") as address:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "services.collate"),
                *("--scalars", address, "--corpus", str(corpus), "--out", str(out)),
                *COLLATE_OPTIONS,
                *(["--overwrite"] if overwrite else []),
            ],
            cwd=REPOSITORY,
            check=False,
        )
    if done.returncode != 0:
        raise RecipeError(f"collate ended with status {done.returncode}; run this step again")


if __name__ == "__main__":
    typer.run(main)
