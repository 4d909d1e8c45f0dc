"""What the debugger page asks for, spelt out as a batch."""

from __future__ import annotations

from neuropil.scalars import v1
from services.gateway.batches import batch_request
from services.gateway.names import (
    ActivationLocationType,
    AttentionTraceType,
    DerivedScalarType,
    GroupId,
    LossFnName,
    PassType,
    PreOrPostAct,
    TokenScoringType,
)
from services.gateway.requests.batches import (
    BatchedRequest,
    InferenceSubRequest,
    ProcessingRequestSpec,
)
from services.gateway.requests.debugger import (
    BatchedTdbRequest,
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    NodeAblation,
    NodeToTrace,
    TdbRequestSpec,
)
from services.gateway.requests.inference import (
    AblationSpec,
    InferenceRequestSpec,
    LossFnConfig,
    MirroredActivationIndex,
    MirroredTraceConfig,
)
from services.gateway.requests.specs import (
    MultipleTopKDerivedScalarsRequestSpec,
    ScoredTokensRequestSpec,
    TokenPairAttributionRequestSpec,
)
from shared.errors import InvalidArgument

NODE_TABLE = "topKComponents"
"""The spec whose nodes the page lists, and that the others of nodes depend on."""

_SCORED_TOKENS = 10
_ATTRIBUTED_TOKENS = 3
_OUTPUT_TOKENS = 100

# What stands for the embedding, the MLP and attention in each group, in that order.
_EMBEDDING = {
    "write_norm": "resid_post_embedding_norm",
    "act_times_grad": "token_attribution",
    "direction_write": "resid_post_embedding_proj_to_final_residual_grad",
    "activation": "always_one",
}
_MLP = {
    ComponentTypeForMlp.NEURON: {
        "write_norm": "mlp_write_norm",
        "act_times_grad": "mlp_act_times_grad",
        "direction_write": "mlp_write_to_final_residual_grad",
        "activation": "mlp_post_act",
    },
    ComponentTypeForMlp.AUTOENCODER_LATENT: {
        "write_norm": "online_mlp_autoencoder_write_norm",
        "act_times_grad": "online_mlp_autoencoder_act_times_grad",
        "direction_write": "online_mlp_autoencoder_write_to_final_residual_grad",
        "activation": "online_mlp_autoencoder_latent",
    },
}
_ATTENTION = {
    ComponentTypeForAttention.ATTENTION_HEAD: {
        "write_norm": "unflattened_attn_write_norm",
        "act_times_grad": "unflattened_attn_act_times_grad",
        "direction_write": "unflattened_attn_write_to_final_residual_grad",
        "activation": "attn_qk_probs",
    },
    ComponentTypeForAttention.AUTOENCODER_LATENT: {
        "write_norm": "online_attention_autoencoder_write_norm",
        "act_times_grad": "online_attention_autoencoder_act_times_grad",
        "direction_write": "online_attention_autoencoder_write_to_final_residual_grad",
        "activation": "online_attention_autoencoder_latent",
    },
}
# Where a node of each kind is overwritten, and how many indices name it.
_ABLATED_PLACES = {
    "attention_head": ("attn.qk_probs", 3),
    "mlp_neuron": ("mlp.post_act", 2),
    "autoencoder_latent": ("online_autoencoder_latent", 2),
    "mlp_autoencoder_latent": ("online_mlp_autoencoder_latent", 2),
    "attention_autoencoder_latent": ("online_attention_autoencoder_latent", 2),
}
# Gradients pass the final layer norm as if its scale were a constant.
_CONSTANT_FINAL_SCALE = AblationSpec(
    index=MirroredActivationIndex(
        activation_location_type=ActivationLocationType("resid.ln_f.scale"),
        tensor_indices=["All", "All"],
        layer_index=None,
        pass_type=PassType("backward"),
    ),
    value=0.0,
)


def spelt_out(body: BatchedTdbRequest) -> BatchedRequest:
    """The batch that a body stands for.

    Raises:
        InvalidArgument: for a node that can't be ablated or traced so, naming its field.
    """
    return BatchedRequest(
        inference_sub_requests=[
            _sub_request(each, f"subRequests[{position}]")
            for position, each in enumerate(body.sub_requests)
        ]
    )


def debugger_request(body: BatchedTdbRequest, batch: BatchedRequest) -> v1.BatchDeriveRequest:
    """The message of a body whose batch is given.

    With `hideEarlyLayersWhenAblating` the node table has no nodes from before the first layer that
    is ablated. As all tables of a body have the same nodes, that is the first layer ablated in any
    of its prompts, and one that is ablated without hiding ends the hiding.
    """
    request = batch_request(batch)
    ablating = [each for each in body.sub_requests if each.node_ablations]
    layers = [
        ablation.node_index.layer_index or 0
        for each in ablating
        for ablation in each.node_ablations or ()
    ]
    first = min(layers, default=0)
    if first and all(each.hide_early_layers_when_ablating for each in ablating):
        for inference in request.inferences:
            for spec in inference.specs:
                if spec.name == NODE_TABLE:
                    spec.top_nodes.first_layer = first
    return request


def _sub_request(body: TdbRequestSpec, path: str) -> InferenceSubRequest:
    ablations = [
        _ablation(each, f"{path}.nodeAblations[{position}]")
        for position, each in enumerate(body.node_ablations or ())
    ]
    trace = _trace(body, path)
    through_value = trace is not None and trace.attention_trace_type == AttentionTraceType("V")
    needs_loss = trace is None or (through_value and trace.downstream_trace_config is None)
    loss = LossFnConfig(
        name=LossFnName("logit_diff"),
        target_tokens=body.target_tokens,
        distractor_tokens=body.distractor_tokens,
    )
    upstream = body.upstream_node_to_trace
    traced_token = None
    if upstream is not None and upstream.node_index.tensor_indices:
        traced_token = upstream.node_index.tensor_indices[0]
    return InferenceSubRequest(
        inference_request_spec=InferenceRequestSpec(
            prompt=body.prompt,
            ablation_specs=[*ablations, _CONSTANT_FINAL_SCALE],
            loss_fn_config=loss if needs_loss else None,
            trace_config=trace,
        ),
        processing_request_spec_by_name=_specs(body, -1 if traced_token is None else traced_token),
    )


def _specs(body: TdbRequestSpec, token_index: int) -> dict[str, ProcessingRequestSpec]:
    specs: dict[str, ProcessingRequestSpec] = {
        NODE_TABLE: MultipleTopKDerivedScalarsRequestSpec(
            dst_list_by_group_id=_groups(
                body.component_type_for_mlp, body.component_type_for_attention
            ),
            top_and_bottom_k=body.top_and_bottom_k_for_node_table,
        ),
        # Of whole layers a token, which does not depend on what their nodes are.
        "componentSumsForTokenDisplay": MultipleTopKDerivedScalarsRequestSpec(
            dst_list_by_group_id=_groups(
                ComponentTypeForMlp.NEURON, ComponentTypeForAttention.ATTENTION_HEAD
            ),
            top_and_bottom_k=1,
        ),
    }
    for name, scoring in (
        ("upvotedOutputTokens", "upvoted_output_tokens"),
        ("inputTokensThatUpvoteMlp", "input_tokens_that_upvote_mlp"),
        ("inputTokensThatUpvoteAttnQ", "input_tokens_that_upvote_attn_q"),
        ("inputTokensThatUpvoteAttnK", "input_tokens_that_upvote_attn_k"),
    ):
        specs[name] = ScoredTokensRequestSpec(
            token_scoring_type=TokenScoringType(scoring),
            num_tokens=_SCORED_TOKENS,
            depends_on_spec_name=NODE_TABLE,
        )
    specs["tokenPairAttribution"] = TokenPairAttributionRequestSpec(
        num_tokens_attended_to=_ATTRIBUTED_TOKENS, depends_on_spec_name=NODE_TABLE
    )
    specs["topOutputTokenLogits"] = MultipleTopKDerivedScalarsRequestSpec(
        dst_list_by_group_id={GroupId("logits"): [DerivedScalarType("logits")]},
        top_and_bottom_k=_OUTPUT_TOKENS,
        token_index=token_index,
    )
    return specs


def _groups(
    mlp: ComponentTypeForMlp, attention: ComponentTypeForAttention
) -> dict[GroupId, list[DerivedScalarType]]:
    return {
        GroupId(group): [
            DerivedScalarType(embedding),
            DerivedScalarType(_MLP[mlp][group]),
            DerivedScalarType(_ATTENTION[attention][group]),
        ]
        for group, embedding in _EMBEDDING.items()
    }


def _ablation(body: NodeAblation, path: str) -> AblationSpec:
    node = body.node_index
    if node.node_type.value not in _ABLATED_PLACES:
        raise InvalidArgument(
            f"{path}.nodeIndex.nodeType: {node.node_type.value} can't be ablated, only "
            f"{', '.join(_ABLATED_PLACES)}",
            field=f"{path}.nodeIndex.nodeType",
        )
    place, count = _ABLATED_PLACES[node.node_type.value]
    indices = node.tensor_indices
    if len(indices) != count or indices[0] is None or indices[-1] is None:
        meaning = "query, key and head" if count == 3 else "token and component"
        raise InvalidArgument(
            f"{path}.nodeIndex.tensorIndices: must be {count} indices: {meaning}",
            field=f"{path}.nodeIndex.tensorIndices",
        )
    # A head's probabilities are overwritten for all keys of the query.
    attended_to: list[int | str] = ["All"] if count == 3 else []
    return AblationSpec(
        index=MirroredActivationIndex.model_construct(
            activation_location_type=ActivationLocationType(place),
            tensor_indices=[indices[0], *attended_to, indices[-1]],
            layer_index=node.layer_index,
            pass_type=PassType("forward"),
        ),
        value=body.value,
    )


def _trace(body: TdbRequestSpec, path: str) -> MirroredTraceConfig | None:
    upstream, downstream = body.upstream_node_to_trace, body.downstream_node_to_trace
    through_value = AttentionTraceType("V")
    if upstream is None:
        if downstream is not None:
            raise InvalidArgument(
                f"{path}.downstreamNodeToTrace: goes with an upstreamNodeToTrace",
                field=f"{path}.downstreamNodeToTrace",
            )
        return None
    if downstream is not None and upstream.attention_trace_type != through_value:
        raise InvalidArgument(
            f"{path}.downstreamNodeToTrace: goes with a trace of type V alone",
            field=f"{path}.downstreamNodeToTrace",
        )
    if downstream is not None and downstream.attention_trace_type == through_value:
        raise InvalidArgument(
            f"{path}.downstreamNodeToTrace.attentionTraceType: a downstream node can't be traced "
            "through V",
            field=f"{path}.downstreamNodeToTrace.attentionTraceType",
        )
    return _trace_config(upstream, None if downstream is None else _trace_config(downstream))


def _trace_config(
    body: NodeToTrace, downstream: MirroredTraceConfig | None = None
) -> MirroredTraceConfig:
    return MirroredTraceConfig(
        node_index=body.node_index,
        pre_or_post_act=PreOrPostAct("pre"),
        detach_layer_norm_scale=True,
        attention_trace_type=body.attention_trace_type,
        downstream_trace_config=downstream,
    )
