"""Screening in bfloat16 finds what exact products say, whatever the matrix."""

from __future__ import annotations

import pytest
import torch

from services.scalars.vocabulary.screening import RoundedMatrix, screened

WIDTH = 48


def normal(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def long_rows() -> torch.Tensor:
    """Rows whose lengths differ a thousandfold."""
    return normal(3000, WIDTH) * torch.logspace(-1, 2, 3000)[:, None]


def near_ties() -> torch.Tensor:
    """Rows that are told apart by less than rounding takes off them."""
    return normal(1, WIDTH) + 1e-3 * normal(3000, WIDTH, seed=1)


def one_direction() -> torch.Tensor:
    return normal(3000, 1) * normal(1, WIDTH, seed=1)


MATRICES = {
    "random": normal(3001, WIDTH),
    "rows of different lengths": long_rows(),
    "near ties": near_ties(),
    "rows along one direction": one_direction(),
    "an offset to all": normal(3000, WIDTH) + 5,
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("left_out", [(), (0, 5, *range(64, 192), 2990)])
def test_is_what_exact_products_say(name: str, count: int, left_out: tuple[int, ...]) -> None:
    matrix = MATRICES[name]
    directions = normal(40, WIDTH, seed=2)
    directions[7] = 0
    directions[8] *= 1e-3
    directions[9] *= 1e3
    screens, (top_ids, top), (bottom_ids, bottom) = screened(
        RoundedMatrix.of(matrix), directions, count, torch.tensor(left_out, dtype=torch.int64)
    )
    assert not screens[7]
    if name == "random":
        assert int(screens.sum()) == len(directions) - 1
    exact = directions[screens].double() @ matrix.double().T
    for ids, values, largest in ((top_ids, top, True), (bottom_ids, bottom, False)):
        assert ids.shape == (int(screens.sum()), count)
        assert not set(left_out) & set(ids.ravel().tolist())
        others = exact.clone()
        others[:, list(left_out)] = float("-inf") if largest else float("inf")
        best = torch.topk(others, count, dim=1, largest=largest).values
        found = exact.gather(1, torch.from_numpy(ids))
        scale = (directions[screens].norm(dim=1, keepdim=True) * matrix.norm(dim=1).max()).double()
        # Entries that single precision can't tell apart may stand for each other.
        torch.testing.assert_close(found / scale, best / scale, rtol=0, atol=1e-6)
        given = torch.from_numpy(values).double()
        torch.testing.assert_close(given / scale, best / scale, rtol=0, atol=1e-6)
