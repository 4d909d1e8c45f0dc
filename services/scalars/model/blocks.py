"""What recomputing a block from the residual stream that it reads gives.

Traces, edges and latents differentiate one block at a residual stream at hand, without a run of the
whole model. Everything here is of one sequence, and differentiable in both modes of autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class AttentionPart(StrEnum):
    """A way from the residual stream into a head."""

    QUERY = "q"
    KEY = "k"
    VALUE = "v"


ALL_PARTS = frozenset(AttentionPart)


@dataclass(frozen=True)
class HeadActivations:
    """What the heads of one layer compute.

    `query` and `key` are (T, H, dh), each scaled by dh^-1/4, and rotated where the family rotates;
    `value` and `mixed`, the sum of values that a query attends to, are (T, H, dv). `logits` and
    `probs` are (T, S, H); logits of keys that a query can't see are -inf.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    logits: Tensor
    probs: Tensor
    mixed: Tensor


@dataclass(frozen=True)
class MlpActivations:
    """What the neurons of one layer compute, each (T, F) or (T, number of neurons asked for).

    With a gated MLP, `pre_act` is what the gate's nonlinearity reads, and `post_act` the gate times
    the other factor.
    """

    pre_act: Tensor
    post_act: Tensor


def attended(
    query: Tensor, key: Tensor, value: Tensor, *, attached: frozenset[AttentionPart]
) -> HeadActivations:
    """What heads compute of their parts, each (T, H, dh); parts not attached are constants."""
    query, key, value = (
        part if which in attached else part.detach()
        for which, part in zip(AttentionPart, (query, key, value), strict=True)
    )
    logits = torch.einsum("the,she->tsh", query, key)
    future = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device).triu(1)
    logits = logits.masked_fill(future[:, :, None], float("-inf"))
    probs = torch.softmax(logits, dim=1)
    mixed = torch.einsum("tsh,she->the", probs, value)
    return HeadActivations(query, key, value, logits, probs, mixed)
