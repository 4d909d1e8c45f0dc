"""The collate job on a small source of its own: what it writes, resumes and refuses."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.collate.checkpoint import Checkpoint
from services.collate.collation import SampleSizes
from services.collate.job import Summary, collate, in_order
from services.collate.options import Dataset, Options
from services.collate.source import LayerActivations, ScalarKind, Subject
from services.collate.writing import kept_pairs, value_count
from shared.errors import DataLoss, FailedPrecondition, InvalidArgument, NeuropilError, NotFound
from shared.formats.decoding import decode_neuron_record
from shared.formats.records import NeuronRecord
from shared.formats.token_pairs import attended_cap, coordinates

LAYERS, NEURONS, HEADS = 2, 6, 2


class Interrupted(Exception):
    """Stands for a kill: raised out of the source after so many calls."""


class HashedActivations:
    """A source whose activations are a hash of the text, and whose tokens are its words."""

    def __init__(self, calls: int | None = None) -> None:
        self.calls_left = calls
        self.broken = False

    async def subject(self) -> Subject:
        return Subject("hashed", LAYERS, 64)

    async def kinds(self, names: Sequence[str]) -> list[ScalarKind]:
        return [ScalarKind(name, by_token_pair=name.startswith("attn")) for name in names]

    async def tokenize(self, texts: list[str]) -> list[list[str]]:
        return [[piece for piece in text.split(" ") if piece] for text in texts]

    async def activations(self, text: str, names: Sequence[str]) -> dict[str, LayerActivations]:
        await asyncio.sleep(0)
        if self.calls_left is not None:
            if self.calls_left == 0:
                raise Interrupted
            self.calls_left -= 1
        return {name: activations_of(text, name) for name in names}


def activations_of(text: str, name: str) -> list[NDArray[np.float32]]:
    tokens = len([piece for piece in text.split(" ") if piece])
    rows, columns = tokens, NEURONS
    if name.startswith("attn"):
        rows, columns = tokens * (tokens + 1) // 2, HEADS
    seed = int.from_bytes(hashlib.sha256((name + text).encode()).digest()[:8], "big")
    random = np.random.default_rng(seed)
    return [random.normal(size=(rows, columns)).astype(np.float32) for _ in range(LAYERS)]


class Silent:
    """A reporter that only remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None, int]] = []
        self.advanced = 0

    def stage(self, name: str, total: int | None, completed: int = 0) -> None:
        self.stages.append((name, total, completed))
        self.advanced = completed

    def advance(self, count: int = 1) -> None:
        self.advanced += count


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "corpus.txt"
    lines = [
        " ".join(f"w{word}" for word in random.integers(0, 500, size=random.integers(1, 40)))
        for _ in range(60)
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def options(corpus: Path, tmp_path: Path) -> Options:
    return Options(
        corpus=str(corpus),
        out=tmp_path / "out",
        least_tokens=3,
        most_tokens=10,
        sizes=SampleSizes(top=4, random=5, per_quantile=2, quantiles=(0.5, 0.8)),
        pilot_sequences=40,
        significant_digits=None,
        concurrency=3,
        checkpoint_every=7,
    )


async def run(options: Options, source: HashedActivations | None = None, **more: bool) -> Summary:
    return await collate(options, source or HashedActivations(), Silent(), **more)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def record(options: Options, dataset: str, layer: int, index: int) -> NeuronRecord:
    path = options.out / dataset / str(layer) / f"{index}.json"
    return decode_neuron_record(path.read_bytes(), str(path))


async def test_records_hold_what_brute_force_finds(options: Options) -> None:
    summary = await run(options)
    assert summary.records == LAYERS * (NEURONS + HEADS)
    texts = pieces(Path(options.corpus), options)
    assert summary.sequences == len(texts)
    for dataset, name, size in (
        ("mlp", "mlp_post_act", NEURONS),
        ("attn", "attn_write_norm", HEADS),
    ):
        for layer in range(LAYERS):
            true = [activations_of(text, name)[layer] for text in texts]
            for index in range(size):
                found = record(options, dataset, layer, index)
                ranked = sorted(range(len(texts)), key=lambda p: -true[p][:, index].max())
                top = found.most_positive_activation_records
                assert [" ".join(r.tokens) for r in top] == [texts[p].strip() for p in ranked[:4]]
                np.testing.assert_array_equal(
                    np.float32(top[0].activations), true[ranked[0]][:, index]
                )
                whole = np.concatenate([part[:, index] for part in true]).astype(np.float64)
                assert found.mean == pytest.approx(whole.mean())
                assert found.variance == pytest.approx(whole.var())
                assert len(found.random_sample) == 5
                assert found.random_sample_by_quantile is not None
                assert found.quantile_boundaries is not None
                assert len(found.quantile_boundaries) == 2
                for bin_index, sample in enumerate(found.random_sample_by_quantile):
                    for kept in sample:
                        above = sum(max(kept.activations) >= b for b in found.quantile_boundaries)
                        assert above == bin_index


def pieces(corpus: Path, options: Options) -> list[str]:
    """The corpus cut as the job promises, word by word."""
    found = []
    for line in corpus.read_text().split("\n"):
        words = line.split(" ")
        for start in range(0, len(words), options.most_tokens):
            part = words[start : start + options.most_tokens]
            if len(part) >= options.least_tokens:
                found.append((" " if start else "") + " ".join(part))
    return found


async def test_interrupted_anywhere_it_ends_with_the_same_files(
    options: Options, tmp_path: Path
) -> None:
    await run(options)
    whole = files(options.out)
    again = replace(options, out=tmp_path / "again", concurrency=1)
    interruptions = 0
    while True:
        try:
            summary = await run(again, HashedActivations(calls=60))
        except Interrupted:
            interruptions += 1
            assert not (again.out / "collation.json").exists()
        else:
            break
    assert interruptions > 1
    assert not summary.already_complete
    assert files(again.out) == whole


async def test_finished_it_is_not_done_twice(options: Options) -> None:
    await run(options)
    before = files(options.out)
    summary = await run(options, HashedActivations(calls=0))
    assert summary.already_complete
    assert files(options.out) == before
    assert not (options.out / ".collate").exists()


async def test_concurrency_changes_nothing(options: Options, tmp_path: Path) -> None:
    await run(options)
    other = replace(options, out=tmp_path / "other", concurrency=1, checkpoint_every=1000)
    await run(other)
    assert files(other.out) == files(options.out)


async def test_another_job_is_refused_until_overwritten(options: Options) -> None:
    await run(options)
    changed = replace(options, seed=1)
    with pytest.raises(FailedPrecondition, match="--overwrite"):
        await run(changed)
    assert not (options.out / ".collate").exists()
    before = files(options.out)
    await run(changed, overwrite=True)
    assert files(options.out).keys() == before.keys()
    assert files(options.out) != before


async def test_unfinished_job_with_other_options_is_refused(options: Options) -> None:
    with pytest.raises(Interrupted):
        await run(options, HashedActivations(calls=70))
    with pytest.raises(FailedPrecondition, match="differs in seed, sizes"):
        await run(replace(options, seed=1, sizes=SampleSizes(top=5)))
    await run(options)


async def test_unreadable_checkpoint_names_its_file(options: Options) -> None:
    with pytest.raises(Interrupted):
        await run(options, HashedActivations(calls=70))
    state = options.out / ".collate" / "state.npz"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(DataLoss, match=r"state\.npz") as caught:
        await run(options)
    assert caught.value.metadata["file"].endswith("state.npz")
    await run(options, overwrite=True)


async def test_records_of_somebody_else_are_left_alone(options: Options) -> None:
    path = options.out / "mlp" / "0" / "3.json"
    path.parent.mkdir(parents=True)
    path.write_text("theirs")
    with pytest.raises(FailedPrecondition, match="another job"):
        await run(options)
    assert files(options.out) == {"mlp/0/3.json": b"theirs"}


async def test_two_at_once_are_refused(options: Options) -> None:
    with (
        Checkpoint(options.out).locked(),
        pytest.raises(FailedPrecondition, match="another process"),
    ):
        await run(options)


async def test_pairs_are_capped(options: Options) -> None:
    capped = replace(options, attended_to_cap=3)
    await run(capped)
    for kept in record(capped, "attn", 1, 0).most_positive_activation_records:
        tokens = len(kept.tokens)
        assert attended_cap(tokens, len(kept.activations)) == min(3, tokens)


async def test_limit_stops_early(options: Options) -> None:
    assert (await run(replace(options, limit=11))).sequences == 11


async def test_few_sequences_give_short_records(options: Options) -> None:
    await run(replace(options, limit=2))
    found = record(options, "mlp", 0, 0)
    assert len(found.most_positive_activation_records) == 2
    assert len(found.random_sample) == 2


async def test_significant_digits(options: Options) -> None:
    await run(replace(options, significant_digits=3))
    for kept in record(options, "mlp", 0, 0).most_positive_activation_records:
        assert all(float(f"{value:.2e}") == value for value in kept.activations)


async def test_activations_of_a_wrong_shape_are_refused(options: Options) -> None:
    class Short(HashedActivations):
        async def activations(self, text: str, names: Sequence[str]) -> dict[str, LayerActivations]:
            derived = await super().activations(text, names)
            return {name: [layer[1:] for layer in layers] for name, layers in derived.items()}

    with pytest.raises(DataLoss, match="shape"):
        await run(options, Short())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"least_tokens": 0}, "least_tokens"),
        ({"most_tokens": 2}, "most_tokens"),
        ({"most_tokens": 65}, "most_tokens"),
        ({"sizes": SampleSizes(top=0)}, "top"),
        ({"sizes": SampleSizes(random=-1)}, "random"),
        ({"sizes": SampleSizes(quantiles=(0.5, 0.5))}, "quantile"),
        ({"sizes": SampleSizes(quantiles=(0.0,))}, "quantile"),
        ({"sizes": SampleSizes(quantiles=(float("nan"),))}, "quantile"),
        ({"seed": -1}, "seed"),
        ({"limit": 0}, "limit"),
        ({"concurrency": 0}, "concurrency"),
        ({"pilot_sequences": 0}, "pilot_sequences"),
        ({"attended_to_cap": 0}, "attended_to_cap"),
        ({"datasets": ()}, "dataset"),
        ({"datasets": (Dataset("a", "x"), Dataset("a", "y"))}, "dataset"),
        ({"out": Path("gs://bucket/records")}, "out"),
    ],
)
async def test_bad_options_name_their_field(
    options: Options, change: dict[str, object], field: str
) -> None:
    with pytest.raises(NeuropilError) as caught:
        await run(replace(options, **change))  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["mlp", "=mlp_post_act", "mlp=", "../mlp=mlp_post_act", "a b=c"])
def test_bad_datasets_are_explained(text: str) -> None:
    with pytest.raises(InvalidArgument, match="FOLDER=TYPE"):
        Dataset.parse(text)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("empty.txt", b"", "no text"),
        ("blank.txt", b"\n  \n", "no text"),
        ("short.txt", b"one two\n", "no sequence"),
        ("latin.txt", b"caf\xe9 au lait\n", "not UTF-8"),
        ("torn.jsonl", b'{"text": "a b c d"}\n{"text": "a b', "line 2 is not JSON"),
        ("other.jsonl", b'{"body": "a b c d"}\n', "line 1"),
        ("list.jsonl", b"[1]\n", "line 1"),
        ("half.jsonl", b'{"text": "a b \\ud800 d"}\n', "surrogate"),
        ("plain.txt.gz", b"not packed", "unpacked"),
    ],
)
async def test_bad_corpora_are_explained(
    options: Options, tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=what) as caught:
        await run(replace(options, corpus=str(path)))
    assert caught.value.field == "corpus"
    assert not (options.out / "collation.json").exists()


async def test_missing_corpus(options: Options, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        await run(replace(options, corpus=str(tmp_path / "none.txt")))
    with pytest.raises(InvalidArgument, match="folder"):
        await run(replace(options, corpus=str(tmp_path)))
    with pytest.raises(InvalidArgument, match="no path of storage"):
        await run(replace(options, corpus="s3://bucket/corpus.txt"))


async def test_json_lines_and_unicode(options: Options, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    texts = ["naïve café 日本 語 \u2028 x", "a\tb c\nd e f", "🧠 🧬 🔬 🧪"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert (await run(replace(options, corpus=str(path)))).sequences == 3
    shown = {" ".join(kept.tokens) for kept in record(options, "mlp", 0, 0).random_sample}
    assert "🧠 🧬 🔬 🧪" in shown


def test_pair_geometry_agrees_with_the_format() -> None:
    for tokens in range(1, 12):
        for cap in (None, 1, 3, 20):
            kept = kept_pairs(tokens, cap)
            assert kept.sum() == value_count(tokens, True, cap)
            _, attended = coordinates(tokens, tokens)
            limit = tokens if cap is None else cap
            assert np.array_equal(kept, attended < limit)


async def test_failure_in_order_cancels_the_rest() -> None:
    cancelled = []

    async def work(item: int) -> int:
        if item == 2:
            raise Interrupted
        try:
            await asyncio.sleep(0 if item < 2 else 60)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    seen = []
    with pytest.raises(Interrupted):
        async for result in in_order(range(9), work, 4):
            seen.append(result)
    assert seen == [0, 1]
    assert 3 in cancelled
    assert asyncio.all_tasks() == {asyncio.current_task()}
