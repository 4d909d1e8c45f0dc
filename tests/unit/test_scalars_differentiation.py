"""Differentiating single blocks, as derivations that run side by side do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from services.scalars.deriving.differentiation import directional_derivative, gradient

WEIGHTS = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))


def block(x: Tensor) -> Tensor:
    return torch.tanh(x @ WEIGHTS)


def test_threads_do_not_disturb_each_other() -> None:
    def differs(seed: int) -> bool:
        generator = torch.Generator().manual_seed(seed)
        at, along = (torch.randn(32, generator=generator) for _ in range(2))
        with torch.inference_mode():
            change = directional_derivative(block, at, along)
            slope = gradient(lambda x: block(x).sum(), at)
        through = 1 - block(at).square()
        return not (
            torch.allclose(change, through * (along @ WEIGHTS), atol=1e-4)
            and torch.allclose(slope, WEIGHTS @ through, atol=1e-4)
        )

    with ThreadPoolExecutor(4) as threads:
        assert not any(threads.map(differs, range(400)))
