"""The reference's answers about a model, over HTTP from the real services, on its three set-ups."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.records.app import record_services
from services.scalars.app import scalar_services
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Services, load_deployment
from tests.golden.reference_answers import differences, expected_answer, request_body
from tests.integration.gateway_running import gateway

pytestmark = pytest.mark.golden

# How many answers of status 200 the reference gives on each.
SET_UPS = {"plain": 52, "ae_post_act": 12, "ae_both": 13}

_RUN = "inferenceRequestSpec"
_SPEC = "derivedScalarsRequestSpec"
_RECORD = f"{_SPEC}.normalizeActivationsUsingNeuronRecord"
_TOP = "multipleTopKDerivedScalarsRequestSpec"
_SUB = "inferenceSubRequests[0]"
REFUSED = {
    "plain/ds_backward_no_loss": (400, f"{_RUN}.lossFnConfig"),
    "plain/ds_normalized_404": (404, ""),
    "plain/ds_lossfn_logit_diff_1_0": (400, f"{_RUN}.lossFnConfig.targetTokens[0]"),
    "plain/ds_lossfn_logit_diff_0_0": (400, f"{_RUN}.lossFnConfig.targetTokens"),
    "plain/ds_lossfn_logit_minus_mean_2_1": (400, f"{_RUN}.lossFnConfig.distractorTokens"),
    "plain/ds_lossfn_nope_0_0": (422, f"{_RUN}.lossFnConfig.name"),
    "plain/ds_ablate_bad_rank": (400, f"{_RUN}.ablationSpecs[0].index.tensorIndices"),
    "plain/ds_bad_layer": (400, f"{_SPEC}.layerIndex"),
    "plain/ds_bad_index": (400, f"{_SPEC}.activationIndex"),
    "plain/ds_none_layer": (400, f"{_SPEC}.layerIndex"),
    "plain/ds_too_long": (400, f"{_RUN}.prompt"),
    "plain/ds_empty_prompt": (400, f"{_RUN}.prompt"),
    "plain/ds_bad_dst_ndim": (400, f"{_SPEC}.dst"),
    "plain/ds_ae_without_ae": (400, f"{_SPEC}.dst"),
    "plain/mtk_mismatched_node_types": (400, f"{_TOP}.dstListByGroupId.act_times_grad"),
    "plain/mtk_bad_group": (422, f"{_TOP}.dstListByGroupId.nope.[key]"),
    "plain/mtk_prompt_too_long": (400, f"{_RUN}.prompt"),
    "plain/batched_topk_diff_lengths": (400, "inferenceSubRequests[1].inferenceRequestSpec.prompt"),
    "plain/batched_empty": (400, "inferenceSubRequests"),
    "plain/batched_dep_missing": (
        400,
        f"{_SUB}.processingRequestSpecByName.up.dependsOnSpecName",
    ),
    "plain/batched_attention_spec_misparsed": (
        400,
        f"{_SUB}.processingRequestSpecByName.c.specType",
    ),
    "plain/tdb_no_target": (400, "subRequests[0].targetTokens"),
    "plain/tdb_multi_token_target": (400, "subRequests[0].targetTokens[0]"),
    "plain/tdb_trace_down_without_V": (400, "subRequests[0].downstreamNodeToTrace"),
    "plain/tdb_down_only": (400, "subRequests[0].downstreamNodeToTrace"),
    "plain/tdb_ae_without_ae": (400, "subRequests[0].componentTypeForMlp"),
    "plain/tdb_two_lengths": (400, "subRequests[1].prompt"),
    "ae_both/ds_generic_latent": (400, f"{_SPEC}.dst"),
    "ae_both/ds_generic_offline": (400, f"{_SPEC}.dst"),
    "ae_both/tdb_trace_generic_latent": (
        400,
        "subRequests[0].upstreamNodeToTrace.nodeIndex.nodeType",
    ),
}
"""What both refuse: Neuropil's status, and the field that it names."""

ANSWERED = {
    # Any type that is by token pair, not two of them alone.
    "plain/da_bad_dst": None,
    # The same with `specType`, which the reference refuses, and its name for both autoencoders.
    "plain/batched_with_spec_type": "plain/batched_no_spec_type",
    "plain/tdb_with_spec_type": None,
    "ae_both/da_latent_typed": "ae_both/da_latent",
    # With the bias of the MLP's output, as online.
    "ae_both/ds_offline_latent": "ae_both/ds_online_latent",
}
"""What Neuropil alone answers, or otherwise: the case whose answer it is, if there is one."""


@pytest.fixture(scope="module")
def document(golden: Path) -> dict[str, Any]:
    text = gzip.decompress((golden / "endpoints" / "cases.json.gz").read_bytes())
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@asynccontextmanager
async def serving(configuration: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway of a deployment, and of the services behind it."""
    deployment = load_deployment(configuration)
    async with record_services(deployment) as records, scalar_services(deployment) as scalars:
        reading = await start_server(records, ServerOptions("records"))
        deriving = await start_server(scalars, ServerOptions("scalars"))
        found = Services(records=f"127.0.0.1:{reading.port}", scalars=f"127.0.0.1:{deriving.port}")
        async with gateway(deployment.model_copy(update={"services": found})) as connected:
            yield connected
        await deriving.drain(1)
        await reading.drain(1)


def wrong_with(answer: httpx.Response, case: dict[str, Any], expected: Any) -> str:
    """What is wrong with the answer to a case; empty if nothing is."""
    name = case["name"]
    if name in REFUSED:
        said = (answer.status_code, answer.json().get("field"))
        return "" if said == REFUSED[name] else f"{said} {answer.json().get('message')}"
    if answer.status_code != 200:
        return f"status {answer.status_code} {answer.text[:200]}"
    if name in ANSWERED and expected is None:
        return ""
    return "; ".join(differences(answer.json(), expected)[:1])


@pytest.mark.parametrize("set_up", SET_UPS)
async def test_every_answer_is_the_references(
    golden: Path, document: dict[str, Any], set_up: str
) -> None:
    replacements = {"{READ}": str(golden / "read")}
    by_name = {case["name"]: case for case in document["cases"]}
    agreeing, wrong = 0, []
    async with serving(golden / "deployments" / f"{set_up}.yaml") as client:
        for case in document["cases"]:
            if case["server"] != set_up:
                continue
            answer = await client.request(
                case["method"],
                case["route"],
                content=request_body(case, replacements),
                headers={"content-type": "application/json"},
            )
            like = ANSWERED.get(case["name"], case["name"])
            expected = None
            if like is not None and by_name[like]["status"] == 200:
                expected = expected_answer(by_name[like], golden, replacements)
            found = wrong_with(answer, case, expected)
            wrong += [f"{case['name']}: {found}"] if found else []
            agreeing += case["status"] == 200 and not found
    assert wrong == []
    assert agreeing == SET_UPS[set_up]


async def test_layers_before_the_first_ablated_one_can_be_hidden(
    golden: Path, document: dict[str, Any]
) -> None:
    (case,) = (each for each in document["cases"] if each["name"] == "plain/tdb_ablate")
    shown = json.loads(json.dumps(case["request"]))
    for ablation in shown["subRequests"][1]["nodeAblations"]:
        ablation["nodeIndex"]["layerIndex"] += 2
    hidden = json.loads(json.dumps(shown))
    for sub_request in hidden["subRequests"]:
        sub_request["hideEarlyLayersWhenAblating"] = True
    async with serving(golden / "deployments" / "plain.yaml") as client:
        everything = (await client.post("/batched_tdb", json=shown)).json()
        answer = await client.post("/batched_tdb", json=hidden)
    assert answer.status_code == 200, answer.text
    parts, wholes = (
        [each["processingResponseDataByName"] for each in body["inferenceSubResponses"]]
        for body in (answer.json(), everything)
    )
    first, second = (each["topKComponents"] for each in parts)
    assert first["nodeIndices"] == second["nodeIndices"]
    assert {each["layerIndex"] for each in first["nodeIndices"]} == {2, 3}
    assert {0, 1} < {each["layerIndex"] for each in wholes[0]["topKComponents"]["nodeIndices"]}
    sums = "intermediateSumActivationsByDstByGroupId"
    for part, whole in zip(parts, wholes, strict=True):
        # What is hidden counts all the same.
        assert part["topKComponents"][sums] == whole["topKComponents"][sums]
        assert len(part["upvotedOutputTokens"]["topTokensList"]) == len(first["nodeIndices"])
        assert part["topOutputTokenLogits"] == whole["topOutputTokenLogits"]
