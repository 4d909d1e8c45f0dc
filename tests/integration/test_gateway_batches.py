"""Batches over HTTP, on services that note their calls."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from google.protobuf import text_format

from neuropil.scalars import v1
from shared import errors
from tests.integration.gateway_inference import PROMPT, SPEC, Records, Scalars
from tests.integration.gateway_running import gateway_to

TOP = {"dstListByGroupId": {"write_norm": ["mlp_write_norm"]}, "topAndBottomK": 2}
SCORED = {
    "tokenScoringType": "input_tokens_that_upvote_mlp",
    "numTokens": 3,
    "dependsOnSpecName": "top",
}
ATTRIBUTED = {"numTokensAttendedTo": 2, "dependsOnSpecName": "top"}
BY_TOKEN_PAIR = {"specType": "derived_attention_scalars_request_spec"} | SPEC
PLACE = "inferenceSubRequests[0].processingRequestSpecByName"


@pytest.fixture
def scalars() -> Scalars:
    return Scalars()


@pytest.fixture
async def client(scalars: Scalars) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway_to(records=Records(), scalars=scalars) as connected:
        yield connected


def batch(*specs: dict[str, Any], **inference: Any) -> dict[str, Any]:
    """A sub-request a dictionary of specs."""
    return {
        "inferenceSubRequests": [
            {"inferenceRequestSpec": PROMPT | inference, "processingRequestSpecByName": each}
            for each in specs
        ]
    }


async def data_by_name(client: httpx.AsyncClient, **specs: Any) -> Any:
    answer = await client.post("/batched", json=batch(specs))
    assert answer.status_code == 200, answer.text
    (sub_response,) = answer.json()["inferenceSubResponses"]
    return sub_response["processingResponseDataByName"]


async def test_specs_of_every_kind_are_told_apart_by_their_shape(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    kinds = {"top": TOP, "scored": SCORED, "attributed": ATTRIBUTED, "component": SPEC}
    data = await data_by_name(client, **kinds)
    expected = text_format.Parse(
        """
        inferences {
          inference { prompt: "The cat" }
          specs {
            name: "top"
            top_nodes {
              groups {
                group_id: GROUP_ID_WRITE_NORM
                derived_scalar_types: DERIVED_SCALAR_TYPE_MLP_WRITE_NORM
              }
              top_and_bottom_count: 2 pass_type: PASS_TYPE_FORWARD
            }
          }
          specs {
            name: "scored"
            scored_tokens {
              scoring: TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_MLP token_count: 3 depends_on: "top"
            }
          }
          specs {
            name: "attributed"
            token_pair_attribution { attended_to_token_count: 2 depends_on: "top" }
          }
          specs {
            name: "component"
            component {
              component {
                derived_scalar_type: DERIVED_SCALAR_TYPE_MLP_POST_ACT
                layer_index: 1 component_index: 3
              }
              pass_type: PASS_TYPE_FORWARD
            }
          }
        }
        """,
        v1.BatchDeriveRequest(),
    )
    assert scalars.requests == [expected]
    assert {name: each["responseDataType"] for name, each in data.items()} == {
        "top": "multiple_top_k_derived_scalars_response_data",
        "scored": "scored_tokens_response_data",
        "attributed": "token_pair_attribution_response_data",
        "component": "derived_scalars_response_data",
    }
    # Clients compare the lists as they are.
    assert data["scored"]["nodeIndices"] == data["top"]["nodeIndices"]
    assert data["attributed"]["nodeIndices"] == data["top"]["nodeIndices"]
    assert data["scored"]["topTokensList"] == [
        {
            "top": [{"token": "x", "scalar": 2.0, "normalizedScalar": 1.0}],
            "bottom": [{"token": "y", "scalar": -1.0, "normalizedScalar": -0.5}],
        },
        None,
    ]
    assert data["attributed"]["topTokensAttendedToList"] == [
        None,
        {"tokenIndices": [1, 0], "attributions": [0.5, 0.25]},
    ]


async def test_specs_of_every_kind_may_say_what_they_are(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    kinds = {"top": TOP, "scored": SCORED, "attributed": ATTRIBUTED, "component": SPEC}
    await data_by_name(client, **kinds)
    types = {
        "top": "multiple_top_k_derived_scalars_request_spec",
        "scored": "scored_tokens_request_spec",
        "attributed": "token_pair_attribution_request_spec",
        "component": "derived_scalars_request_spec",
    }
    await data_by_name(
        client, **{name: spec | {"specType": types[name]} for name, spec in kinds.items()}
    )
    await data_by_name(client, **{name: spec | {"specType": None} for name, spec in kinds.items()})
    snake = {
        "inference_sub_requests": [
            {
                "inference_request_spec": PROMPT,
                "processing_request_spec_by_name": {
                    "top": {
                        "dst_list_by_group_id": TOP["dstListByGroupId"],
                        "top_and_bottom_k": 2,
                    },
                    "scored": {
                        "token_scoring_type": "input_tokens_that_upvote_mlp",
                        "num_tokens": 3,
                        "depends_on_spec_name": "top",
                    },
                    "attributed": {"num_tokens_attended_to": 2, "depends_on_spec_name": "top"},
                    "component": {
                        "spec_type": "derived_scalars_request_spec",
                        "dst": "mlp_post_act",
                        "layer_index": 1,
                        "activation_index": 3,
                    },
                },
            }
        ]
    }
    assert (await client.post("/batched", json=snake)).status_code == 200
    assert len(scalars.requests) == 4
    assert all(request == scalars.requests[0] for request in scalars.requests)


async def test_scalars_by_token_pair_need_their_type(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    data = await data_by_name(client, pairs=BY_TOKEN_PAIR)
    (request,) = scalars.requests
    assert request.inferences[0].specs[0].HasField("component_by_token_pair")
    rows = data["pairs"]["tokenAndAttentionScalarsList"]
    assert [row["scalars"] for row in rows] == [[1.0], [2.0, 3.0]]

    scalars.failure = errors.InvalidArgument(
        "it has the dimensions of token pairs",
        field="inferences[0].specs[0].component.component.derived_scalar_type",
    )
    untyped = SPEC | {"dst": "unflattened_attn_write_norm"}
    answer = await client.post("/batched", json=batch({"pairs": untyped}))
    assert answer.status_code == 400
    assert answer.json()["field"] == f"{PLACE}.pairs.specType"
    assert "derived_attention_scalars_request_spec" in answer.json()["message"]
    for spec in (SPEC, untyped | {"specType": "derived_scalars_request_spec"}):
        answer = await client.post("/batched", json=batch({"pairs": spec}))
        assert (answer.status_code, answer.json()["field"]) == (400, f"{PLACE}.pairs.dst")


async def test_scalars_are_normalised_by_the_records_that_their_specs_name(
    client: httpx.AsyncClient,
) -> None:
    record = {"dst": "mlp_post_act", "layerIndex": 0, "activationIndex": 0, "datasets": ["demo"]}
    normalized = {"normalizeActivationsUsingNeuronRecord": record}
    data = await data_by_name(
        client,
        plain=SPEC,
        normalized=SPEC | normalized,
        pairs=BY_TOKEN_PAIR,
        normalized_pairs=BY_TOKEN_PAIR | normalized,
    )
    assert data["plain"]["normalizedActivations"] is None
    assert data["normalized"]["normalizedActivations"] == [0.0, 0.5]
    pairs, normalized_pairs = (
        [row["normalizedScalars"] for row in data[name]["tokenAndAttentionScalarsList"]]
        for name in ("pairs", "normalized_pairs")
    )
    assert pairs == [[0.25], [0.5, 1.0]]
    assert normalized_pairs[0] == pytest.approx([1 / 6], rel=1e-5)
    assert normalized_pairs[1] == pytest.approx([2 / 6, 3 / 6], rel=1e-5)
    missing = SPEC | {"normalizeActivationsUsingNeuronRecord": record | {"activationIndex": 9}}
    answer = await client.post("/batched", json=batch({"a": SPEC}, {"b": missing}))
    assert answer.status_code == 404
    refused = SPEC | {"normalizeActivationsUsingNeuronRecord": record | {"activationIndex": 8}}
    answer = await client.post("/batched", json=batch({"a": SPEC}, {"b": refused}))
    assert answer.status_code == 400
    place = "inferenceSubRequests[1].processingRequestSpecByName.b"
    field = f"{place}.normalizeActivationsUsingNeuronRecord.layerIndex"
    assert answer.json()["field"] == field


async def test_sub_requests_are_answered_in_order_and_may_derive_nothing(
    client: httpx.AsyncClient, scalars: Scalars
) -> None:
    body = batch({"a": SPEC, "b": TOP}, {"c": SPEC})
    body["inferenceSubRequests"].append({"inferenceRequestSpec": PROMPT})
    answer = await client.post("/batched", json=body)
    assert answer.status_code == 200, answer.text
    parts = answer.json()["inferenceSubResponses"]
    assert [list(each["processingResponseDataByName"]) for each in parts] == [["a", "b"], ["c"], []]
    for each in parts:
        run = each["inferenceResponse"]["inferenceAndTokenData"]
        assert run["tokensAsStrings"] == ["The", " cat"]
    (request,) = scalars.requests
    assert not request.inferences[2].specs


async def test_nodes_at_the_last_token_are_named_as_every_client_names_them(
    client: httpx.AsyncClient,
) -> None:
    at_last = TOP | {"tokenIndex": -1}
    answer = await client.post("/batched", json=batch({"top": at_last}, {"top": at_last}))
    for part in answer.json()["inferenceSubResponses"]:
        nodes = part["processingResponseDataByName"]["top"]["nodeIndices"]
        # The prompt has two tokens, so that 1 is the last.
        assert [node["tensorIndices"] for node in nodes] == [[0, 3], [-1, 0, 2]]


@pytest.mark.parametrize(
    ("sent", "status", "field"),
    [
        ({"inferenceSubRequests": []}, 400, "inferenceSubRequests"),
        ({"inferenceSubRequests": [{}] * 101}, 400, "inferenceSubRequests"),
        ({"inferenceSubRequests": None}, 422, "inferenceSubRequests"),
        ({}, 422, "inferenceSubRequests"),
        (batch({"\ud800": SPEC}), 400, f"{PLACE}.\ufffd\ufffd\ufffd.[key]"),
        (batch({"a": TOP} | {str(n): TOP for n in range(100)}), 400, PLACE),
        (batch({"a": 3}), 422, f"{PLACE}.a"),
        (batch({"a": {}}), 422, f"{PLACE}.a"),
        (batch({"a": []}), 422, f"{PLACE}.a"),
        (batch({"a": SPEC | {"specType": "tdb_request_spec"}}), 422, f"{PLACE}.a.specType"),
        (batch({"a": SPEC | {"specType": ["x"]}}), 422, f"{PLACE}.a.specType"),
        (batch({"a": SPEC | {"dst": "nope"}}), 422, f"{PLACE}.a.dst"),
        (batch({"a": SPEC | {"layerIndex": -1}}), 400, f"{PLACE}.a.layerIndex"),
        (batch({"a": SPEC | {"activationIndex": 2**80}}), 400, f"{PLACE}.a.activationIndex"),
        (batch({"a": SPEC | {"numTopTokens": 10_001}}), 400, f"{PLACE}.a.numTopTokens"),
        (
            batch({"a": BY_TOKEN_PAIR | {"activationIndex": None}}),
            422,
            f"{PLACE}.a.activationIndex",
        ),
        (batch({"a": SCORED | {"numTokens": 0}}), 400, f"{PLACE}.a.numTokens"),
        (batch({"a": SCORED | {"numTokens": "many"}}), 422, f"{PLACE}.a.numTokens"),
        (batch({"a": SCORED | {"tokenScoringType": "x"}}), 422, f"{PLACE}.a.tokenScoringType"),
        (batch({"a": SCORED | {"dependsOnSpecName": ""}}), 400, f"{PLACE}.a.dependsOnSpecName"),
        (batch({"a": SCORED | {"dependsOnSpecName": 1}}), 422, f"{PLACE}.a.dependsOnSpecName"),
        (
            batch({"a": SCORED | {"dependsOnSpecName": "\ud800"}}),
            400,
            f"{PLACE}.a.dependsOnSpecName",
        ),
        (
            batch({"a": ATTRIBUTED | {"numTokensAttendedTo": -1}}),
            400,
            f"{PLACE}.a.numTokensAttendedTo",
        ),
        (
            batch({"a": ATTRIBUTED | {"numTokensAttendedTo": None}}),
            422,
            f"{PLACE}.a.numTokensAttendedTo",
        ),
        (batch({"a": TOP | {"topAndBottomK": 0}}), 400, f"{PLACE}.a.topAndBottomK"),
        (batch({"a": TOP | {"dstListByGroupId": {}}}), 400, f"{PLACE}.a.dstListByGroupId"),
        (
            batch({"a": TOP | {"dstListByGroupId": {"write_norm": []}}}),
            400,
            f"{PLACE}.a.dstListByGroupId.write_norm",
        ),
        (batch({"a": SPEC}, prompt=""), 400, "inferenceSubRequests[0].inferenceRequestSpec.prompt"),
        (
            batch({"a": SPEC}, lossFnConfig={"name": "x"}),
            422,
            "inferenceSubRequests[0].inferenceRequestSpec.lossFnConfig.name",
        ),
    ],
)
async def test_bad_batches_name_the_field(
    client: httpx.AsyncClient, scalars: Scalars, sent: dict[str, Any], status: int, field: str
) -> None:
    answer = await client.post(
        "/batched",
        # Unlike httpx's own, it writes what is no text.
        content=json.dumps(sent).encode(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == status, answer.text
    assert answer.json()["field"] == field
    assert ("detail" in answer.json()) == (status == 422)
    assert scalars.requests == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("inferences", "inferenceSubRequests"),
        ("inferences[1]", "inferenceSubRequests[1]"),
        (
            "inferences[1].inference.loss",
            "inferenceSubRequests[1].inferenceRequestSpec.lossFnConfig",
        ),
        (
            "inferences[1].inference.ablations[0].index.tensor_indices[1].index",
            "inferenceSubRequests[1].inferenceRequestSpec.ablationSpecs[0].index.tensorIndices[1]",
        ),
        ("inferences[1].specs", "inferenceSubRequests[1].specs"),
        (
            "inferences[0].specs[1].top_nodes.groups[0].derived_scalar_types[0]",
            f"{PLACE}.top.dstListByGroupId.write_norm[0]",
        ),
        ("inferences[0].specs[0].component.pass_type", f"{PLACE}.a.passType"),
        ("inferences[0].specs[0].name", f"{PLACE}.a"),
        ("inferences[0].specs[2].scored_tokens.depends_on", f"{PLACE}.scored.dependsOnSpecName"),
    ],
)
async def test_failures_of_the_model_name_the_field(
    client: httpx.AsyncClient, scalars: Scalars, path: str, expected: str
) -> None:
    scalars.failure = errors.InvalidArgument(f"{path}: no", field=path)
    body = batch({"a": SPEC, "top": TOP, "scored": SCORED}, {"b": SPEC})
    answer = await client.post("/batched", json=body)
    assert answer.status_code == 400
    assert answer.json()["field"] == expected
    assert answer.json()["message"] == f"{expected}: no"


@pytest.mark.parametrize("route", ["/batched", "/batched_tdb"])
async def test_without_a_model_it_is_503_that_says_so(route: str) -> None:
    async with gateway_to() as client:
        sent = batch({"a": SPEC}) if route == "/batched" else {"subRequests": []}
        answer = await client.post(route, json=sent)
        assert answer.status_code == 503
        assert answer.json()["reason"] == "MODEL_NOT_CONFIGURED"
