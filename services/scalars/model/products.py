"""Products with weights, which may be of lower precision than everything else.

With bfloat16 weights the factors of a product and its result are bfloat16, its sums float32 or
better; all else (residual stream, norms, nonlinearities, attention) is float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, in) times weight (in, out), plus a bias (out,) of x's type; of x's type."""
    if weight.dtype == x.dtype:
        return x @ weight if bias is None else torch.addmm(bias, x, weight)
    product = (x.to(weight.dtype) @ weight).to(x.dtype)
    return product if bias is None else product + bias


def columns(
    weight: Tensor, bias: Tensor | None, chosen: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Of a product (in, out) and its bias (out,) only the chosen outputs, all for None."""
    if chosen is None:
        return weight, bias
    return weight[:, chosen], None if bias is None else bias[chosen]


class Upcast(Sequence[Tensor]):
    """Weights of all layers as float32, converted when one is asked for and not kept."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = tuple(weights)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return Upcast(self._weights[index])
        return self._weights[index].to(torch.float32)

    def __len__(self) -> int:
        return len(self._weights)

    def __iter__(self) -> Iterator[Tensor]:
        return (weight.to(torch.float32) for weight in self._weights)


def as_float32(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same where they are float32, and else converted whenever one is asked for."""
    if all(weight.dtype == torch.float32 for weight in weights):
        return weights
    return Upcast(weights)
