"""Attention of packed rows to one shared prefix and to themselves.

transformers' models ask for an attention function by name and hand it the queries, keys and values
of a layer. Ours takes the prefix from the running `AttentionPass`: all queries attend to each of
the prefix's segments as one long query, to their own row, and the parts are merged by the
logarithms of their sums of exponentials (log-sum-exp), which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import local
from typing import Any

import numpy as np
import torch

from services.simulation.language_models.local.packing import Group, PackedRows
from services.simulation.language_models.local.prefixes import Segment

NAME = "neuropil_shared_prefix"

_SCORES_AT_ONCE = 16 * 1024 * 1024
"""Scores that exist at once where a kernel doesn't work through them in blocks."""

# What models pass on to every attention function and what changes nothing of what ours computes.
_HARMLESS = frozenset(
    {
        "layer_past",
        "output_attentions",
        "output_hidden_states",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


class NotShared(Exception):
    """The model computes attention in a way that this one doesn't follow."""


@dataclass
class AttentionPass:
    """What one forward pass needs to know beyond its layers' tensors."""

    segments: Sequence[Segment]
    packed: PackedRows
    start: int
    """Position of the rows' first tokens: tokens of the prefix."""
    pasts: Sequence[Segment] = ()
    """What each row read before, of its own, where all rows are of one token; else nothing."""
    keep: bool = False
    """Whether keys and values of the rows are kept, for a segment."""
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    layers: dict[int, int | None] = field(default_factory=dict)
    """Sliding window by layer that called, None where it has none."""
    _masks: dict[Any, torch.Tensor | None] = field(default_factory=dict)

    def own_mask(
        self, group: Group, window: int | None, like: torch.Tensor
    ) -> tuple[torch.Tensor | None, bool]:
        """What tokens of a group see of their row, added to scores; and whether that is causal."""
        if window is not None and int(group.offsets.max()) < window:
            window = None
        if group.visible is None and window is None:
            return None, True
        key = (group.start, window)
        if key not in self._masks:
            visible = group.visible
            if visible is None:
                visible = np.tri(group.length, dtype=np.bool_)
            if window is not None:
                near = group.offsets[None, :] > group.offsets[:, None] - window
                visible = visible & near
            self._masks[key] = _additive(visible, like)
        return self._masks[key], False

    def segment_mask(
        self, number: int, window: int | None, like: torch.Tensor
    ) -> torch.Tensor | None:
        """What all tokens see of a segment, [tokens, ids]; None means all of it."""
        segment = self.segments[number]
        if window is None:
            return None
        positions = self.start + self.packed.offsets
        if int(positions.max()) - segment.start < window:
            return None
        key = ("segment", number, window)
        if key not in self._masks:
            places = segment.start + np.arange(len(segment.ids))
            self._masks[key] = _additive(places[None, :] > positions[:, None] - window, like)
        return self._masks[key]


def _additive(visible: np.ndarray[Any, Any], like: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(torch.from_numpy(~visible).to(like.device), -math.inf)


_running = local()


@contextmanager
def running(attention: AttentionPass) -> Iterator[None]:
    """Let forward passes of this thread attend as `attention` says."""
    _running.attention = attention
    try:
        yield
    finally:
        del _running.attention


def current() -> AttentionPass | None:
    """The pass that runs in this thread."""
    return getattr(_running, "attention", None)


def register() -> None:
    """Make the function known to transformers, under `NAME`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, shared_prefix_attention)


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a layer, as transformers calls it.

    `query` is [1, heads, tokens, head size], `key` and `value` have as many heads or fewer. Returns
    [1, tokens, heads, head size]. `s_aux` [heads] are scores of sinks: what goes to them is lost.

    Raises:
        NotShared: the layer asks for something that isn't followed.
    """
    attention = current()
    layer = getattr(module, "layer_idx", None)
    unknown = sorted(
        name
        for name, given in others.items()
        if name not in _HARMLESS and given is not None and given is not False
    )
    if attention is None or layer is None or unknown:
        raise NotShared(f"attention with {', '.join(unknown) or 'no number of its layer'}")
    if is_causal is False or not getattr(module, "is_causal", True) or attention_mask is not None:
        raise NotShared("attention that isn't causal")
    if layer in attention.layers or query.shape[0] != 1 or dropout:
        raise NotShared("attention that runs more than once a layer")
    attention.layers[layer] = sliding_window
    if attention.keep:
        attention.keys[layer], attention.values[layer] = key, value
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    out, sums = _to_rows(attention, query, key, value, scaling, softcap, sliding_window)
    for number, segment in enumerate(attention.segments):
        mask = attention.segment_mask(number, sliding_window, query)
        part, part_sums = _attend(
            query, segment.keys[layer], segment.values[layer], mask, False, scaling, softcap
        )
        # A part that a token doesn't see at all has the weight 0.
        share = torch.sigmoid(part_sums - sums).unsqueeze(-1).to(out.dtype)
        out = torch.lerp(out, part, share)
        sums = torch.logaddexp(sums, part_sums)
    if attention.pasts:
        out, sums = _with_pasts(
            attention, layer, query, out, sums, scaling, softcap, sliding_window
        )
    if s_aux is not None:
        out = out * torch.sigmoid(sums - s_aux.float()[None, :, None]).unsqueeze(-1).to(out.dtype)
    return out.transpose(1, 2).contiguous(), None


def _to_rows(
    attention: AttentionPass,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's attention to its own row: [1, heads, tokens, size] and [1, heads, tokens]."""
    outs, sums = [], []
    for group in attention.packed.groups:
        mask, causal = attention.own_mask(group, window, query)
        own_query, own_key, own_value = (_by_row(t, group) for t in (query, key, value))
        out, part = _attend(
            own_query,
            own_key,
            own_value,
            mask,
            causal,
            scaling,
            softcap,
            sees_itself=True,
        )
        outs.append(out.transpose(0, 1).reshape(1, out.shape[1], -1, out.shape[-1]))
        sums.append(part.transpose(0, 1).reshape(1, part.shape[1], -1))
    if len(outs) == 1:
        return outs[0], sums[0]
    return torch.cat(outs, dim=2), torch.cat(sums, dim=2)


def _with_pasts(
    attention: AttentionPass,
    layer: int,
    query: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`out` [1, heads, rows, size] and `sums`, merged with each row's attention to its past."""
    parts, totals = [], []
    for row, past in enumerate(attention.pasts):
        own = slice(row, row + 1)
        first = 0
        if window is not None:
            position = attention.start + int(attention.packed.offsets[row])
            first = max(0, position - window + 1 - past.start)
        if first >= len(past.ids):
            parts.append(out[:, :, own])
            totals.append(sums[:, :, own])
            continue
        keys, values = past.keys[layer][:, :, first:], past.values[layer][:, :, first:]
        part, part_sums = _attend(query[:, :, own], keys, values, None, False, scaling, softcap)
        share = torch.sigmoid(part_sums - sums[:, :, own]).unsqueeze(-1).to(out.dtype)
        parts.append(torch.lerp(out[:, :, own], part, share))
        totals.append(torch.logaddexp(sums[:, :, own], part_sums))
    return torch.cat(parts, dim=2), torch.cat(totals, dim=2)


def _by_row(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """[1, heads, tokens, size] to [rows, heads, length, size]."""
    _, heads, _, size = tensor.shape
    part = tensor[0, :, group.start : group.stop]
    return part.reshape(heads, group.rows, group.length, size).transpose(0, 1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float,
    softcap: float | None,
    *,
    sees_itself: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [rows, heads, queries, size] and its log-sum-exp [rows, heads, queries].

    `mask` [queries, keys] is added to the scores. Without `sees_itself` a token may see nothing.
    """
    rows, heads, queries, size = query.shape
    shared = key.shape[1]
    groups = heads // shared
    kernel = query.device.type == "cpu" and softcap is None and size == value.shape[-1]
    # The kernel doesn't define what a token gets that sees nothing.
    kernel = kernel and (mask is None or sees_itself)
    if groups > 1 and not causal and mask is None:
        # Heads that share keys become more queries; nothing is copied for them.
        folded = query.reshape(rows, shared, groups * queries, size)
        out, sums = _attend(folded, key, value, None, False, scaling, softcap)
        return (
            out.reshape(rows, heads, queries, value.shape[-1]),
            sums.reshape(rows, heads, queries),
        )
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    if kernel:
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query,
            key,
            value,
            0.0,
            causal,
            attn_mask=None if mask is None else mask[None, None],
            scale=scaling,
        )
        return out, sums
    return _in_blocks(query, key, value, mask, causal, scaling, softcap)


def _in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, written out, a block of queries at a time; in float32."""
    rows, heads, queries, _ = query.shape
    block = max(1, _SCORES_AT_ONCE // (rows * heads * key.shape[2]))
    keys, values = key.float().transpose(-1, -2), value.float()
    outs, sums = [], []
    for start in range(0, queries, block):
        scores = query[:, :, start : start + block].float() @ keys * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            scores.masked_fill_(later.triu_(start + 1), -math.inf)
        if mask is not None:
            scores += mask[start : start + block].float()
        most = scores.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
        weights = torch.exp(scores - most)
        total = weights.sum(dim=-1, keepdim=True)
        outs.append((weights @ values) / total.clamp_min(torch.finfo(total.dtype).tiny))
        sums.append((torch.log(total) + most).squeeze(-1))
    return torch.cat(outs, dim=2).to(query.dtype), torch.cat(sums, dim=2)
