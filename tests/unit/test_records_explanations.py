"""Where explanations are looked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.records.components import Component
from services.records.datasets import DatasetRegistry
from services.records.explanations import find_sources
from services.records.storage.blobs import Blobs
from shared.errors import InvalidArgument
from shared.settings import Dataset

COMPONENT = Component("mlp_post_act", 0, 0)


@pytest.fixture
def blobs() -> Iterator[Blobs]:
    store = Blobs(threads=1)
    yield store
    store.close()


@pytest.fixture
def registry(tmp_path: Path) -> DatasetRegistry:
    for name in ("cached/b", "cached/a", "cached/10", "cached/9"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cached/file").write_text("")
    return DatasetRegistry(
        [
            Dataset(
                short_name="pub",
                derived_scalar_type="mlp_post_act",
                user_visible_name="Neurons",
                neuron_dataset_path=str(tmp_path / "mlp"),
                explanation_dataset_paths=("/z", "/a"),
                cached_explanations_path=str(tmp_path / "cached"),
            )
        ]
    )


@pytest.mark.parametrize(("paths", "dataset"), [([], None), (["/a"], "pub")])
async def test_exactly_one_source(
    registry: DatasetRegistry, blobs: Blobs, paths: list[str], dataset: str | None
) -> None:
    with pytest.raises(InvalidArgument, match="Exactly one of") as caught:
        await find_sources(
            registry, blobs, COMPONENT, explanation_datasets=paths, neuron_dataset=dataset
        )
    assert caught.value.field == "source"


async def test_registered_ones_in_order_then_folders_by_name(
    registry: DatasetRegistry, blobs: Blobs, tmp_path: Path
) -> None:
    sources = await find_sources(
        registry, blobs, COMPONENT, explanation_datasets=[], neuron_dataset="pub"
    )
    cached = tmp_path / "cached"
    assert [folder.path for folder in sources.folders] == [
        "/z",
        "/a",
        *(str(cached / name) for name in ("10", "9", "a", "b")),
    ]
    assert sources.folders[2].root == str(cached)
    assert sources.failures == []
