"""The routes that run a model, over a socket, on services that note their calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from google.protobuf import text_format

from neuropil import names
from neuropil.scalars import v1
from shared import errors
from tests.integration.gateway_inference import (
    ACTIVATION_INDEX,
    NODE_INDEX,
    PROMPT,
    Records,
    Scalars,
    derive,
)
from tests.integration.gateway_running import gateway_to


@pytest.fixture
def scalars() -> Scalars:
    return Scalars()


@pytest.fixture
async def client(scalars: Scalars) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway_to(records=Records(), scalars=scalars) as connected:
        yield connected


async def test_an_inference_is_translated_whole(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    trace = {
        "nodeIndex": NODE_INDEX,
        "preOrPostAct": "pre",
        "detachLayerNormScale": True,
        "attentionTraceType": "V",
        "downstreamTraceConfig": {
            "nodeIndex": NODE_INDEX,
            "preOrPostAct": "post",
            "detachLayerNormScale": False,
        },
    }
    body = derive(
        {"passType": "backward", "numTopTokens": 5},
        ablationSpecs=[{"index": ACTIVATION_INDEX, "value": "0.5"}],
        lossFnConfig={"name": "logit_diff", "targetTokens": [" a"], "distractorTokens": [" b"]},
        traceConfig=trace,
        activationIndexForWithinLayerGrad=ACTIVATION_INDEX,
    )
    answer = await client.post("/derived_scalars", json=body)
    assert answer.status_code == 200, answer.text
    index = """
        location_type: ACTIVATION_LOCATION_TYPE_ATTN_QK_PROBS layer_index: 1
        tensor_indices {index: 0} tensor_indices {} tensor_indices {index: 2}
        pass_type: PASS_TYPE_BACKWARD
    """
    node = """
        node_type: NODE_TYPE_ATTENTION_HEAD layer_index: 3
        tensor_indices {index: 2} tensor_indices {} tensor_indices {index: 1}
        pass_type: PASS_TYPE_FORWARD
    """
    expected = text_format.Parse(
        f"""
        inference {{
          prompt: "The cat"
          ablations {{ index {{ {index} }} value: 0.5 }}
          loss {{ kind: LOSS_KIND_LOGIT_DIFF target_tokens: " a" distractor_tokens: " b" }}
          trace {{
            node_index {{ {node} }} side: NONLINEARITY_SIDE_PRE_ACT detach_layer_norm_scale: true
            attention_trace_type: ATTENTION_TRACE_TYPE_V
            downstream {{ node_index {{ {node} }} side: NONLINEARITY_SIDE_POST_ACT }}
          }}
          within_layer_gradient_index {{ {index} }}
        }}
        spec {{
          component {{
            derived_scalar_type: DERIVED_SCALAR_TYPE_MLP_POST_ACT layer_index: 1 component_index: 3
          }}
          pass_type: PASS_TYPE_BACKWARD
          top_token_count: 5
        }}
        """,
        v1.DeriveComponentRequest(),
    )
    assert scalars.requests == [expected]


async def test_what_is_null_may_as_well_be_left_out(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    nothing = dict.fromkeys(
        (
            "ablationSpecs",
            "lossFnConfig",
            "traceConfig",
            "activationIndexForWithinLayerGrad",
        )
    )
    spec = {"normalizeActivationsUsingNeuronRecord": None, "numTopTokens": None}
    await client.post("/derived_scalars", json=derive(spec, **nothing))
    await client.post("/derived_scalars", json=derive())
    snake = {
        "inference_request_spec": PROMPT,
        "derived_scalars_request_spec": {
            "spec_type": "derived_scalars_request_spec",
            "dst": "mlp_post_act",
            "layer_index": 1,
            "activation_index": 3,
        },
    }
    await client.post("/derived_scalars", json=snake)
    assert len(scalars.requests) == 3
    assert all(request == scalars.requests[0] for request in scalars.requests)
    no_layer = await client.post("/derived_scalars", json=derive({"layerIndex": None}))
    assert no_layer.status_code == 200
    assert not scalars.requests[3].spec.component.HasField("layer_index")


async def test_the_answer(client: httpx.AsyncClient) -> None:
    data = (await client.post("/derived_scalars", json=derive())).json()
    assert data["inferenceAndTokenData"]["tokensAsStrings"] == ["The", " cat"]
    assert data["derivedScalarsResponseData"]["activations"] == [-1.0, 2.0]
    assert data["derivedScalarsResponseData"]["normalizedActivations"] is None
    assert data["derivedScalarsResponseData"]["topTokens"] == {
        "top": [{"token": "x", "scalar": 2.0, "normalizedScalar": 1.0}],
        "bottom": [{"token": "y", "scalar": -1.0, "normalizedScalar": -0.5}],
    }


@pytest.mark.parametrize(("dst", "expected"), [("mlp_post_act", 0.5), ("attn_write_norm", 0.25)])
async def test_scalars_are_normalised_by_a_record_of_either_kind(
    client: httpx.AsyncClient, dst: str, expected: float
) -> None:
    record = {"dst": dst, "layerIndex": 0, "activationIndex": 0, "datasets": ["demo"]}
    body = derive({"normalizeActivationsUsingNeuronRecord": record})
    data = (await client.post("/derived_scalars", json=body)).json()
    assert data["derivedScalarsResponseData"]["normalizedActivations"] == [0.0, expected]


@pytest.mark.parametrize(
    ("index", "status", "field"),
    [(9, 404, ""), (8, 400, "layerIndex"), (-1, 400, "activationIndex")],
)
async def test_a_record_that_can_not_normalise_ends_the_request(
    client: httpx.AsyncClient, scalars: Scalars, index: int, status: int, field: str
) -> None:
    scalars.waits = True
    record = {"dst": "mlp_post_act", "layerIndex": 0, "activationIndex": index, "datasets": ["d"]}
    body = derive({"normalizeActivationsUsingNeuronRecord": record})
    answer = await client.post("/derived_scalars", json=body)
    assert answer.status_code == status, answer.text
    path = "derivedScalarsRequestSpec.normalizeActivationsUsingNeuronRecord"
    assert answer.json()["field"] == (f"{path}.{field}" if field else "")
    if scalars.requests:
        # Nobody waits for the scalars any more.
        await asyncio.wait_for(scalars.cancelled.wait(), 5)


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"prompt": None}, 422, "inferenceRequestSpec.prompt"),
        ({"prompt": ""}, 400, "inferenceRequestSpec.prompt"),
        ({"prompt": "\udc00"}, 400, "inferenceRequestSpec.prompt"),
        (
            {"lossFnConfig": {"name": "nope"}},
            422,
            "inferenceRequestSpec.lossFnConfig.name",
        ),
        (
            {"ablationSpecs": [{"index": ACTIVATION_INDEX}]},
            422,
            "inferenceRequestSpec.ablationSpecs[0].value",
        ),
        (
            {"ablationSpecs": [{"index": ACTIVATION_INDEX, "value": float("nan")}]},
            400,
            "inferenceRequestSpec.ablationSpecs[0].value",
        ),
        (
            {"ablationSpecs": [{"index": ACTIVATION_INDEX, "value": 10**400}]},
            422,
            "inferenceRequestSpec.ablationSpecs[0].value",
        ),
        (
            {"ablationSpecs": [{"index": ACTIVATION_INDEX | {"tensorIndices": []}, "value": 0}]},
            400,
            "inferenceRequestSpec.ablationSpecs[0].index.tensorIndices",
        ),
        (
            {
                "ablationSpecs": [
                    {"index": ACTIVATION_INDEX | {"tensorIndices": ["some"]}, "value": 0}
                ]
            },
            422,
            "inferenceRequestSpec.ablationSpecs[0].index.tensorIndices[0]",
        ),
        (
            {
                "ablationSpecs": [
                    {"index": ACTIVATION_INDEX | {"tensorIndices": [0, -1]}, "value": 0}
                ]
            },
            400,
            "inferenceRequestSpec.ablationSpecs[0].index.tensorIndices[1]",
        ),
        (
            {
                "ablationSpecs": [
                    {"index": ACTIVATION_INDEX | {"tensorIndices": [0, "1.5"]}, "value": 0}
                ]
            },
            400,
            "inferenceRequestSpec.ablationSpecs[0].index.tensorIndices[1]",
        ),
        ({"ablationSpecs": [{}] * 2}, 422, "inferenceRequestSpec.ablationSpecs[0].index"),
    ],
)
async def test_bad_inferences_name_the_field(
    client: httpx.AsyncClient,
    scalars: Scalars,
    changes: dict[str, Any],
    status: int,
    field: str,
) -> None:
    answer = await client.post(
        "/derived_scalars",
        content=json.dumps(derive(**changes)).encode(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == status, answer.text
    assert answer.json()["field"].startswith(field)
    assert scalars.requests == []


async def test_a_trace_without_end_is_refused(client: httpx.AsyncClient, scalars: Scalars) -> None:
    trace: dict[str, Any] | None = None
    for _ in range(200):
        trace = {
            "nodeIndex": NODE_INDEX,
            "preOrPostAct": "pre",
            "detachLayerNormScale": True,
            "downstreamTraceConfig": trace,
        }
    answer = await client.post("/derived_scalars", json=derive(traceConfig=trace))
    assert answer.status_code in {400, 422}
    assert scalars.requests == []


async def test_failures_of_the_model_name_the_field(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    scalars.failure = errors.InvalidArgument(
        "spec.component.layer_index: 9 is not below 4", field="spec.component.layer_index"
    )
    answer = await client.post("/derived_scalars", json=derive())
    assert answer.status_code == 400
    assert answer.json()["field"] == "derivedScalarsRequestSpec.layerIndex"
    assert answer.json()["message"] == "derivedScalarsRequestSpec.layerIndex: 9 is not below 4"
    scalars.failure = errors.Unimplemented("traces are not served yet", field="inference.trace")
    answer = await client.post("/derived_scalars", json=derive())
    assert answer.status_code == 501
    assert answer.json()["field"] == "inferenceRequestSpec.traceConfig"


async def test_top_nodes_are_asked_for_group_by_group(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    spec = {
        "dstListByGroupId": {"write_norm": ["mlp_write_norm", "unflattened_attn_write_norm"]},
        "tokenIndex": -1,
        "topAndBottomK": 5,
    }
    body = {"inferenceRequestSpec": PROMPT, "multipleTopKDerivedScalarsRequestSpec": spec}
    route = "/multiple_top_k_derived_scalars"
    answer = await client.post(route, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["multipleTopKDerivedScalarsResponseData"]["nodeIndices"] == []
    both = ["sequence_tokens", "attended_to_sequence_tokens"]
    for kept in (both, [], ["sequence_tokens", "max_context_length"]):
        spec["dimensionsToKeepForIntermediateSum"] = kept
        await client.post(route, json=body)
    default, said, none, one = (request.spec for request in scalars.requests)
    assert said == default
    assert default.token_index == -1
    assert default.top_and_bottom_count == 5
    assert [names.GROUP_IDS.name(each.group_id) for each in default.groups] == ["write_norm"]
    assert not default.HasField("sum_dimensions")
    assert none.HasField("sum_dimensions")
    assert list(none.sum_dimensions.dimensions) == []
    assert list(one.sum_dimensions.dimensions) == [names.DIMENSIONS.value("sequence_tokens")]


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"dstListByGroupId": {}}, 400, "dstListByGroupId"),
        ({"dstListByGroupId": {"write_norm": []}}, 400, "dstListByGroupId.write_norm"),
        ({"dstListByGroupId": {"nope": ["logits"]}}, 422, "dstListByGroupId"),
        ({"topAndBottomK": 0}, 400, "topAndBottomK"),
        ({"topAndBottomK": 2**40}, 400, "topAndBottomK"),
        ({"tokenIndex": 1.5}, 400, "tokenIndex"),
    ],
)
async def test_bad_top_nodes_name_the_field(
    client: httpx.AsyncClient, changes: dict[str, Any], status: int, field: str
) -> None:
    spec = {"dstListByGroupId": {"singleton": ["logits"]}} | changes
    body = {"inferenceRequestSpec": PROMPT, "multipleTopKDerivedScalarsRequestSpec": spec}
    answer = await client.post("/multiple_top_k_derived_scalars", json=body)
    assert answer.status_code == status, answer.text
    path = f"multipleTopKDerivedScalarsRequestSpec.{field}"
    assert answer.json()["field"].startswith(path)


async def test_the_models_autoencoders_are_told_by_kind(client: httpx.AsyncClient) -> None:
    assert (await client.post("/model_info")).json() == {
        "modelName": "tiny",
        "hasMlpAutoencoder": False,
        "mlpAutoencoderName": None,
        "hasAttentionAutoencoder": True,
        "attentionAutoencoderName": "attention-ae",
        "nLayers": 4,
    }


@pytest.mark.parametrize("route", ["/model_info", "/derived_scalars"])
async def test_without_a_model_it_is_503_that_says_so(route: str) -> None:
    async with gateway_to() as client:
        answer = await client.post(route, json=derive())
        assert answer.status_code == 503
        assert answer.json()["reason"] == "MODEL_NOT_CONFIGURED"
