"""The requests that are measured; a page is what the viewer's debugger asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import neuropil
from neuropil import names
from neuropil.common import v1 as common
from neuropil.names import component_id
from neuropil.scalars import v1

PAGE_COUNT = 10
"""Nodes of each type and end that the viewer lists unless told otherwise."""
TOP_COMPONENTS = "topKComponents"

GROUPS = {
    "write_norm": ["mlp_write_norm", "unflattened_attn_write_norm"],
    "act_times_grad": ["mlp_act_times_grad", "unflattened_attn_act_times_grad"],
    "direction_write": [
        "mlp_write_to_final_residual_grad",
        "unflattened_attn_write_to_final_residual_grad",
    ],
}
PAGE_GROUPS = {
    "write_norm": ["resid_post_embedding_norm", *GROUPS["write_norm"]],
    "act_times_grad": ["token_attribution", *GROUPS["act_times_grad"]],
    "direction_write": [
        "resid_post_embedding_proj_to_final_residual_grad",
        *GROUPS["direction_write"],
    ],
    "activation": ["always_one", "mlp_post_act", "attn_qk_probs"],
}

LAST_SCALE = neuropil.Ablation("resid.ln_f.scale", None, [None, None], 0.0, "backward")
"""What the viewer always adds: the last layer norm's scale is a constant to gradients."""


def unchanged(number: int, layers: int, heads: int) -> neuropil.Ablation:
    """An ablation, another for each number, that changes nothing.

    The first token attends to itself alone, so its probability is 1. A run with another ablation is
    another run, which must be made though all of its values are known.
    """
    number %= layers * heads
    return neuropil.Ablation("attn.qk_probs", number // heads, [0, 0, number % heads], 1.0)


def inference(
    prompt: str, loss: neuropil.Loss | None = None, ablations: Sequence[neuropil.Ablation] = ()
) -> v1.InferenceSpec:
    """A run."""
    return v1.InferenceSpec(
        prompt=prompt,
        loss=None if loss is None else loss.message(),
        ablations=[each.message() for each in ablations],
    )


def top_nodes_spec(
    groups: Mapping[str, Sequence[str]], count: int, token_index: int | None = None
) -> v1.TopNodesSpec:
    """The strongest nodes of groups."""
    return v1.TopNodesSpec(
        groups=[
            v1.ScalarGroup(
                group_id=names.GROUP_IDS.value(group),
                derived_scalar_types=[names.DERIVED_SCALAR_TYPES.value(name) for name in types],
            )
            for group, types in groups.items()
        ],
        top_and_bottom_count=count,
        token_index=token_index,
    )


def page(inferences: Sequence[v1.InferenceSpec], count: int = PAGE_COUNT) -> v1.BatchDeriveRequest:
    """All that a page of the debugger shows of each inference."""
    return v1.BatchDeriveRequest(
        inferences=[
            v1.BatchInference(inference=each, specs=_page_specs(count)) for each in inferences
        ]
    )


def _page_specs(count: int) -> list[v1.NamedSpec]:
    sums = top_nodes_spec(PAGE_GROUPS, 1)
    sums.sum_dimensions.dimensions.extend(
        [common.DIMENSION_SEQUENCE_TOKENS, common.DIMENSION_ATTENDED_TO_SEQUENCE_TOKENS]
    )
    scored = {
        "upvotedOutputTokens": v1.TOKEN_SCORING_UPVOTED_OUTPUT_TOKENS,
        "inputTokensThatUpvoteMlp": v1.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_MLP,
    }
    # What queries and keys read is null on the viewer's page, and the gateway asks for none of it.
    return [
        v1.NamedSpec(name=TOP_COMPONENTS, top_nodes=top_nodes_spec(PAGE_GROUPS, count)),
        v1.NamedSpec(name="componentSumsForTokenDisplay", top_nodes=sums),
        *(
            v1.NamedSpec(
                name=name,
                scored_tokens=v1.ScoredTokensSpec(
                    scoring=scoring, token_count=10, depends_on=TOP_COMPONENTS
                ),
            )
            for name, scoring in scored.items()
        ),
        v1.NamedSpec(
            name="tokenPairAttribution",
            token_pair_attribution=v1.TokenPairAttributionSpec(
                attended_to_token_count=3, depends_on=TOP_COMPONENTS
            ),
        ),
        v1.NamedSpec(
            name="topOutputTokenLogits",
            top_nodes=top_nodes_spec({"logits": ["logits"]}, 100, -1),
        ),
    ]


def component(
    scalar_type: str, layer: int | None, run: v1.InferenceSpec
) -> v1.DeriveComponentRequest:
    """One component at every token."""
    return v1.DeriveComponentRequest(
        inference=run, spec=v1.ComponentSpec(component=component_id(scalar_type, layer, 3))
    )


def top_nodes(run: v1.InferenceSpec, groups: Mapping[str, Sequence[str]]) -> v1.ListTopNodesRequest:
    """The strongest 10 nodes of each type and end, and sums over all."""
    return v1.ListTopNodesRequest(inference=run, spec=top_nodes_spec(groups, 10))
