"""Traces: a backward pass that starts from one node's activation, not from a loss.

The activation is recomputed from the residual stream that enters the node's block, in the node's
own way: from one side of its nonlinearity, through some parts of a head alone, with or without the
layer norm's scale. Ablations inside that block don't reach it; those before it do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import Tensor

from services.scalars.autoencoders import AutoencoderSet
from services.scalars.deriving.differentiation import gradient
from services.scalars.deriving.indexing import NodeIndex
from services.scalars.deriving.residual_points import ResidualPoint, leaving_last_layer
from services.scalars.model.blocks import ALL_PARTS, AttentionPart
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ModelShape
from services.scalars.passes.losses import Loss
from services.scalars.passes.nodes import Node, NonlinearitySide, node_activation, resolve_node
from shared.errors import InvalidArgument


class AttentionTraceType(StrEnum):
    """Which inputs of a head a trace follows."""

    QUERY = "q"
    KEY = "k"
    QUERY_AND_KEY = "qk"
    VALUE = "v"

    @property
    def attached(self) -> frozenset[AttentionPart]:
        """The parts of a head that the gradient flows through."""
        return frozenset(AttentionPart(letter) for letter in self.value)


@dataclass(frozen=True)
class TraceSpec:
    """A trace as a request states it."""

    node: NodeIndex
    side: NonlinearitySide = NonlinearitySide.PRE_ACT
    detach_layer_norm_scale: bool = False
    attention_trace_type: AttentionTraceType | None = None
    downstream: TraceSpec | None = None


@dataclass(frozen=True)
class Trace:
    """A checked trace; it can be hashed, and equal ones start the same backward pass.

    A trace through a head's value has something downstream: another node's trace, or a loss. It
    starts from the head's write at one token pair times the gradient of that something.
    """

    node: Node
    side: NonlinearitySide
    detach_layer_norm_scale: bool
    attention_trace_type: AttentionTraceType | None = None
    downstream: Trace | Loss | None = None

    @property
    def residual(self) -> ResidualPoint:
        """The residual stream that the node's block reads; the backward pass starts there."""
        return self.node.residual

    def residual_points(self, n_layers: int) -> tuple[ResidualPoint, ...]:
        """What `scalar` is computed from: the node's residual, and that of what is downstream."""
        match self.downstream:
            case None:
                return (self.residual,)
            case Trace():
                return (self.residual, self.downstream.residual)
            case Loss():
                return (self.residual, leaving_last_layer(n_layers))

    def scalar(
        self, model: SubjectModel, autoencoders: AutoencoderSet, residuals: Sequence[Tensor]
    ) -> Tensor:
        """The scalar that the backward pass starts from.

        `residuals`, each (T, D), stand at `residual_points`; the result is differentiable with
        respect to the first one. What is downstream is a constant.
        """
        attached = (
            ALL_PARTS if self.attention_trace_type is None else self.attention_trace_type.attached
        )
        if self.downstream is None:
            return node_activation(
                self.node,
                model,
                autoencoders,
                residuals[0],
                side=self.side,
                attached=attached,
                detach_scale=self.detach_layer_norm_scale,
            )
        query, key, head = self.node.index
        direction = self._direction(model, autoencoders, residuals[1])[query]
        heads = model.attention_heads(
            self.node.layer,
            residuals[0][: query + 1],
            attached=attached,
            detach_scale=self.detach_layer_norm_scale,
        )
        write = heads.value[key, head] @ model.write.attn[self.node.layer][head]
        return heads.probs[query, key, head] * (write @ direction)

    def _direction(
        self, model: SubjectModel, autoencoders: AutoencoderSet, residual: Tensor
    ) -> Tensor:
        """The gradient of what is downstream at its own residual stream, (T, D)."""
        downstream = self.downstream
        if isinstance(downstream, Trace):
            return gradient(lambda at: downstream.scalar(model, autoencoders, (at,)), residual)
        if downstream is None:
            raise ValueError("nothing is downstream of this trace")
        position = downstream.position

        def loss(at: Tensor) -> Tensor:
            logits = model.logits(
                at[position : position + 1], detach_scale=self.detach_layer_norm_scale
            )
            return downstream.of_logits(logits[0])

        return gradient(loss, residual)


def resolve_trace(
    spec: TraceSpec,
    loss: Loss | None,
    shape: ModelShape,
    autoencoders: AutoencoderSet,
    n_tokens: int,
    *,
    field: str,
    loss_field: str,
) -> Trace:
    """Checks a trace, and the loss that was given beside it.

    Raises InvalidArgument naming the field for a node that is none (see `resolve_node`), a head
    without an attention trace type or another node with one, a downstream node without a trace of
    type v, one that is itself of type v or not strictly downstream, a trace of type v with neither
    or both of a downstream node and a loss, and a loss beside any other trace.
    """
    trace = _resolve(spec, shape, autoencoders, n_tokens, field)
    if trace.attention_trace_type is not AttentionTraceType.VALUE:
        if loss is not None:
            raise InvalidArgument(
                "a backward pass starts from a loss or from a trace; only a trace of type V "
                "without a downstream node takes a loss",
                field=loss_field,
            )
        return trace
    if spec.downstream is None:
        if loss is None:
            raise InvalidArgument(
                "a trace of type V projects on a gradient; give a downstream node or a loss",
                field=f"{field}.downstream",
                reason="LOSS_NEEDED",
            )
        return replace(trace, downstream=loss)
    if loss is not None:
        raise InvalidArgument(
            "a trace of type V with a downstream node takes no loss", field=loss_field
        )
    below = f"{field}.downstream"
    if spec.downstream.attention_trace_type is AttentionTraceType.VALUE:
        raise InvalidArgument(
            "what is downstream can't be traced through its value; it must be Q, K or QK",
            field=f"{below}.attention_trace_type",
        )
    downstream = _resolve(spec.downstream, shape, autoencoders, n_tokens, below)
    if not downstream.residual.is_after(trace.node.layer, trace.node.location_within_layer):
        raise InvalidArgument(
            f"a {downstream.node.node_type.value} of layer {downstream.node.layer} is not "
            f"downstream of attention in layer {trace.node.layer}",
            field=f"{below}.node_index.layer_index",
        )
    return replace(trace, downstream=downstream)


def _resolve(
    spec: TraceSpec, shape: ModelShape, autoencoders: AutoencoderSet, n_tokens: int, field: str
) -> Trace:
    node = resolve_node(spec.node, shape, autoencoders, n_tokens, f"{field}.node_index")
    kind = spec.attention_trace_type
    if node.is_head and kind is None:
        raise InvalidArgument(
            "an attention head is traced through its query (Q), its key (K), both (QK) or its "
            "value (V); say which",
            field=f"{field}.attention_trace_type",
        )
    if not node.is_head and kind is not None:
        raise InvalidArgument(
            f"a {node.node_type.value} has no query, key and value; leave the attention trace "
            "type out",
            field=f"{field}.attention_trace_type",
        )
    if spec.downstream is not None and kind is not AttentionTraceType.VALUE:
        raise InvalidArgument(
            "only a trace of type V has a downstream node", field=f"{field}.downstream"
        )
    # A head's value has no nonlinearity: traces of both sides are one.
    side = NonlinearitySide.PRE_ACT if kind is AttentionTraceType.VALUE else spec.side
    return Trace(node, side, spec.detach_layer_norm_scale, kind)
