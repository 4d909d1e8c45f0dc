"""Local language models: what is shared changes nothing of what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from services.simulation.language_models.local.model import LocalModel
from services.simulation.language_models.local.rows import Row
from tests.unit import small_language_models as small

pytestmark = pytest.mark.torch

FAMILIES = tuple(small.configurations())
COLUMNS = np.asarray([5, 9, 31, 200])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        name: small.save(config, root / name) for name, config in small.configurations().items()
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, LocalModel]:
    return {name: LocalModel.load(str(path), "cpu") for name, path in folders.items()}


def plain(folder: Path, ids: tuple[int, ...]) -> np.ndarray:
    """All logits of transformers' own model, without anything of ours."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.inference_mode():
        return model.eval()(torch.tensor([ids])).logits[0].double().numpy()


def random_ids(seed: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(2, small.VOCABULARY, count).tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefix_gives_transformers_own_logits(
    family: str, models: dict[str, LocalModel], folders: dict[str, Path]
) -> None:
    model = models[family]
    assert model.shares_prefix, model.shares_prefix_reason
    few_shot, explanation = random_ids(1, 30), random_ids(2, 7)
    prefix = model.prefix([few_shot, explanation])
    branch = random_ids(9, 2)
    rows = [
        Row(random_ids(3, 21), np.asarray([0, 4, 20]), COLUMNS),
        Row(random_ids(4, 5), np.asarray([4]), COLUMNS[:2]),
        Row(random_ids(5, 21), np.arange(21), COLUMNS, normalized=True),
        Row(random_ids(6, 17), np.asarray([2, 16, 9]), COLUMNS[::-1], branch),
        Row(random_ids(7, 1), np.asarray([0]), COLUMNS),
    ]
    for row, result in zip(rows, model.logits(prefix, rows), strict=True):
        whole = plain(folders[family], few_shot + explanation + row.ids)[37:]
        np.testing.assert_allclose(
            result.values, whole[row.positions][:, row.columns], atol=1e-4, rtol=1e-4
        )
        assert result.computed == row.computed
        assert result.reused == 37
        if row.normalized:
            sums = np.log(np.exp(whole[row.positions]).sum(axis=1))
            np.testing.assert_allclose(result.normalizers, sums, atol=1e-4)
        if row.branch:
            assert result.branch_values is not None
            for place, position in enumerate(row.positions):
                ids = few_shot + explanation + row.ids[: position + 1] + row.branch
                expected = plain(folders[family], ids)[-1][row.columns]
                np.testing.assert_allclose(result.branch_values[place], expected, atol=1e-4)
