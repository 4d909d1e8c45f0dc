"""The job: cut the corpus, estimate quantiles on a pilot, collate, write the records.

Every stage leaves its result on disk whole or not at all, and gives the same however often it runs;
killed at any moment, the job run again goes on and ends with the same files.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.collate.checkpoint import Arrays, Checkpoint
from services.collate.collation import Collation, boundaries, in_pilot, largest
from services.collate.corpus import digest, read_texts
from services.collate.options import Dataset, Options
from services.collate.sequences import Sequence, SequenceFile, cut
from services.collate.source import ActivationSource, LayerActivations, ScalarKind
from services.collate.writing import (
    existing_records,
    kept_pairs,
    records,
    value_count,
    write_record,
)
from shared.errors import DataLoss, FailedPrecondition, InvalidArgument
from shared.formats.records import NeuronRecord

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Activations = dict[str, NDArray[np.float32]]
"""By dataset folder: [values, components of all layers]."""


class Reporter(Protocol):
    """Told how the job comes along."""

    def stage(self, name: str, total: int | None, completed: int = 0) -> None:
        """A stage begins."""

    def advance(self, count: int = 1) -> None:
        """So many more items of the stage are done."""


@dataclass(frozen=True)
class Summary:
    """What a finished job did."""

    sequences: int
    records: int
    already_complete: bool = False


async def collate(
    options: Options, source: ActivationSource, report: Reporter, *, overwrite: bool = False
) -> Summary:
    """Run the job, or what is left of it.

    Raises errors of `shared.errors` for bad input and for a folder that holds something else;
    whatever the source raises goes through, and the job can be run again.
    """
    return await _Job(options, source, report).run(overwrite)


class _Job:
    def __init__(self, options: Options, source: ActivationSource, report: Reporter) -> None:
        self._options = options
        self._source = source
        self._report = report
        self._checkpoint = Checkpoint(options.out)
        self._sequences = SequenceFile(self._checkpoint.folder / "sequences.jsonl")
        self._names = [dataset.derived_scalar_type for dataset in options.datasets]
        self._kinds: dict[str, ScalarKind] = {}
        self._layer_sizes: dict[str, list[int]] = {}

    async def run(self, overwrite: bool) -> Summary:
        options = self._options
        subject = await self._source.subject()
        if options.most_tokens > subject.context_size:
            raise InvalidArgument(
                f"most_tokens is {options.most_tokens}, but {subject.name} takes at most "
                f"{subject.context_size}",
                field="most_tokens",
            )
        for dataset, kind in zip(
            options.datasets, await self._source.kinds(self._names), strict=True
        ):
            self._kinds[dataset.folder] = kind
        job = options.job(digest(options.corpus), subject.name)
        with self._checkpoint.locked():
            if overwrite:
                self._forget()
            finished = self._checkpoint.finished()
            if finished is not None and finished.get("job") == job:
                self._checkpoint.clear()
                return Summary(finished["sequences"], finished["records"], already_complete=True)
            self._refuse_foreign(finished is not None)
            self._checkpoint.bind(job)
            return await self._complete(job)

    async def _complete(self, job: dict[str, object]) -> Summary:
        count = await self._cut()
        first = next(self._sequences.read())
        for folder, layers in (await self._derive(first.text)).items():
            self._layer_sizes[folder] = [layer.shape[1] for layer in layers]
        collations = await self._collate(count)
        written = self._write(collations)
        self._checkpoint.finish({"job": job, "sequences": count, "records": written})
        return Summary(count, written)

    def _forget(self) -> None:
        for path in (self._options.out / "collation.json", *self._existing()):
            path.unlink(missing_ok=True)
        for name in ("job.json", "state.npz", "sequences.jsonl"):
            (self._checkpoint.folder / name).unlink(missing_ok=True)

    def _existing(self) -> list[Path]:
        folders = [self._options.out / dataset.folder for dataset in self._options.datasets]
        return [path for folder in folders for path in existing_records(folder)]

    def _refuse_foreign(self, finished: bool) -> None:
        begun = (self._checkpoint.folder / "job.json").exists()
        if finished or (not begun and self._existing()):
            raise FailedPrecondition(
                f"{self._options.out} holds the records of another job; begin again with "
                "--overwrite, or choose another folder",
                field="out",
            )

    async def _cut(self) -> int:
        if not self._sequences.exists():
            self._report.stage("cutting the corpus", None)
            options = self._options
            sequences = cut(
                read_texts(options.corpus),
                self._source.tokenize,
                options.least_tokens,
                options.most_tokens,
            )
            await self._sequences.write(self._counted(sequences), options.limit)
        count = self._sequences.count()
        if count == 0:
            (self._checkpoint.folder / "sequences.jsonl").unlink()
            raise InvalidArgument(
                f"corpus {self._options.corpus} has no sequence of at least "
                f"{self._options.least_tokens} tokens",
                field="corpus",
            )
        return count

    async def _counted(self, sequences: AsyncIterator[Sequence]) -> AsyncIterator[Sequence]:
        async for sequence in sequences:
            self._report.advance()
            yield sequence

    async def _derive(self, text: str) -> dict[str, LayerActivations]:
        names = list(dict.fromkeys(self._names))
        derived = await self._source.activations(text, names)
        return {d.folder: derived[d.derived_scalar_type] for d in self._options.datasets}

    async def _activations(self, sequence: Sequence) -> Activations:
        found = {}
        for folder, layers in (await self._derive(sequence.text)).items():
            pairs = self._kinds[folder].by_token_pair
            whole = np.concatenate(layers, axis=1)
            tokens = len(sequence.tokens)
            if whole.shape != (value_count(tokens, pairs, None), sum(self._layer_sizes[folder])):
                raise DataLoss(
                    f"the source gave {folder} activations of shape {whole.shape} for a sequence "
                    f"of {tokens} tokens: {sequence.text!r}"
                )
            cap = self._options.attended_to_cap
            found[folder] = whole[kept_pairs(tokens, cap)] if pairs and cap else whole
        return found

    async def _collate(self, count: int) -> dict[str, Collation]:
        loaded = self._checkpoint.load()
        if loaded is None:
            cuts = await self._pilot(count)
            collations = self._collations(cuts)
            done = 0
            self._save(0, collations, cuts)
        else:
            done, arrays = loaded
            cuts = {
                f: arrays[f"{f}/boundaries"] for f in self._kinds if f"{f}/boundaries" in arrays
            }
            collations = self._collations(cuts)
            self._restore(collations, arrays)
        self._report.stage("collating", count, done)
        rest = islice(self._sequences.read(), done, None)
        async for activations in in_order(rest, self._activations, self._options.concurrency):
            for folder, values in activations.items():
                collations[folder].add(done, values)
            done += 1
            self._report.advance()
            if done % self._options.checkpoint_every == 0:
                self._save(done, collations, cuts)
        self._save(done, collations, cuts)
        return collations

    async def _pilot(self, count: int) -> dict[str, NDArray[np.float64]]:
        sizes = self._options.sizes
        if not sizes.bins:
            return {}
        fraction = self._options.pilot_sequences / count
        seed = self._options.seed
        # Never an empty pilot: the first sequence stands in where chance chose none.
        chosen = [i for i in range(count) if in_pilot(seed, i, fraction)] or [0]
        self._report.stage("estimating quantiles", len(chosen))
        picked = _at(self._sequences.read(), chosen)
        maxima: dict[str, list[NDArray[np.float64]]] = {folder: [] for folder in self._kinds}
        async for activations in in_order(picked, self._activations, self._options.concurrency):
            for folder, values in activations.items():
                maxima[folder].append(largest(values))
            self._report.advance()
        return {f: boundaries(np.stack(rows), sizes.quantiles) for f, rows in maxima.items()}

    def _collations(self, cuts: dict[str, NDArray[np.float64]]) -> dict[str, Collation]:
        options = self._options
        return {
            folder: Collation(
                components=sum(self._layer_sizes[folder]),
                width=value_count(options.most_tokens, kind.by_token_pair, options.attended_to_cap),
                sizes=options.sizes,
                seed=options.seed,
                quantile_boundaries=cuts.get(folder),
            )
            for folder, kind in self._kinds.items()
        }

    def _save(
        self,
        done: int,
        collations: dict[str, Collation],
        cuts: dict[str, NDArray[np.float64]],
    ) -> None:
        arrays: Arrays = {
            f"{folder}/{name}": array
            for folder, collation in collations.items()
            for name, array in collation.state().items()
        }
        arrays.update({f"{folder}/boundaries": values for folder, values in cuts.items()})
        self._checkpoint.save(done, arrays)

    def _restore(self, collations: dict[str, Collation], arrays: Arrays) -> None:
        for folder, collation in collations.items():
            state = {
                name.removeprefix(f"{folder}/"): array
                for name, array in arrays.items()
                if name.startswith(f"{folder}/")
            }
            try:
                collation.restore(state)
            except (KeyError, ValueError) as error:
                raise FailedPrecondition(
                    f"{self._options.out} holds an unfinished job on a model of another shape "
                    f"({error}); begin again with --overwrite",
                    field="out",
                ) from error

    def _write(self, collations: dict[str, Collation]) -> int:
        needed = set().union(*(collation.positions() for collation in collations.values()))
        tokens = {
            position: sequence.tokens
            for position, sequence in enumerate(self._sequences.read())
            if position in needed
        }
        total = sum(sum(sizes) for sizes in self._layer_sizes.values())
        self._report.stage("writing records", total)
        for dataset in self._options.datasets:
            for record in self._records(dataset, collations[dataset.folder], tokens):
                folder = self._options.out / dataset.folder
                write_record(folder, record, self._options.significant_digits)
                self._report.advance()
        return total

    def _records(
        self, dataset: Dataset, collation: Collation, tokens: dict[int, list[str]]
    ) -> Iterator[NeuronRecord]:
        pairs = self._kinds[dataset.folder].by_token_pair
        cap = self._options.attended_to_cap
        return records(
            collation,
            self._layer_sizes[dataset.folder],
            tokens.__getitem__,
            lambda count: value_count(count, pairs, cap),
        )


def _at(items: Iterator[_Item], positions: Iterable[int]) -> Iterator[_Item]:
    """The items at ascending positions."""
    before = -1
    for position in positions:
        yield next(islice(items, position - before - 1, None))
        before = position


async def in_order(
    items: Iterable[_Item], work: Callable[[_Item], Awaitable[_Result]], concurrency: int
) -> AsyncIterator[_Result]:
    """Results of `work` in the order of the items, with so many at work at a time.

    The first failure is raised when its turn comes; what is still at work is cancelled then.
    """
    waiting: deque[asyncio.Task[_Result]] = deque()
    try:
        for item in items:
            waiting.append(asyncio.ensure_future(_run(work, item)))
            if len(waiting) >= concurrency:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _run(work: Callable[[_Item], Awaitable[_Result]], item: _Item) -> _Result:
    return await work(item)
