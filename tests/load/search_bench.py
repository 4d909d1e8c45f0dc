"""`python -m tests.load.search_bench [EXPLANATIONS ...]`: what `make bench-search` runs.

Searches go through a record service in a process of its own. Its index is filled beforehand: with
the words of made-up explanations, and with random unit vectors, as embedding 100,000 texts takes
minutes. How fast texts are embedded is measured on a few of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
import yaml

from neuropil.channel import open_aio_channel
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.records import v1
from services.records.search.documents import FileKey, Text
from services.records.search.embedder import Embedder, model_version
from services.records.search.index import ExplanationIndex
from services.records.search.index_semantic import DIMENSIONS
from services.records.search.scanner import path_of
from services.records.storage.file_store import FileStore
from services.records.storage.folders import Folder
from shared.formats.encoding import encode
from shared.formats.records import NeuronId
from shared.formats.simulations import (
    NeuronSimulationResults,
    ScoredExplanation,
    ScoredSimulation,
)
from shared.logs import configure_logs
from tests.faults.processes import usage
from tests.load.closed_loop import closed_loop
from tests.load.processes import REPOSITORY, server

MLP = "mlp_post_act"
SIZES = (10_000, 100_000)
BUILT = 10_000
"""Most explanations that are also read from files: the scanner rests half the time."""

PER_COMPONENT, LAYERS = 5, 12
CLIENTS = (1, 16)
MODES = {
    "words": [v1.SEARCH_MODE_TEXT],
    "meaning": [v1.SEARCH_MODE_SEMANTIC],
    "half and half": [v1.SEARCH_MODE_TEXT, v1.SEARCH_MODE_SEMANTIC],
}
CALLS = {"words": 600, "meaning": 240, "half and half": 400}
EMBEDDED, AT_ONCE = 320, 32
PATTERNS = (
    "the word '{}' and what follows it",
    "references to {} and {}",
    "{} after {} in a sentence",
    "phrases about {}, {} or {}",
    "names that have to do with {}",
    "the beginning of {} {}",
    "verbs such as {} and {}, in the past tense",
    "{}, mostly in code",
)


def texts(count: int) -> Iterator[str]:
    """Made-up explanations; their words are the demo's, as often as words are in a language."""
    random = np.random.default_rng(0)
    words = _words()
    weights = 1 / (np.arange(len(words)) + 2.7)
    drawn = iter(random.choice(words, 3 * count, p=weights / weights.sum()).tolist())
    for pattern in random.choice(PATTERNS, count).tolist():
        yield pattern.format(*itertools.islice(drawn, pattern.count("{}")))


async def measure(sizes: tuple[int, ...] = SIZES) -> list[str]:
    """Lines of Markdown."""
    lines = [*await _embedding(), ""]
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            lines += [*await _searches(Path(folder), size), ""]
    return lines


async def _embedding() -> list[str]:
    embedder = Embedder()
    some = list(texts(EMBEDDED))
    try:
        await embedder.embed(some[:AT_ONCE], for_query=False)
        began = time.perf_counter()
        for start in range(0, len(some), AT_ONCE):
            await embedder.embed(some[start : start + AT_ONCE], for_query=False)
        seconds = time.perf_counter() - began
        assert embedder.pid is not None
        memory = usage(embedder.pid).rss_bytes
    finally:
        await embedder.close()
    return [
        f"{len(some)} explanations embedded, {AT_ONCE} at once: {seconds / len(some) * 1e3:.1f} s"
        f" for 1,000. The model's process: {memory / 1e6:.0f} MB."
    ]


async def _searches(folder: Path, size: int) -> list[str]:
    explanations = folder / "explanations"
    all_texts = list(texts(size))
    _write(explanations, all_texts)
    lines = [f"### {size:,} explanations", ""]
    if size <= BUILT:
        with _serving(folder, {"semantic": False}) as (address, _):
            seconds = await _complete(address, v1.SEARCH_MODE_TEXT)
        lines.append(f"- built from files, words only: {seconds / size * 1e3:.2f} s for 1,000")
    _fill(folder / "index", explanations, all_texts)
    with _serving(folder, {"index_path": "index"}) as (address, pid):
        seconds = await _complete(address, v1.SEARCH_MODE_SEMANTIC)
        lines.append(f"- taken up from a kept index, until the first search: {seconds:.1f} s")
        rows = await _table(address, pid, all_texts)
        lines.append(f"- memory of the service afterwards: {usage(pid).rss_bytes / 1e6:.0f} MB")
    return [
        *lines,
        "",
        "| search | clients | searches/s | p50 ms | p99 ms | CPU of the service ms |",
        "|---|---|---|---|---|---|",
        *rows,
    ]


async def _table(address: str, pid: int, all_texts: list[str]) -> list[str]:
    random = np.random.default_rng(1)
    # What a person types: a part of what an explanation says.
    queries = [
        " ".join(all_texts[number].split()[-3:])
        for number in random.integers(0, len(all_texts), 200).tolist()
    ]
    rows = []
    async with open_aio_channel(address) as channel:
        stub = v1.RecordReaderStub(channel)
        for name, clients in itertools.product(MODES, CLIENTS):
            modes = MODES[name]

            async def search(number: int, modes: list[Any] = modes) -> object:
                mode = modes[number % len(modes)]
                return await stub.SearchExplanations(
                    _request(queries[number % len(queries)], mode), timeout=60
                )

            await closed_loop(search, pid, calls=2 * clients, workers=clients)
            measured = await closed_loop(search, pid, calls=CALLS[name], workers=clients)
            rows.append(
                f"| {name} | {clients} | {measured.rate:,.0f} | {measured.p50_ms:.1f}"
                f" | {measured.p99_ms:.1f} | {measured.cpu_us_per_call / 1e3:.1f} |"
            )
    return rows


async def _complete(address: str, mode: Any) -> float:
    """Seconds until an answer is over everything."""
    began = time.perf_counter()
    async with open_aio_channel(address) as channel:
        stub = v1.RecordReaderStub(channel)
        while True:
            answer = await stub.SearchExplanations(_request("words", mode), timeout=120)
            if answer.index.complete:
                return time.perf_counter() - began
            await asyncio.sleep(0.1)


def _request(query: str, mode: Any) -> v1.SearchExplanationsRequest:
    dataset = v1.DatasetId(dataset="bench", derived_scalar_type=DERIVED_SCALAR_TYPES.value(MLP))
    return v1.SearchExplanationsRequest(dataset=dataset, query=query, mode=mode)


def _write(folder: Path, all_texts: list[str]) -> None:
    for place, several in _components(all_texts):
        path = folder / f"{place[0]}" / f"{place[1]}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        scored = [ScoredExplanation(text, ScoredSimulation([], score)) for text, score in several]
        path.write_bytes(encode(NeuronSimulationResults(NeuronId(place[1], place[0]), scored)))


def _components(
    all_texts: list[str],
) -> Iterator[tuple[tuple[int, int], list[tuple[str, float]]]]:
    """Layer and component, and the explanations of each with their scores."""
    for number, start in enumerate(range(0, len(all_texts), PER_COMPONENT)):
        several = all_texts[start : start + PER_COMPONENT]
        yield (
            (number % LAYERS, number // LAYERS),
            [(text, (7 * (start + each)) % 100 / 100) for each, text in enumerate(several)],
        )


def _fill(folder: Path, explanations: Path, all_texts: list[str]) -> None:
    """Make the index that the service finds: as of those files, with random vectors."""
    index = ExplanationIndex(folder, model_version())
    source = Folder.trusted(str(explanations))
    number = index.folder(path_of(source))
    store = FileStore()
    versions = [store.versions(source, str(layer)) for layer in range(LAYERS)]
    for (layer, component), several in _components(all_texts):
        index.replace(
            FileKey(number, layer, component),
            versions[layer][f"{component}.jsonl"],
            [Text(text, score) for text, score in several],
        )
    index.commit()
    random = np.random.default_rng(2)
    while documents := index.pending(5000, 10**9):
        vectors = random.standard_normal((len(documents), DIMENSIONS), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        index.embed(documents, vectors.astype(np.float16))
    index.close()


def _serving(folder: Path, search: dict[str, Any]) -> Any:
    dataset = {
        "short_name": "bench",
        "derived_scalar_type": MLP,
        "user_visible_name": "Bench",
        "neuron_dataset_path": "records",
        "explanation_dataset_paths": ["explanations"],
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump({"datasets": [dataset], "search": search}))
    return server("services.records", "--config", str(path), "--port", "0", "--metrics-port", "0")


def _words() -> list[str]:
    """Words of the demo's records."""
    found: dict[str, None] = {}
    for path in sorted((REPOSITORY / "data" / "demo" / "records" / "mlp").glob("*/?.json")):
        record = json.loads(path.read_bytes())
        for sequence in record["most_positive_activation_records"]:
            words = (token.strip() for token in sequence["tokens"])
            found |= dict.fromkeys(word for word in words if word.isalpha() and len(word) > 2)
    return list(found)


def main(arguments: list[str]) -> int:
    """Measure at the numbers of explanations that are given, or at the usual ones."""
    configure_logs("bench", level="WARNING")
    sizes = tuple(int(argument) for argument in arguments) or SIZES
    print("\n".join(uvloop.run(measure(sizes))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
