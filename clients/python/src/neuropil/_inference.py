"""What to run on the subject model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuropil import names
from neuropil.common import v1 as common
from neuropil.scalars import v1


@dataclass(frozen=True)
class Loss:
    """What a backward pass starts from, computed from the logits at one token."""

    kind: str
    """logit_diff, logit_minus_mean, probs or zero."""
    targets: str | Sequence[str] = ()
    """Strings that each are one token; a single one need not be in a list."""
    distractors: str | Sequence[str] = ()
    """The same; logit_diff only."""
    position: int | None = None
    """The token whose logits count, from 0, or from -1 at the end; None means the last."""

    def message(self) -> v1.LossFunction:
        """As the contract says it.

        Raises:
            ValueError: if there is no such kind.
        """
        return v1.LossFunction(
            kind=names.LOSS_KINDS.value(self.kind),
            target_tokens=names.several(self.targets),
            distractor_tokens=names.several(self.distractors),
            position=self.position,
        )


@dataclass(frozen=True)
class Activation:
    """An activation, or a slice of activations, by place."""

    location: str
    """For example ``mlp.post_act`` or ``attn.qk_probs``."""
    layer_index: int | None
    indices: Sequence[int | None]
    """One for each dimension; None means all of it."""
    pass_type: str = "forward"

    def message(self) -> common.ActivationIndex:
        """As the contract says it.

        Raises:
            ValueError: if there is no such location or pass type.
        """
        return common.ActivationIndex(
            location_type=names.ACTIVATION_LOCATION_TYPES.value(self.location),
            layer_index=self.layer_index,
            tensor_indices=_dimension_indices(self.indices),
            pass_type=names.PASS_TYPES.value(self.pass_type),
        )


@dataclass(frozen=True)
class Ablation:
    """Overwrites activations in the forward pass, or gradients in the backward pass."""

    location: str
    """For example ``mlp.post_act`` or ``attn.qk_probs``."""
    layer_index: int | None
    indices: Sequence[int | None]
    """One for each dimension; None means all of it."""
    value: float
    pass_type: str = "forward"

    def message(self) -> v1.Ablation:
        """As the contract says it.

        Raises:
            ValueError: if there is no such location or pass type.
        """
        index = Activation(self.location, self.layer_index, self.indices, self.pass_type)
        return v1.Ablation(index=index.message(), value=self.value)


@dataclass(frozen=True)
class NodeIndex:
    """One part of the model at one token or token pair."""

    node_type: str
    """For example ``mlp_neuron`` or ``attention_head``."""
    layer_index: int | None
    indices: Sequence[int | None]
    """[token, neuron] or [query, key, head], for example; None means all of a dimension."""

    def message(self) -> common.NodeIndex:
        """As the contract says it.

        Raises:
            ValueError: if there is no such kind of node.
        """
        return common.NodeIndex(
            node_type=names.NODE_TYPES.value(self.node_type),
            layer_index=self.layer_index,
            tensor_indices=_dimension_indices(self.indices),
            pass_type=common.PASS_TYPE_FORWARD,
        )


@dataclass(frozen=True)
class Trace:
    """Starts the backward pass from a node's activation instead of a loss."""

    node: NodeIndex
    """A `Node` of `top_nodes`, for example."""
    side: str = "pre_act"
    """Which side of its nonlinearity the node is read on: pre_act or post_act; none through v."""
    through: str | None = None
    """Which inputs of an attention head the trace follows: q, k, qk or v; only for heads."""
    detach_layer_norm_scale: bool = True
    """Whether the scale of the layer norm before the node is a constant."""
    downstream: Trace | None = None
    """The node whose gradient a trace through v projects on; None means that of the loss."""

    def message(self) -> v1.Trace:
        """As the contract says it.

        Raises:
            ValueError: if there is no such kind of node, side or input.
        """
        return v1.Trace(
            node_index=self.node.message(),
            side=names.NONLINEARITY_SIDES.value(self.side),
            detach_layer_norm_scale=self.detach_layer_norm_scale,
            attention_trace_type=(
                v1.ATTENTION_TRACE_TYPE_UNSPECIFIED
                if self.through is None
                else names.ATTENTION_TRACE_TYPES.value(self.through)
            ),
            downstream=None if self.downstream is None else self.downstream.message(),
        )


@dataclass(frozen=True)
class Inference:
    """One forward pass, and a backward pass where something asks for gradients."""

    prompt: str
    loss: Loss | None = None
    """What the backward pass starts from; excludes a trace, but for one through v."""
    trace: Trace | None = None
    """A node that the backward pass starts from."""
    ablations: Sequence[Ablation] = ()
    """Applied in this order."""
    within_layer_gradient: Activation | None = None
    """A latent, at all tokens, that is attributed to the attention of its own layer: for example
    ``Activation("online_attention_autoencoder_latent", 1, [None, 2])``."""
    prepend_beginning_token: bool = False
    """Whether the model family's beginning token comes before the prompt."""

    def message(self) -> v1.InferenceSpec:
        """As the contract says it.

        Raises:
            ValueError: if a name is unknown.
        """
        return v1.InferenceSpec(
            prompt=self.prompt,
            loss=None if self.loss is None else self.loss.message(),
            trace=None if self.trace is None else self.trace.message(),
            ablations=[ablation.message() for ablation in self.ablations],
            within_layer_gradient_index=(
                None if self.within_layer_gradient is None else self.within_layer_gradient.message()
            ),
            prepend_beginning_token=self.prepend_beginning_token,
        )


def _dimension_indices(indices: Sequence[int | None]) -> list[common.DimensionIndex]:
    return [common.DimensionIndex(index=index) for index in indices]
