"""Weights through which nodes write to the residual stream, and what is precomputed from them.

A node's write vector is never multiplied out to find its length or its product with a direction:
the lengths of MLP rows are computed once, and the length of a head's write follows from a small
triangular factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def lasting() -> Iterator[None]:
    """What is made here can be used anywhere later: tensors of inference mode can't."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class WriteWeights:
    """Output weights of all layers, and the way from the residual stream to the logits.

    `mlp[l]` has shape (F, D): row n is neuron n's write vector. `attn[l]` has shape (H, dh, D).
    `mlp_bias[l]` and `attn_bias[l]` are what a block writes besides, shape (D,), None where it has
    no bias. `unembedding` has shape (V, D), `final_norm_gain` (D,).
    """

    def __init__(
        self,
        *,
        mlp: Sequence[Tensor],
        attn: Sequence[Tensor],
        unembedding: Tensor,
        final_norm_gain: Tensor,
        mlp_bias: Sequence[Tensor | None] | None = None,
        attn_bias: Sequence[Tensor | None] | None = None,
    ) -> None:
        # Not copied: weights of lower precision are converted when they are read.
        self.mlp = mlp
        self.attn = attn
        absent: tuple[Tensor | None, ...] = (None,) * len(self.mlp)
        self.mlp_bias = absent if mlp_bias is None else tuple(mlp_bias)
        self.attn_bias = absent if attn_bias is None else tuple(attn_bias)
        self.unembedding = unembedding
        self.final_norm_gain = final_norm_gain
        self._mlp_norms: dict[int, Tensor] = {}
        self._attn_factors: dict[int, Tensor] = {}

    def mlp_norms(self, layer: int) -> Tensor:
        """Length of every neuron's write vector, shape (F,)."""
        if layer not in self._mlp_norms:
            with lasting():
                self._mlp_norms[layer] = self.mlp[layer].norm(dim=1)
        return self._mlp_norms[layer]

    def attn_factors(self, layer: int) -> Tensor:
        """For every head the triangular R with W_O^T = Q R, shape (H, dh, dh).

        As Q has orthonormal columns, the length of v W_O is that of R v: exact, without
        cancellation, and without a vector of residual width for every token pair.
        """
        if layer not in self._attn_factors:
            with lasting():
                self._attn_factors[layer] = torch.linalg.qr(
                    self.attn[layer].transpose(1, 2), mode="r"
                ).R
        return self._attn_factors[layer]

    def head_write_norms(self, layer: int, values: Tensor) -> Tensor:
        """Length of each head's write for value vectors of shape (T, H, dh); shape (T, H)."""
        lengths: Tensor = torch.einsum("hed,thd->the", self.attn_factors(layer), values).norm(
            dim=-1
        )
        return lengths
