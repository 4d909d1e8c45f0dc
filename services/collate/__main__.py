"""`python -m services.collate`: record what makes a model's components active, over a corpus."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from neuropil.errors import NeuropilError as CallFailed
from services.collate.collation import SampleSizes
from services.collate.job import Summary, collate
from services.collate.options import DEFAULT_DATASETS, Dataset, Options
from services.collate.source import ScalarsService
from shared.errors import InvalidArgument, NeuropilError


class _Bars:
    """A progress bar a stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def stage(self, name: str, total: int | None, completed: int = 0) -> None:
        if self._task is not None:
            self._progress.stop_task(self._task)
        self._task = self._progress.add_task(name, total=total, completed=completed)

    def advance(self, count: int = 1) -> None:
        if self._task is not None:
            self._progress.advance(self._task, count)


async def _run(
    address: str, seconds: float, options: Options, overwrite: bool, console: Console
) -> Summary:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    source = ScalarsService(address, seconds)
    try:
        with Progress(*columns, console=console) as progress:
            return await collate(options, source, _Bars(progress), overwrite=overwrite)
    finally:
        await source.close()


def command(
    scalars: Annotated[str, typer.Option(help="Address of the scalars service, HOST:PORT.")],
    corpus: Annotated[
        str, typer.Option(help="Text (.txt, a text a line; .jsonl with a `text` each; also .gz).")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the records to.")],
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="FOLDER=TYPE; may be repeated. Default: mlp and attn."),
    ] = None,
    least_tokens: Annotated[int, typer.Option(help="Leave shorter sequences out.")] = 8,
    most_tokens: Annotated[int, typer.Option(help="Cut texts into sequences so long.")] = 32,
    top: Annotated[int, typer.Option(help="Top sequences a record.")] = 12,
    random: Annotated[int, typer.Option(help="Random sequences a record.")] = 12,
    per_quantile: Annotated[int, typer.Option(help="Random sequences a quantile bin.")] = 3,
    quantile: Annotated[
        list[float] | None,
        typer.Option(help="Where bins are cut; may be repeated. Default: 0.5, 0.75, 0.95."),
    ] = None,
    pilot_sequences: Annotated[
        int, typer.Option(help="Random sequences to estimate the quantiles on.")
    ] = 1024,
    attended_to_cap: Annotated[
        int | None, typer.Option(help="Keep only so many attended-to tokens of a token pair.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    significant_digits: Annotated[int, typer.Option(help="Of an activation in a file.")] = 4,
    limit: Annotated[int | None, typer.Option(help="Use only so many sequences.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    checkpoint_every: Annotated[int, typer.Option(help="Sequences between checkpoints.")] = 1000,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 60.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the records that lie there.")
    ] = False,
) -> None:
    """Stream a corpus through the scalars service and write a record for every component.

    Stopped or killed, the same command goes on where it was and ends with the same records.
    """
    console = Console(stderr=True)
    try:
        options = Options(
            corpus=corpus,
            out=out,
            datasets=tuple(map(Dataset.parse, dataset)) if dataset else DEFAULT_DATASETS,
            least_tokens=least_tokens,
            most_tokens=most_tokens,
            sizes=SampleSizes(
                top=top,
                random=random,
                per_quantile=per_quantile,
                quantiles=tuple(quantile) if quantile else SampleSizes.quantiles,
            ),
            pilot_sequences=pilot_sequences,
            attended_to_cap=attended_to_cap,
            seed=seed,
            significant_digits=significant_digits,
            limit=limit,
            concurrency=concurrency,
            checkpoint_every=checkpoint_every,
        )
        if not timeout > 0:
            raise InvalidArgument(f"timeout is {timeout}; it must be above 0", field="timeout")
        summary = asyncio.run(_run(scalars, timeout, options, overwrite, console))
    except (NeuropilError, CallFailed, OSError) as error:
        console.print(f"collate: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("collate: stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    done = "complete already" if summary.already_complete else "complete"
    console.print(
        f"collate: {done}: {summary.records} records from {summary.sequences} sequences in {out}",
        highlight=False,
    )


def main() -> None:
    """Run the command."""
    typer.run(command)


if __name__ == "__main__":
    main()
