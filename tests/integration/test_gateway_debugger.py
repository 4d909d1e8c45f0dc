"""The debugger page's requests over HTTP, on services that note their calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from google.protobuf import text_format

from neuropil import names
from neuropil.scalars import v1
from tests.integration.gateway_debugger import HEAD, NEURON, PROMPT, ablated, node
from tests.integration.gateway_inference import Records, Scalars
from tests.integration.gateway_running import gateway_to

SPEC_NAMES = [
    "topKComponents",
    "componentSumsForTokenDisplay",
    "upvotedOutputTokens",
    "inputTokensThatUpvoteMlp",
    "inputTokensThatUpvoteAttnQ",
    "inputTokensThatUpvoteAttnK",
    "tokenPairAttribution",
    "topOutputTokenLogits",
]
FINAL_SCALE = """
    ablations {
      index {
        location_type: ACTIVATION_LOCATION_TYPE_RESID_LN_F_SCALE
        tensor_indices {} tensor_indices {} pass_type: PASS_TYPE_BACKWARD
      }
    }
"""
LOSS = 'loss { kind: LOSS_KIND_LOGIT_DIFF target_tokens: " sat" distractor_tokens: " ran" }'


@pytest.fixture
def scalars() -> Scalars:
    return Scalars()


@pytest.fixture
async def client(scalars: Scalars) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway_to(records=Records(), scalars=scalars) as connected:
        yield connected


async def asked(
    client: httpx.AsyncClient, scalars: Scalars, *prompts: dict[str, Any]
) -> list[v1.BatchInference]:
    """What the model is asked for some prompts."""
    answer = await client.post("/batched_tdb", json={"subRequests": list(prompts)})
    assert answer.status_code == 200, answer.text
    return list(scalars.requests[-1].inferences)


def run_of(text: str) -> v1.InferenceSpec:
    return text_format.Parse(f'prompt: "The cat" {text}', v1.InferenceSpec())


async def test_a_prompt_is_spelt_out_as_a_batch(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    (inference,) = await asked(client, scalars, PROMPT)
    assert inference.inference == run_of(FINAL_SCALE + LOSS)
    # Nodes have no tokens that a query or key reads: the gateway answers null for these itself.
    unasked = {"inputTokensThatUpvoteAttnQ", "inputTokensThatUpvoteAttnK"}
    assert [each.name for each in inference.specs] == [
        name for name in SPEC_NAMES if name not in unasked
    ]
    table, sums, *scored, pairs, logits = inference.specs
    groups = {
        names.GROUP_IDS.name(group.group_id): [
            names.DERIVED_SCALAR_TYPES.name(each) for each in group.derived_scalar_types
        ]
        for group in table.top_nodes.groups
    }
    assert groups == {
        "write_norm": [
            "resid_post_embedding_norm",
            "mlp_write_norm",
            "unflattened_attn_write_norm",
        ],
        "act_times_grad": [
            "token_attribution",
            "mlp_act_times_grad",
            "unflattened_attn_act_times_grad",
        ],
        "direction_write": [
            "resid_post_embedding_proj_to_final_residual_grad",
            "mlp_write_to_final_residual_grad",
            "unflattened_attn_write_to_final_residual_grad",
        ],
        "activation": ["always_one", "mlp_post_act", "attn_qk_probs"],
    }
    assert table.top_nodes.top_and_bottom_count == 3
    assert not table.top_nodes.HasField("token_index")
    assert not table.top_nodes.HasField("first_layer")
    assert sums.top_nodes.groups == table.top_nodes.groups
    assert sums.top_nodes.top_and_bottom_count == 1
    assert [names.TOKEN_SCORINGS.name(each.scored_tokens.scoring) for each in scored] == [
        "upvoted_output_tokens",
        "input_tokens_that_upvote_mlp",
    ]
    assert {each.scored_tokens.token_count for each in scored} == {10}
    assert {each.scored_tokens.depends_on for each in scored} == {"topKComponents"}
    assert pairs.token_pair_attribution == v1.TokenPairAttributionSpec(
        attended_to_token_count=3, depends_on="topKComponents"
    )
    assert logits.top_nodes == text_format.Parse(
        """
        groups {
          group_id: GROUP_ID_LOGITS derived_scalar_types: DERIVED_SCALAR_TYPE_LOGITS
        }
        token_index: -1 top_and_bottom_count: 100 pass_type: PASS_TYPE_FORWARD
        """,
        v1.TopNodesSpec(),
    )


async def test_latents_stand_for_neurons_and_heads_where_they_are_asked_for(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    latents = {
        "componentTypeForMlp": "autoencoder_latent",
        "componentTypeForAttention": "autoencoder_latent",
    }
    (inference,) = await asked(client, scalars, PROMPT | latents)
    table, sums = (each.top_nodes for each in inference.specs[:2])
    found = [
        [names.DERIVED_SCALAR_TYPES.name(each) for each in group.derived_scalar_types[1:]]
        for group in table.groups
    ]
    assert found == [
        [
            f"online_mlp_autoencoder_{quantity}",
            f"online_attention_autoencoder_{quantity}",
        ]
        for quantity in ("write_norm", "act_times_grad", "write_to_final_residual_grad", "latent")
    ]
    # The sums by token are those of whole layers, whatever their nodes.
    assert sums.groups[0].derived_scalar_types[1] == names.DERIVED_SCALAR_TYPES.value(
        "mlp_write_norm"
    )


async def test_nodes_are_ablated_at_the_places_where_they_are(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    nodes = [
        HEAD,
        NEURON,
        node("autoencoder_latent", 0, 4),
        node("mlp_autoencoder_latent", 0, 5),
        node("attention_autoencoder_latent", 0, 6),
    ]
    ablations = [{"nodeIndex": each, "value": 0.5} for each in nodes]
    (inference,) = await asked(client, scalars, PROMPT | {"nodeAblations": ablations})
    places = [
        "ATTN_QK_PROBS layer_index: 2 tensor_indices { index: 1 } tensor_indices {}"
        " tensor_indices { index: 3 }",
        "MLP_POST_ACT layer_index: 2 tensor_indices { index: 1 } tensor_indices { index: 7 }",
        *(
            f"ONLINE_{name} layer_index: 2 tensor_indices {{ index: 0 }}"
            f" tensor_indices {{ index: {index} }}"
            for name, index in (
                ("AUTOENCODER_LATENT", 4),
                ("MLP_AUTOENCODER_LATENT", 5),
                ("ATTENTION_AUTOENCODER_LATENT", 6),
            )
        ),
    ]
    expected = "".join(
        f"ablations {{ index {{ location_type: ACTIVATION_LOCATION_TYPE_{place}"
        " pass_type: PASS_TYPE_FORWARD } value: 0.5 }"
        for place in places
    )
    assert inference.inference == run_of(expected + FINAL_SCALE + LOSS)


NEURON_TRACE = """
    node_index {
      node_type: NODE_TYPE_MLP_NEURON layer_index: 2 pass_type: PASS_TYPE_FORWARD
      tensor_indices { index: 1 } tensor_indices { index: 7 }
    }
    side: NONLINEARITY_SIDE_PRE_ACT detach_layer_norm_scale: true
"""
HEAD_TRACE = """
    node_index {
      node_type: NODE_TYPE_ATTENTION_HEAD layer_index: 2 pass_type: PASS_TYPE_FORWARD
      tensor_indices { index: 1 } tensor_indices { index: 0 } tensor_indices { index: 3 }
    }
    side: NONLINEARITY_SIDE_PRE_ACT detach_layer_norm_scale: true
"""


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ({"upstreamNodeToTrace": {"nodeIndex": NEURON}}, f"trace {{ {NEURON_TRACE} }}"),
        *(
            (
                {"upstreamNodeToTrace": {"nodeIndex": HEAD, "attentionTraceType": kind}},
                f"trace {{ {HEAD_TRACE} attention_trace_type: ATTENTION_TRACE_TYPE_{kind} }}"
                # What a value is projected on is the loss, unless a node is named.
                + (LOSS if kind == "V" else ""),
            )
            for kind in ("Q", "K", "QK", "V")
        ),
        (
            {
                "upstreamNodeToTrace": {"nodeIndex": HEAD, "attentionTraceType": "V"},
                "downstreamNodeToTrace": {"nodeIndex": NEURON},
            },
            f"trace {{ {HEAD_TRACE} attention_trace_type: ATTENTION_TRACE_TYPE_V"
            f" downstream {{ {NEURON_TRACE} }} }}",
        ),
    ],
)
async def test_a_traced_node_takes_the_place_of_the_loss(
    client: httpx.AsyncClient, scalars: Scalars, nodes: dict[str, Any], expected: str
) -> None:
    (inference,) = await asked(client, scalars, PROMPT | nodes)
    assert inference.inference == run_of(FINAL_SCALE + expected)
    assert inference.specs[-1].top_nodes.token_index == 1


@pytest.mark.parametrize(
    ("prompts", "first_layer"),
    [
        ([ablated(3, 2, hideEarlyLayersWhenAblating=True)], 2),
        ([ablated(3, 2)], None),
        ([ablated(0, hideEarlyLayersWhenAblating=True)], None),
        ([PROMPT | {"hideEarlyLayersWhenAblating": True}], None),
        # Both tables have the same nodes, with and without the ablation.
        ([ablated(3, hideEarlyLayersWhenAblating=True), PROMPT], 3),
        ([ablated(3, hideEarlyLayersWhenAblating=True), ablated(4)], None),
        (
            [
                ablated(3, hideEarlyLayersWhenAblating=True),
                ablated(1, hideEarlyLayersWhenAblating=True),
            ],
            1,
        ),
    ],
)
async def test_layers_before_the_first_ablated_one_are_hidden_on_request(
    client: httpx.AsyncClient,
    scalars: Scalars,
    prompts: list[dict[str, Any]],
    first_layer: int | None,
) -> None:
    for inference in await asked(client, scalars, *prompts):
        table, *others = (each.top_nodes for each in inference.specs)
        assert table.HasField("first_layer") == (first_layer is not None)
        assert table.first_layer == (first_layer or 0)
        assert not any(each.HasField("first_layer") for each in others)


async def test_the_answer_has_all_that_the_page_shows(client: httpx.AsyncClient) -> None:
    answer = await client.post("/batched_tdb", json={"subRequests": [PROMPT, PROMPT]})
    parts = answer.json()["inferenceSubResponses"]
    assert len(parts) == 2
    for part in parts:
        data = part["processingResponseDataByName"]
        assert list(data) == SPEC_NAMES
        table = data["topKComponents"]["nodeIndices"]
        assert [each["tensorIndices"] for each in table] == [[0, 3], [1, 0, 2]]
        for name in SPEC_NAMES[2:7]:
            assert data[name]["nodeIndices"] == table
