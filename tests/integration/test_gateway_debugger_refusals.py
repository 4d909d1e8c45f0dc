"""What is wrong with a debugger page's request, told by the field that the client wrote."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared import errors
from tests.integration.gateway_debugger import HEAD, NEURON, PROMPT, ablated, node
from tests.integration.gateway_inference import Records, Scalars
from tests.integration.gateway_running import gateway_to


@pytest.fixture
def scalars() -> Scalars:
    return Scalars()


@pytest.fixture
async def client(scalars: Scalars) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway_to(records=Records(), scalars=scalars) as connected:
        yield connected


def without(*fields: str) -> dict[str, Any]:
    return {name: value for name, value in PROMPT.items() if name not in fields}


TRACED_HEAD = {"nodeIndex": HEAD, "attentionTraceType": "V"}


@pytest.mark.parametrize(
    ("sent", "status", "field"),
    [
        *((without(name), 422, name) for name in PROMPT),
        (PROMPT | {"specType": "derived_scalars_request_spec"}, 422, "specType"),
        (PROMPT | {"prompt": ""}, 400, "prompt"),
        (PROMPT | {"prompt": "\ud800"}, 400, "prompt"),
        (PROMPT | {"targetTokens": " a"}, 422, "targetTokens"),
        (PROMPT | {"targetTokens": ["a"] * 1001}, 400, "targetTokens"),
        (PROMPT | {"componentTypeForMlp": "attention_head"}, 422, "componentTypeForMlp"),
        (PROMPT | {"componentTypeForAttention": "neuron"}, 422, "componentTypeForAttention"),
        (PROMPT | {"topAndBottomKForNodeTable": 0}, 400, "topAndBottomKForNodeTable"),
        (PROMPT | {"topAndBottomKForNodeTable": "x"}, 422, "topAndBottomKForNodeTable"),
        (PROMPT | {"hideEarlyLayersWhenAblating": "x"}, 422, "hideEarlyLayersWhenAblating"),
        (
            PROMPT | {"nodeAblations": [{"nodeIndex": node("layer", 1, 0), "value": 0}]},
            400,
            "nodeAblations[0].nodeIndex.nodeType",
        ),
        *(
            (
                PROMPT | {"nodeAblations": [{"nodeIndex": node(kind, *indices), "value": 0}]},
                400,
                "nodeAblations[0].nodeIndex.tensorIndices",
            )
            for kind, indices in (
                ("attention_head", (1, 2)),
                ("attention_head", (None, 0, 1)),
                ("attention_head", (1, 0, None)),
                ("mlp_neuron", (1,)),
                ("mlp_neuron", ()),
                ("mlp_neuron", (1, 0, 2)),
                ("mlp_neuron", (None, 2)),
            )
        ),
        (
            PROMPT | {"nodeAblations": [{"nodeIndex": NEURON, "value": float("nan")}]},
            400,
            "nodeAblations[0].value",
        ),
        (PROMPT | {"nodeAblations": [{"nodeIndex": NEURON}]}, 422, "nodeAblations[0].value"),
        (PROMPT | {"upstreamNodeToTrace": {}}, 422, "upstreamNodeToTrace.nodeIndex"),
        (
            PROMPT | {"upstreamNodeToTrace": {"nodeIndex": node("mlp_neuron")}},
            400,
            "upstreamNodeToTrace.nodeIndex.tensorIndices",
        ),
        (
            PROMPT | {"upstreamNodeToTrace": {"nodeIndex": HEAD, "attentionTraceType": "X"}},
            422,
            "upstreamNodeToTrace.attentionTraceType",
        ),
        (
            PROMPT | {"downstreamNodeToTrace": {"nodeIndex": NEURON}},
            400,
            "downstreamNodeToTrace",
        ),
        (
            PROMPT
            | {
                "upstreamNodeToTrace": {"nodeIndex": HEAD, "attentionTraceType": "QK"},
                "downstreamNodeToTrace": {"nodeIndex": NEURON},
            },
            400,
            "downstreamNodeToTrace",
        ),
        (
            PROMPT | {"upstreamNodeToTrace": TRACED_HEAD, "downstreamNodeToTrace": TRACED_HEAD},
            400,
            "downstreamNodeToTrace.attentionTraceType",
        ),
    ],
)
async def test_bad_prompts_name_the_field(
    client: httpx.AsyncClient, scalars: Scalars, sent: dict[str, Any], status: int, field: str
) -> None:
    answer = await client.post(
        "/batched_tdb",
        # Unlike httpx's own, it writes what is no text and no number.
        content=json.dumps({"subRequests": [PROMPT, sent]}).encode(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == status, answer.text
    assert answer.json()["field"] == f"subRequests[1].{field}"
    assert ("detail" in answer.json()) == (status == 422)
    assert scalars.requests == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [({"subRequests": []}, 400), ({"subRequests": [{}] * 101}, 400), ({}, 422)],
)
async def test_prompts_are_few_and_there_is_one(
    client: httpx.AsyncClient, sent: dict[str, Any], status: int
) -> None:
    answer = await client.post("/batched_tdb", json=sent)
    assert (answer.status_code, answer.json()["field"]) == (status, "subRequests")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("inferences", "subRequests"),
        ("inferences[0]", "subRequests[0]"),
        ("inferences[0].inference", "subRequests[0]"),
        ("inferences[0].inference.prompt", "subRequests[0].prompt"),
        ("inferences[0].inference.loss", "subRequests[0].targetTokens"),
        ("inferences[0].inference.loss.target_tokens[1]", "subRequests[0].targetTokens[1]"),
        ("inferences[0].inference.loss.distractor_tokens", "subRequests[0].distractorTokens"),
        (
            "inferences[0].inference.ablations[0].index.location_type",
            "subRequests[0].nodeAblations[0].nodeIndex.nodeType",
        ),
        (
            "inferences[0].inference.ablations[0].index.tensor_indices[1].index",
            "subRequests[0].nodeAblations[0].nodeIndex.tensorIndices[1]",
        ),
        (
            "inferences[0].inference.ablations[0].index.layer_index",
            "subRequests[0].nodeAblations[0].nodeIndex.layerIndex",
        ),
        (
            "inferences[0].inference.ablations[0].index",
            "subRequests[0].nodeAblations[0].nodeIndex",
        ),
        ("inferences[0].inference.ablations[0]", "subRequests[0].nodeAblations[0]"),
        ("inferences[0].inference.ablations[1]", "subRequests[0]"),
        ("inferences[0].inference.trace", "subRequests[0].upstreamNodeToTrace"),
        (
            "inferences[0].inference.trace.node_index.tensor_indices[0]",
            "subRequests[0].upstreamNodeToTrace.nodeIndex.tensorIndices[0]",
        ),
        (
            "inferences[0].inference.trace.downstream.node_index",
            "subRequests[0].downstreamNodeToTrace.nodeIndex",
        ),
        (
            "inferences[0].inference.trace.attention_trace_type",
            "subRequests[0].upstreamNodeToTrace.attentionTraceType",
        ),
        (
            "inferences[0].specs[0].top_nodes.groups[2].derived_scalar_types[1]",
            "subRequests[0].componentTypeForMlp",
        ),
        (
            "inferences[0].specs[0].top_nodes.groups[2].derived_scalar_types[2]",
            "subRequests[0].componentTypeForAttention",
        ),
        (
            "inferences[0].specs[0].top_nodes.top_and_bottom_count",
            "subRequests[0].topAndBottomKForNodeTable",
        ),
        (
            "inferences[0].specs[0].top_nodes.first_layer",
            "subRequests[0].hideEarlyLayersWhenAblating",
        ),
        ("inferences[0].specs[3].scored_tokens.token_count", "subRequests[0]"),
    ],
)
async def test_failures_of_the_model_name_the_field(
    client: httpx.AsyncClient, scalars: Scalars, path: str, expected: str
) -> None:
    scalars.failure = errors.InvalidArgument(f"{path}: no", field=path)
    answer = await client.post("/batched_tdb", json={"subRequests": [ablated(1)]})
    assert answer.status_code == 400
    assert answer.json()["field"] == expected
