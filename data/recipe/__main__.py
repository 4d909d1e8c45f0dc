"""`python -m data.recipe`: make every asset of the demo again, from Debian's archive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from data.recipe import autoencoders, corpus, describe, model, records, score, text, tokenizer
from data.recipe.layout import CACHE, MODEL
from data.recipe.packages import RecipeError


def command(
    device: Annotated[str, typer.Option(help="For training: cpu, cuda or cuda:N.")] = "cpu",
    first: Annotated[str, typer.Option(help="Begin with this step.")] = "text",
) -> None:
    """Text, tokenizer, model, autoencoders, corpus, records, scores: about an hour on two cores.

    Training goes on from its checkpoint when it was stopped. Other machines round differently, so
    the weights come out equal in quality but not in every bit.
    """
    console = Console()
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("text", text.main),
        ("tokenizer", tokenizer.main),
        ("model", lambda: model.main(device=device, steps=model.Schedule.steps)),
        ("autoencoders", lambda: autoencoders.main(device=device, steps=autoencoders.STEPS)),
        ("corpus", corpus.main),
        ("records", lambda: records.main(overwrite=True)),
        ("score", score.main),
        ("describe", describe.main),
    )
    names = [name for name, _ in steps]
    if first not in names:
        console.print(f"--first is one of {', '.join(names)}, not {first!r}", style="red")
        raise typer.Exit(2)
    CACHE.mkdir(parents=True, exist_ok=True)
    MODEL.mkdir(parents=True, exist_ok=True)
    for name, step in steps[names.index(first) :]:
        console.rule(name)
        try:
            step()
        except RecipeError as error:
            console.print(f"{name}: {error}", style="red", markup=False)
            raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(command)
