"""Explanations to search, and searches by the stubs of a record service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from neuropil.errors import NeuropilError, atranslated
from neuropil.names import DERIVED_SCALAR_TYPES, component_id
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_tensor
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import NeuronId
from shared.formats.simulations import (
    NeuronSimulationResults,
    ScoredExplanation,
    ScoredSimulation,
)
from shared.settings import Dataset, Deployment, Search

MLP = "mlp_post_act"


def explain(folder: Path, layer: int, index: int, *texts: tuple[str, float | None]) -> Path:
    path = folder / str(layer) / f"{index}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    explanations = [ScoredExplanation(text, ScoredSimulation([], score)) for text, score in texts]
    write_atomically(path, encode(NeuronSimulationResults(NeuronId(index, layer), explanations)))
    return path


def written(folder: Path) -> Path:
    """The folder, with explanations in several datasets."""
    explain(folder / "expl", 0, 0, ("words about cats and dogs", 0.5), ("nothing", None))
    explain(folder / "expl", 0, 1, ("the verb 'running'", 0.25))
    explain(folder / "expl", 3, 7, ("cats", -0.5))
    explain(folder / "cached" / "a", 1, 2, ("cats again", 0.75))
    explain(folder / "other", 0, 0, ("cats of another dataset", 0.5))
    return folder


def deployment(root: Path, **search: Any) -> Deployment:
    def dataset(name: str, **more: Any) -> Dataset:
        return Dataset(
            short_name=name,
            derived_scalar_type=MLP,
            user_visible_name=name,
            neuron_dataset_path=str(root / "records" / name),
            **more,
        )

    return Deployment(
        datasets=(
            dataset(
                "demo",
                explanation_dataset_paths=(str(root / "expl"),),
                cached_explanations_path=str(root / "cached"),
            ),
            dataset("other", explanation_dataset_paths=(str(root / "other"),)),
            dataset("empty"),
        ),
        allowed_path_prefixes=(str(root / "open"),),
        search=Search(**({"rescan_seconds": 0.1, "semantic": False} | search)),
    )


def request(query: str, dataset: str = "demo", **more: Any) -> v1.SearchExplanationsRequest:
    scalar_type = more.pop("derived_scalar_type", MLP)
    return v1.SearchExplanationsRequest(
        dataset=v1.DatasetId(
            dataset=dataset, derived_scalar_type=DERIVED_SCALAR_TYPES.value(scalar_type)
        ),
        query=query,
        **more,
    )


async def complete(stub: Any, query: str, **more: Any) -> v1.SearchExplanationsResponse:
    """The answer, once everything is indexed."""
    async with asyncio.timeout(90):
        while True:
            async with atranslated():
                answer = await stub.SearchExplanations(request(query, **more), timeout=60)
            if answer.index.complete:
                return answer
            await asyncio.sleep(0.05)


async def eventually(stub: Any, query: str, texts: set[str], *, only: str = "") -> None:
    """Until these are the texts that are found, of those that have `only` in them."""
    async with asyncio.timeout(30):
        found = None
        while found != texts:
            answer = await stub.SearchExplanations(request(query))
            found = {text for text in texts_of(answer) if only in text}
            await asyncio.sleep(0.05)


async def put(stub: Any, folder: Path, text: str) -> None:
    message = v1.PutExplanationRequest(
        component=component_id(MLP, 4, 4),
        explanation_dataset=str(folder),
        explanation=text,
        scored_simulation=scored_message(),
    )
    async with atranslated():
        await stub.PutExplanation(message)


async def until_indexed(count: int) -> None:
    name, labels = "neuropil_records_search_indexed_explanations", {"mode": "text"}
    async with asyncio.timeout(30):
        while REGISTRY.get_sample_value(name, labels) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def scored_message() -> simulation.ScoredSimulation:
    scores = simulation.Scores(ev_correlation=simulation.Score(value=0.5))
    sequence = simulation.ScoredSequenceSimulation(
        simulation=simulation.SequenceSimulation(
            tokens=["a", "b"],
            expected_activations=to_tensor([0.0, 3.0]),
            activation_scale=simulation.ACTIVATION_SCALE_NEURON_ACTIVATIONS,
        ),
        true_activations=to_tensor([0.0, 3.0]),
        scores=scores,
    )
    return simulation.ScoredSimulation(sequences=[sequence], scores=scores)


def texts_of(answer: v1.SearchExplanationsResponse) -> set[str]:
    return {hit.explanation.text for hit in answer.hits}


async def refused(stub: Any, **wrong: Any) -> NeuropilError:
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            await stub.SearchExplanations(request(**wrong))
    return caught.value
