"""What recomputing a block from the residual stream that it reads gives.

Traces, edges and latents differentiate one block at a residual stream at hand, without a run of the
whole model. Everything here is of one sequence, and differentiable in both modes of autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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


def detached_unless(attached: bool, part: Tensor) -> Tensor:
    """A part as it is, or as a constant."""
    return part if attached else part.detach()
