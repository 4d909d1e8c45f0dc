"""Explanation folders that are spelt in several ways, and names that no text can hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from neuropil.names import component_id
from neuropil.records import v1
from services.records.datasets import DatasetRegistry
from services.records.explanations import listed_as
from services.records.storage.folders import Folder
from shared.settings import Dataset, Deployment
from tests.integration import search_running
from tests.integration.records_running import MLP, World, explained, put_request, serving


def respelt(world: World, **paths: Any) -> Deployment:
    """The deployment, with other spellings of the first dataset's paths."""
    first, *others = world.deployment().datasets
    datasets = (first.model_copy(update=paths), *others)
    return world.deployment().model_copy(update={"datasets": datasets})


async def texts(stub: Any) -> list[str]:
    request = v1.ListExplanationsRequest(component=component_id(MLP, 0, 0), neuron_dataset="pub")
    return [each.text for each in (await stub.ListExplanations(request)).explanations]


@pytest.mark.parametrize("step", ["//", "/./", "/expl/../"])
@pytest.mark.parametrize("folder", ["expl", "cached/a"])
async def test_what_is_put_is_listed_at_once_however_its_folder_is_configured(
    tmp_path: Path, step: str, folder: str
) -> None:
    world = World(tmp_path)
    deployment = respelt(
        world,
        explanation_dataset_paths=(f"{tmp_path}{step}expl",),
        cached_explanations_path=f"{tmp_path}{step}cached",
    )
    async with serving(deployment) as stub:
        before = await texts(stub)
        await stub.PutExplanation(put_request(world, "new", folder=folder))
        assert sorted(await texts(stub)) == sorted([*before, "new"])


def test_an_address_of_azure_is_one_folder_in_both_spellings() -> None:
    def dataset(explanations: str, cached: str) -> Dataset:
        return Dataset(
            short_name="pub",
            derived_scalar_type=MLP,
            user_visible_name="pub",
            neuron_dataset_path="az://acct/box/records",
            explanation_dataset_paths=(explanations,),
            cached_explanations_path=cached,
        )

    long, short = "https://acct.blob.core.windows.net/box", "az://acct/box"
    for configured, asked in ((long, short), (short, long)):
        registry = DatasetRegistry((dataset(f"{configured}/expl", f"{configured}/cached/"),))
        put = registry.explanation_folder(f"{asked}/expl")
        assert listed_as(registry, put) == [Folder.trusted(f"{configured}/expl")]
        cached = registry.explanation_folder(f"{asked}/cached/a")
        assert listed_as(registry, cached) == [Folder.trusted(f"{configured}/cached/a")]


async def test_a_folder_whose_name_is_no_text_hides_no_other(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write("cached/odd/0/0.jsonl", explained(("odd", 0.5)))
    os.rename(world.path("cached/odd"), os.fsencode(world.path("cached")) + b"/o\xffd")
    async with serving(world.deployment()) as stub:
        assert await texts(stub) == ["vowels", "nothing", "cached a", "cached b"]


async def test_a_folder_whose_name_is_no_text_does_not_end_the_index(tmp_path: Path) -> None:
    root = search_running.written(tmp_path)
    search_running.explain(root / "cached/odd", 0, 0, ("cats nobody can name", 0.5))
    os.rename(root / "cached/odd", os.fsencode(root / "cached") + b"/o\xffd")
    async with serving(search_running.deployment(root)) as stub:
        answer = await search_running.complete(stub, "again")
    assert [hit.explanation.text for hit in answer.hits] == ["cats again"]
