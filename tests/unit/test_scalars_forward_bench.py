"""The measurement of forward passes does the work that it says it measures."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tests.load.scalars_forward import CONTESTANTS, WORKS, table
from tests.load.scalars_forward_work import Theirs, padded
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_llama_checkpoint import LAYERS, write_llama_checkpoint


def test_prompts_are_padded_to_the_longest() -> None:
    ids, mask, last = padded([[3, 4, 5], [6]])
    assert ids.tolist() == [[3, 4, 5], [6, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert last.tolist() == [2, 0]


class Counting(Theirs):
    """Notes the rows of what the hooks keep."""

    def __init__(self, path: Path) -> None:
        self.rows: list[int] = []
        super().__init__(path, hooks=True)

    def _keep(self, tensor: Tensor) -> None:
        super()._keep(tensor)
        self.rows.append(tensor.shape[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_hooks_keep_five_tensors_a_layer_in_every_work(tmp_path: Path, family: str) -> None:
    write_checkpoint(tmp_path) if family == "gpt2" else write_llama_checkpoint(tmp_path)
    theirs = Counting(tmp_path)
    for work in WORKS:
        theirs.rows.clear()
        theirs(work, [[1, 2, 3, 4], [5, 6]] if work == "mixed" else [[1, 2, 3, 4]])
        assert theirs.rows == [2 if work == "mixed" else 1] * 5 * LAYERS


def test_the_table_has_every_work(tmp_path: Path) -> None:
    path = write_llama_checkpoint(tmp_path)
    lines = list(table("tiny", path, (path / "model.safetensors").stat().st_size, 1, 8))
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 1 + len(WORKS) + 1
    for row in rows[1:]:
        values = [float(each) for each in row.strip("|").split("|")[1:]]
        assert len(values) == 2 * len(CONTESTANTS)
        assert min(values) >= 0
