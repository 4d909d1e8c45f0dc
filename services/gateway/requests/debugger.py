"""Bodies of /batched_tdb: what the viewer's debugger page asks for, without the details."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from services.gateway.names import AttentionTraceType
from services.gateway.requests.batches import MOST_INFERENCES
from services.gateway.requests.fields import Body, Count, Text, at_most
from services.gateway.requests.inference import MirroredNodeIndex, MirroredTraceConfig

MOST_NODE_ABLATIONS = 999
"""One less than the contract's limit: the gradient of the final layer norm's scale is one too."""


class ComponentTypeForMlp(StrEnum):
    """What the nodes of MLP layers are."""

    NEURON = "neuron"
    AUTOENCODER_LATENT = "autoencoder_latent"


class ComponentTypeForAttention(StrEnum):
    """What the nodes of attention layers are."""

    ATTENTION_HEAD = "attention_head"
    AUTOENCODER_LATENT = "autoencoder_latent"


class NodeAblation(Body):
    """A node to overwrite, with which value."""

    node_index: MirroredNodeIndex
    value: float


class NodeToTrace(Body):
    """A node that the backward pass starts from.

    As in the reference nothing reads `downstreamTraceConfig`: a downstream node stands beside.
    """

    node_index: MirroredNodeIndex
    attention_trace_type: AttentionTraceType | None = None
    downstream_trace_config: MirroredTraceConfig | None = None


class TdbRequestSpec(Body):
    """A prompt of the debugger page."""

    spec_type: Literal["tdb_request_spec"] = "tdb_request_spec"
    prompt: Text
    target_tokens: Annotated[list[Text], at_most(1000)]
    distractor_tokens: Annotated[list[Text], at_most(1000)]
    component_type_for_mlp: ComponentTypeForMlp
    component_type_for_attention: ComponentTypeForAttention
    top_and_bottom_k_for_node_table: Count
    hide_early_layers_when_ablating: bool
    node_ablations: Annotated[list[NodeAblation], at_most(MOST_NODE_ABLATIONS)] | None = None
    upstream_node_to_trace: NodeToTrace | None = None
    downstream_node_to_trace: NodeToTrace | None = None


class BatchedTdbRequest(Body):
    """Several prompts, or one with and without ablations; their nodes are united."""

    sub_requests: Annotated[list[TdbRequestSpec], at_most(MOST_INFERENCES)]
