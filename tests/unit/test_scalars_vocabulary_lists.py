"""Best and worst vocabulary entries of many directions, against sorting in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.scalars.model.family import SubjectModel
from services.scalars.model.subject import load_subject
from services.scalars.vocabulary.remembered_lists import RememberedLists
from services.scalars.vocabulary.vocabulary_lists import TokenLists, VocabularyLists, VocabularySide
from tests.unit.scalars_checkpoint import write_checkpoint

OUTPUT, INPUT = VocabularySide.OUTPUT, VocabularySide.INPUT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu").model


def directions(model: SubjectModel, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, model.shape.residual_stream_channels, generator=generator)


def expected(model: SubjectModel, side: VocabularySide, rows: torch.Tensor) -> torch.Tensor:
    """Scores (N, V) in float64."""
    if side is INPUT:
        return rows.double() @ model.token_embedding.double().T
    write = model.write
    scores = (rows * write.final_norm_gain).double() @ write.unembedding.double().T
    return scores - scores.mean(dim=1, keepdim=True)


def check(lists: TokenLists, scores: torch.Tensor, count: int) -> None:
    ordered = scores.sort(dim=1, descending=True).values.numpy()
    count = min(count, scores.shape[1])
    np.testing.assert_allclose(lists.top_scores, ordered[:, :count], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        lists.bottom_scores, ordered[:, ::-1][:, :count], rtol=1e-4, atol=1e-4
    )
    for ids, values in (
        (lists.top_ids, lists.top_scores),
        (lists.bottom_ids, lists.bottom_scores),
    ):
        assert all(len(set(row)) == count for row in ids.tolist())
        found = scores.gather(1, torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 100_000])
@pytest.mark.parametrize("n", [1, 5, 130])
def test_is_what_sorting_gives(model: SubjectModel, n: int, count: int) -> None:
    vocabulary = VocabularyLists(model)
    rows = {OUTPUT: directions(model, n), INPUT: directions(model, n + 1, 1)}
    both = vocabulary.lists(rows, count)
    for side, each in rows.items():
        check(both[side], expected(model, side, each), count)
        alone = vocabulary.lists({side: each}, count)[side]
        check(alone, expected(model, side, each), count)
    assert vocabulary.lists({}, count) == {}


def test_a_large_vocabulary_is_screened_or_not(model: SubjectModel) -> None:
    """As large a vocabulary as is worth it, and a direction that can't be screened."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(9000, 24, generator=generator)
    rows = directions(model, 30)
    rows[4] = 0
    found = VocabularyLists(model)._of_matrix(matrix, rows, torch.zeros(30), 5, lambda: None)
    scores = rows.double() @ matrix.double().T
    best = scores.topk(5, dim=1).values
    worst = scores.topk(5, dim=1, largest=False).values
    np.testing.assert_allclose(found.top_scores, best, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.bottom_scores, worst, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [3, 30])
def test_some_entries_are_left_out(model: SubjectModel, n: int) -> None:
    left_out = list(range(0, model.shape.vocab_size, 3))
    vocabulary = VocabularyLists(model, left_out)
    rows = directions(model, n)
    scores = expected(model, INPUT, rows)
    scores[:, left_out] = float("-inf")
    found = vocabulary.lists({INPUT: rows}, 4)[INPUT]
    best = scores.topk(4, dim=1).values
    np.testing.assert_allclose(found.top_scores, best, rtol=1e-4, atol=1e-5)
    everything = vocabulary.lists({INPUT: rows}, 10_000)[INPUT]
    assert everything.top_ids.shape == (n, vocabulary.size)
    assert not set(left_out) & set(everything.bottom_ids.ravel().tolist())


def test_no_direction_and_equal_scores(model: SubjectModel) -> None:
    found = VocabularyLists(model).lists({INPUT: torch.zeros(2, 24)}, 3)[INPUT]
    assert found.top_scores.tolist() == found.bottom_scores.tolist() == [[0.0] * 3] * 2
    assert all(len(set(row)) == 3 for row in found.top_ids.tolist())


def test_many_directions_are_checked_upon(model: SubjectModel) -> None:
    class Over(Exception):
        pass

    def give_up() -> None:
        raise Over

    with pytest.raises(Over):
        VocabularyLists(model).lists({INPUT: directions(model, 2)}, 3, give_up)


def one(k: int) -> TokenLists:
    ids = np.arange(k)[None]
    return TokenLists(ids, ids.astype(np.float32), ids, ids.astype(np.float32))


def test_lists_are_remembered_up_to_a_bound() -> None:
    remembered = RememberedLists(5000)
    for number in range(20):
        remembered.put(("neuron", number), one(10))
        # What is used stays.
        assert remembered.get(("neuron", 0), 10) is not None
    assert 0 < len(remembered) < 20
    assert 0 < remembered.n_bytes <= 5000
    assert remembered.get(("neuron", 1), 1) is None
    found = remembered.get(("neuron", 19), 4)
    assert found is not None
    assert found.top_ids.shape == (1, 10)
    assert remembered.get(("neuron", 19), 11) is None
    remembered.put(("neuron", 19), one(12))
    assert remembered.get(("neuron", 19), 11) is not None
    remembered.put("too large", one(10_000))
    assert len(remembered) == 0
    assert remembered.n_bytes == 0
