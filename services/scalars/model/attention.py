"""Causal attention over packed sequences, its scores and probabilities tapped."""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.taps import Taps


def attend(query: Tensor, key: Tensor, value: Tensor, taps: Taps, layer: int) -> Tensor:
    """Sums of the values that each query attends to, (N, H, dv), for packed (N, H, dh) parts.

    The scale of the dot product is in `query` and `key` already. Logits of keys after the query
    are -inf. Eager, since probabilities are an activation like any other.
    """
    mixed = []
    for group in taps.packing.groups:
        # Heads before tokens, for the products: (B, H, T, dh).
        q, k, v = (group.batch(part).transpose(1, 2) for part in (query, key, value))
        logits = q @ k.transpose(2, 3)
        future = torch.ones(logits.shape[2:], dtype=torch.bool, device=logits.device).triu(1)
        # The product is kept by nobody else, so that its memory can be used again.
        logits = logits.masked_fill_(future, float("-inf"))
        logits = taps.pairs(logits, Location.ATTN_QK_LOGITS, layer, group)
        probs = torch.softmax(logits, dim=3)
        probs = taps.pairs(probs, Location.ATTN_QK_PROBS, layer, group)
        mixed.append((probs @ v).transpose(1, 2).flatten(0, 1))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
