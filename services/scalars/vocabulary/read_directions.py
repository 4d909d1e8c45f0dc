"""Directions of the residual stream that nodes read: gradients of their activation before the
nonlinearity, the scale of the layer norm before them a constant.

Nodes at different tokens don't meet in a gradient, so that one backward pass serves as many nodes
as there are tokens, or, in the MLP, all of them.
"""

from __future__ import annotations

from collections.abc import Callable

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
from services.scalars.vocabulary.scored_tokens import lengths

Column = NDArray[np.int64]

_PART_BYTES = 32 << 20
_FEWEST, _MOST = 16, 512
"""Nodes that are read at once: a product of all nodes and all neurons would not fit."""


def lasting_indices(device: torch.device, *columns: Column) -> tuple[Tensor, ...]:
    """Indices that a gradient may keep, though the caller is in inference mode."""
    with lasting():
        return tuple(torch.from_numpy(column.copy()).to(device) for column in columns)


def neuron_read_lengths(
    model: SubjectModel,
    layer: int,
    residual: Tensor,
    tokens: Column,
    neurons: Column,
    check: Callable[[], None],
) -> Tensor:
    """Lengths (m,) of the gradients of neurons' pre-activations at the residual stream (T, D)
    before the MLP.

    `check` is called now and then, and may raise; so in all of these functions.
    """
    return _in_parts(
        len(tokens),
        _neuron_bytes(model),
        lambda some: lengths(
            _neuron_reads(model, layer, _rows(residual, tokens[some]), neurons[some])
        ),
        check,
    )


def neuron_read_directions(
    model: SubjectModel, layer: int, like: Tensor, neurons: Column, check: Callable[[], None]
) -> Tensor:
    """These gradients (m, D) times a positive number each that depends on the weights alone.

    Taken where the layer norm's scale is about 1, in the type and on the device of `like`. At a
    token whose residual stream is huge, a gradient is too small to have a direction.
    """
    point = like.new_ones((1, like.shape[1]))
    point[:, ::2] = -1
    return _in_parts(
        len(neurons),
        _neuron_bytes(model),
        lambda some: _neuron_reads(
            model, layer, point.expand(len(neurons[some]), -1), neurons[some]
        ),
        check,
    )


def latent_reads(
    model: SubjectModel,
    autoencoder: Autoencoder,
    layer: int,
    residual: Tensor,
    tokens: Column,
    latents: Column,
    check: Callable[[], None],
) -> Tensor:
    """Gradients (m, D) of pre-activations of latents of an autoencoder on the MLP's neurons or its
    output at the residual stream (T, D) before the MLP.
    """

    def reads(some: slice) -> Tensor:
        unique, which = np.unique(latents[some], return_inverse=True)
        wanted, chosen = lasting_indices(residual.device, unique, which)

        def total(rows: Tensor) -> Tensor:
            read = model.mlp_neurons(layer, rows, detach_scale=True).post_act
            if autoencoder.location is not ActivationLocationType.MLP_POST_ACT:
                read = model.mlp_output(layer, read)
            return autoencoder.encode_pre(layer, read, wanted).gather(1, chosen[:, None]).sum()

        return gradient(total, _rows(residual, tokens[some]))

    return _in_parts(len(tokens), _latent_bytes(model), reads, check)


def head_reads(
    model: SubjectModel,
    part: AttentionPart,
    layer: int,
    residual: Tensor,
    pairs: Column,
    heads: Column,
    check: Callable[[], None],
) -> Tensor:
    """Gradients (m, D) of attention logits of token pairs (m, 2) and heads, through the query at
    the query's token or the key at the key's, at the residual stream (T, D) before the attention.
    """
    query, key, head = lasting_indices(residual.device, pairs[:, 0], pairs[:, 1], heads)
    tokens = pairs[:, 0 if part is AttentionPart.QUERY else 1]
    turns = _occurrence(tokens)
    found = residual.new_zeros((len(pairs), residual.shape[1]))
    for turn in range(int(turns.max(initial=-1)) + 1):
        check()
        (chosen,) = lasting_indices(residual.device, np.flatnonzero(turns == turn))

        def total(rows: Tensor, chosen: Tensor = chosen) -> Tensor:
            # The logit is the product of a query and a key that have their scale already.
            made = model.attention_heads(layer, rows, attached=frozenset({part}), detach_scale=True)
            queries = made.query[query[chosen], head[chosen]]
            return (queries * made.key[key[chosen], head[chosen]]).sum()

        of_tokens = gradient(total, residual)
        found[chosen] = of_tokens[torch.from_numpy(tokens).to(residual.device)[chosen]]
    return found


def mlp_read_bytes(model: SubjectModel, nodes: int) -> int:
    """Most memory that reads of so many neurons or latents take besides what they answer."""
    sizes = (_neuron_bytes(model), _latent_bytes(model))
    return max(min(nodes, _at_once(each)) * each for each in sizes)


def head_read_bytes(model: SubjectModel, n_tokens: int) -> int:
    """The same of heads."""
    shape = model.shape
    per_token = 16 * shape.residual_stream_channels + 8 * n_tokens * shape.attn_heads
    return 4 * n_tokens * per_token


def _neuron_reads(model: SubjectModel, layer: int, rows: Tensor, neurons: Column) -> Tensor:
    unique, which = np.unique(neurons, return_inverse=True)
    wanted, chosen = lasting_indices(rows.device, unique, which)

    def total(rows: Tensor) -> Tensor:
        pre = model.mlp_neurons(layer, rows, detach_scale=True, neurons=wanted).pre_act
        return pre.gather(1, chosen[:, None]).sum()

    return gradient(total, rows)


def _rows(residual: Tensor, tokens: Column) -> Tensor:
    return residual[torch.from_numpy(tokens).to(residual.device)]


def _in_parts(
    number: int,
    bytes_of_one: int,
    read: Callable[[slice], Tensor],
    check: Callable[[], None],
) -> Tensor:
    """What is read of so many nodes, a part of them at a time."""
    parts = []
    step = _at_once(bytes_of_one)
    for first in range(0, number, step):
        check()
        parts.append(read(slice(first, min(first + step, number))))
    return torch.cat(parts)


def _at_once(bytes_of_one: int) -> int:
    return max(_FEWEST, min(_MOST, _PART_BYTES // bytes_of_one))


def _neuron_bytes(model: SubjectModel) -> int:
    """What a row takes: its residual stream and columns of the others' neurons, several times."""
    return 4 * (10 * model.shape.residual_stream_channels + 8 * _MOST)


def _latent_bytes(model: SubjectModel) -> int:
    return _neuron_bytes(model) + 4 * 10 * model.shape.mlp_acts


def _occurrence(values: Column) -> Column:
    """For each element how many equal ones come before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]]
    first = np.maximum.accumulate(np.where(starts, np.arange(len(values)), 0))
    found = np.empty(len(values), dtype=np.int64)
    found[order] = np.arange(len(values)) - first
    return found
