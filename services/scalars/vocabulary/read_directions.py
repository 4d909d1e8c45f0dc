"""Directions of the residual stream that nodes read: gradients of their activation before the
nonlinearity, the scale of the layer norm before them a constant.

Nodes at different tokens don't meet in a gradient, so that one backward pass serves as many nodes
as there are tokens, or, in the MLP, all of them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.autoencoders import Autoencoder
from services.scalars.deriving.differentiation import gradient
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ActivationLocationType
from services.scalars.model.weights import lasting

Column = NDArray[np.int64]


def lasting_indices(device: torch.device, *columns: Column) -> tuple[Tensor, ...]:
    """Indices that a gradient may keep, though the caller is in inference mode."""
    with lasting():
        return tuple(torch.from_numpy(column.copy()).to(device) for column in columns)


def neuron_reads(
    model: SubjectModel, layer: int, residual: Tensor, tokens: Column, neurons: Column
) -> Tensor:
    """Gradients (m, D) of neurons' pre-activations at the residual stream (T, D) before the MLP."""
    unique, which = np.unique(neurons, return_inverse=True)
    wanted, chosen = lasting_indices(residual.device, unique, which)

    def total(rows: Tensor) -> Tensor:
        pre = model.mlp_neurons(layer, rows, detach_scale=True, neurons=wanted).pre_act
        return pre.gather(1, chosen[:, None]).sum()

    return gradient(total, residual[torch.from_numpy(tokens).to(residual.device)])


def neuron_read_directions(
    model: SubjectModel, layer: int, like: Tensor, neurons: Column
) -> Tensor:
    """The same (m, D) times a positive number each that depends on the weights alone.

    Taken where the layer norm's scale is about 1, in the type and on the device of `like`. At a
    token whose residual stream is huge, a gradient is too small to have a direction.
    """
    rows = like.new_ones((len(neurons), like.shape[1]))
    rows[:, ::2] = -1
    return neuron_reads(model, layer, rows, np.arange(len(neurons)), neurons)


def latent_reads(
    model: SubjectModel,
    autoencoder: Autoencoder,
    layer: int,
    residual: Tensor,
    tokens: Column,
    latents: Column,
) -> Tensor:
    """The same of latents of an autoencoder on the MLP's neurons or its output."""
    unique, which = np.unique(latents, return_inverse=True)
    wanted, chosen = lasting_indices(residual.device, unique, which)

    def total(rows: Tensor) -> Tensor:
        read = model.mlp_neurons(layer, rows, detach_scale=True).post_act
        if autoencoder.location is not ActivationLocationType.MLP_POST_ACT:
            read = model.mlp_output(layer, read)
        return autoencoder.encode_pre(layer, read, wanted).gather(1, chosen[:, None]).sum()

    return gradient(total, residual[torch.from_numpy(tokens).to(residual.device)])


def head_reads(
    model: SubjectModel,
    part: AttentionPart,
    layer: int,
    residual: Tensor,
    pairs: Column,
    heads: Column,
) -> Tensor:
    """Gradients (m, D) of attention logits of token pairs (m, 2) and heads, through the query at
    the query's token or the key at the key's, at the residual stream (T, D) before the attention.
    """
    query, key, head = lasting_indices(residual.device, pairs[:, 0], pairs[:, 1], heads)
    tokens = pairs[:, 0 if part is AttentionPart.QUERY else 1]
    turns = _occurrence(tokens)
    found = residual.new_zeros((len(pairs), residual.shape[1]))
    for turn in range(int(turns.max(initial=-1)) + 1):
        (chosen,) = lasting_indices(residual.device, np.flatnonzero(turns == turn))

        def total(rows: Tensor, chosen: Tensor = chosen) -> Tensor:
            # The logit is the product of a query and a key that have their scale already.
            made = model.attention_heads(layer, rows, attached=frozenset({part}), detach_scale=True)
            queries = made.query[query[chosen], head[chosen]]
            return (queries * made.key[key[chosen], head[chosen]]).sum()

        of_tokens = gradient(total, residual)
        found[chosen] = of_tokens[torch.from_numpy(tokens).to(residual.device)[chosen]]
    return found


def _occurrence(values: Column) -> Column:
    """For each element how many equal ones come before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]]
    first = np.maximum.accumulate(np.where(starts, np.arange(len(values)), 0))
    found = np.empty(len(values), dtype=np.int64)
    found[order] = np.arange(len(values)) - first
    return found
