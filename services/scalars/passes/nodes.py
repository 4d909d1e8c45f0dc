"""Single nodes of the model: a neuron, an attention head, a latent, at one token or token pair."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from services.scalars.autoencoders import AutoencoderSet
from services.scalars.autoencoders.autoencoder_set import check_latents
from services.scalars.deriving.indexing import NodeIndex
from services.scalars.deriving.residual_points import (
    ResidualPoint,
    entering_attention,
    entering_mlp,
)
from services.scalars.model.blocks import ALL_PARTS, AttentionPart
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import (
    ActivationLocationType,
    LocationWithinLayer,
    ModelShape,
    NodeType,
    PassType,
)
from services.scalars.passes.layers import check_layer
from shared.errors import InvalidArgument

LATENT_TYPES = (
    NodeType.AUTOENCODER_LATENT,
    NodeType.MLP_AUTOENCODER_LATENT,
    NodeType.ATTENTION_AUTOENCODER_LATENT,
)
_TYPES = (NodeType.MLP_NEURON, NodeType.ATTENTION_HEAD, *LATENT_TYPES)


class NonlinearitySide(StrEnum):
    """Which side of its nonlinearity a node is read on.

    For a head: the attention logit, or the attention probability.
    """

    PRE_ACT = "pre_act"
    POST_ACT = "post_act"


@dataclass(frozen=True)
class Node:
    """One node at one token, `index` = (token, neuron or latent), or (query, key, head).

    `reads` is what a latent's autoencoder reads, None for what is no latent.
    """

    node_type: NodeType
    index: tuple[int, ...]
    layer: int
    reads: ActivationLocationType | None = None

    @property
    def is_head(self) -> bool:
        """Whether it is an attention head."""
        return self.node_type is NodeType.ATTENTION_HEAD

    @property
    def token(self) -> int:
        """The token whose residual stream it writes to."""
        return self.index[0]

    @property
    def reads_attention(self) -> bool:
        """Whether it is a part of the attention block rather than of the MLP block."""
        return self.is_head or self.reads is ActivationLocationType.RESID_DELTA_ATTN

    @property
    def residual(self) -> ResidualPoint:
        """The residual stream that its block reads."""
        return entering_attention(self.layer) if self.reads_attention else entering_mlp(self.layer)

    @property
    def location_within_layer(self) -> LocationWithinLayer:
        """Where it stands in its layer."""
        return LocationWithinLayer.ATTN if self.reads_attention else LocationWithinLayer.MLP


def resolve_node(
    index: NodeIndex,
    shape: ModelShape,
    autoencoders: AutoencoderSet,
    n_tokens: int,
    field: str,
) -> Node:
    """Checks that an index names one node of the model and the prompt.

    Raises InvalidArgument naming the field (after the prefix `field`) for another node type, a
    gradient, a missing or unknown layer, indices of another number, open or out of range, a key
    after its query, and a latent that no autoencoder has.
    """
    if index.node_type not in _TYPES:
        raise InvalidArgument(
            f"a {index.node_type.value} is no node here; it must be one of "
            f"{', '.join(each.value for each in _TYPES)}",
            field=f"{field}.node_type",
        )
    if index.pass_type is not PassType.FORWARD:
        raise InvalidArgument(
            "a node is read in the forward pass; a gradient is no node", field=f"{field}.pass_type"
        )
    layer = index.layer_index
    check_layer(layer, f"a {index.node_type.value}", True, shape, field)
    assert layer is not None
    reads = None
    if index.node_type is NodeType.ATTENTION_HEAD:
        sizes = {"query token": n_tokens, "key token": n_tokens, "head": shape.attn_heads}
    elif index.node_type is NodeType.MLP_NEURON:
        sizes = {"token": n_tokens, "neuron": shape.mlp_acts}
    else:
        autoencoder = autoencoders.for_node_type(index.node_type)
        if autoencoder is None:
            raise InvalidArgument(
                f"the deployment has no autoencoder, or more than one, whose latents are called "
                f"{index.node_type.value}",
                field=f"{field}.node_type",
                reason="AUTOENCODER_NEEDED",
            )
        reads = autoencoder.location
        check_latents(autoencoder, layer, f"{field}.layer_index")
        sizes = {"token": n_tokens, "latent": autoencoder.latent_count(layer)}
    return Node(index.node_type, _indices(index, sizes, f"{field}.tensor_indices"), layer, reads)


def _indices(index: NodeIndex, sizes: dict[str, int], field: str) -> tuple[int, ...]:
    given = index.tensor_indices
    if len(given) != len(sizes):
        raise InvalidArgument(
            f"a {index.node_type.value} has {len(sizes)} indices ({', '.join(sizes)}), "
            f"but {len(given)} are given",
            field=field,
        )
    found: list[int] = []
    for axis, (each, (what, size)) in enumerate(zip(given, sizes.items(), strict=True)):
        if each is None:
            raise InvalidArgument(f"one node is needed; say which {what}", field=f"{field}[{axis}]")
        if not 0 <= each < size:
            raise InvalidArgument(
                f"{what} {each} does not exist; there are {size}", field=f"{field}[{axis}]"
            )
        found.append(each)
    if index.node_type is NodeType.ATTENTION_HEAD and found[1] > found[0]:
        raise InvalidArgument(
            f"key token {found[1]} comes after query token {found[0]}, which can't attend to it",
            field=f"{field}[1]",
        )
    return tuple(found)


def autoencoder_input(
    model: SubjectModel,
    location: ActivationLocationType,
    layer: int,
    residual: Tensor,
    *,
    detach_scale: bool,
) -> Tensor:
    """What an autoencoder reads, (T, width), for the residual stream that enters its block."""
    if location is ActivationLocationType.RESID_DELTA_ATTN:
        mixed = model.attention_heads(layer, residual, detach_scale=detach_scale).mixed
        return model.attention_output(layer, mixed)
    post_act = model.mlp_neurons(layer, residual, detach_scale=detach_scale).post_act
    if location is ActivationLocationType.MLP_POST_ACT:
        return post_act
    return model.mlp_output(layer, post_act)


def node_activation(
    node: Node,
    model: SubjectModel,
    autoencoders: AutoencoderSet,
    residual: Tensor,
    *,
    side: NonlinearitySide = NonlinearitySide.POST_ACT,
    attached: frozenset[AttentionPart] = ALL_PARTS,
    detach_scale: bool = False,
) -> Tensor:
    """The node's activation, a scalar, recomputed from the residual stream (T, D) at its block.

    Only the tokens that it depends on are computed. `attached` are the parts of a head that stay
    differentiable, `detach_scale` makes the layer norm's scale a constant.
    """
    pre = side is NonlinearitySide.PRE_ACT
    token = node.token
    if node.is_head:
        query, key, head = node.index
        heads = model.attention_heads(
            node.layer, residual[: token + 1], attached=attached, detach_scale=detach_scale
        )
        return (heads.logits if pre else heads.probs)[query, key, head]
    if node.reads is None:
        neurons = torch.tensor([node.index[1]], device=residual.device)
        activations = model.mlp_neurons(
            node.layer, residual[token : token + 1], detach_scale=detach_scale, neurons=neurons
        )
        return (activations.pre_act if pre else activations.post_act)[0, 0]
    autoencoder = autoencoders.at(node.reads, node.layer)
    if autoencoder is None:
        raise ValueError("a resolved latent has an autoencoder")
    before = slice(token + 1) if node.reads_attention else slice(token, token + 1)
    read = autoencoder_input(
        model, node.reads, node.layer, residual[before], detach_scale=detach_scale
    )[-1:]
    pre_act = autoencoder.encode_pre(node.layer, read)
    latents = pre_act if pre else autoencoder.activate(node.layer, pre_act)
    return latents[0, node.index[1]]
