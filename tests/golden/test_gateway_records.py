"""The reference's answers about records and explanations, over HTTP, from real records."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.gateway.app import create_app
from services.gateway.openapi import describe
from services.records.app import record_services
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Dataset, Deployment, Http, Services
from tests.golden.reference_answers import differences, expected_answer, request_body
from tests.integration.gateway_running import gateway

pytestmark = pytest.mark.golden

# What the reference answers with 200 and Neuropil refuses on purpose.
REFUSED = {
    "neuron_record_18": 502,
    "neuron_record_on_attn_file": 400,
    "neuron_record_float_index": 400,
}
# What the reference refuses or fails at, and the status that is right for it.
STATUSES = {
    # Not finite, or without sequences: answered as it is.
    **dict.fromkeys((f"neuron_record_{n}" for n in (5, 6, 7, 13, 15, 16, 20, 24, 27)), 200),
    **dict.fromkeys((f"neuron_record_{n}" for n in (17, 22, 26)), 502),
    "neuron_record_missing": 404,
    "neuron_record_missing_two": 404,
    "neuron_record_no_datasets": 400,
    "neuron_record_unknown_dataset": 404,
    "neuron_record_undefined": 404,
    "neuron_record_unknown_then_known": 200,
    "neuron_record_wrong_dst": 400,
    "neuron_record_bad_dst": 422,
    "neuron_record_missing_field": 422,
    "neuron_record_negative_index": 400,
    "neuron_record_get": 405,
    "neuron_record_local_path": 200,
    "cors_404": 404,
    "cors_other": 404,
    # Capped token pairs, an empty sequence, values that are not finite.
    **dict.fromkeys((f"attention_head_record_{n}" for n in (2, 3, 8, 10, 11, 12)), 200),
    **dict.fromkeys((f"attention_head_record_{n}" for n in (6, 7)), 502),
    "attention_head_record_missing": 404,
    "attention_head_record_on_mlp_file": 400,
    # Old names without a class name, and a score that is not finite.
    **dict.fromkeys((f"existing_explanations_{n}" for n in (3, 9)), 200),
    **dict.fromkeys((f"existing_explanations_{n}" for n in (7, 8, 12)), 502),
    "existing_explanations_neither": 400,
    "existing_explanations_both": 400,
    "existing_explanations_unknown_neuron_dataset": 404,
    "existing_explanations_no_list_key": 422,
    "existing_explanations_one_bad": 502,
    "unknown_route": 404,
    "model_info_no_model": 503,
    "derived_scalars_no_model": 503,
    "malformed_body": 422,
}
# Routes for its own developers, which Neuropil has not.
NOT_SERVED = {"force_client_code", "dump_memory_snapshot"}


@pytest.fixture(scope="module")
def read(golden: Path) -> Path:
    return golden / "read"


@pytest.fixture(scope="module")
def cases(read: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((read / "cases.json").read_text())
    return document


def datasets_of(read: Path, registry: list[dict[str, str]]) -> tuple[Dataset, ...]:
    found = []
    for row in registry:
        values: dict[str, Any] = {k: v.replace("{ROOT}", str(read)) for k, v in row.items()}
        cached = read / "cached_explanations" / row["short_name"]
        if cached.is_dir() and row["derived_scalar_type"] == "mlp_post_act":
            values["cached_explanations_path"] = str(cached)
        found.append(Dataset(**values))
    return tuple(found)


@pytest.fixture
async def client(read: Path, cases: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    deployment = Deployment(
        datasets=datasets_of(read, cases["registry"]), allowed_path_prefixes=(str(read),)
    )
    async with record_services(deployment) as services:
        running = await start_server(services, ServerOptions("records"))
        found = Services(records=f"127.0.0.1:{running.port}")
        async with gateway(deployment.model_copy(update={"services": found})) as connected:
            yield connected
        await running.drain(1)


async def answer_of(client: httpx.AsyncClient, case: dict[str, Any], read: Path) -> httpx.Response:
    content = request_body(case, {"{ROOT}": str(read)}) if case["method"] == "POST" else None
    headers = {"content-type": "application/json", **case.get("request_headers", {})}
    return await client.request(case["method"], case["route"], content=content, headers=headers)


async def test_every_answer_is_the_references(
    client: httpx.AsyncClient, read: Path, cases: dict[str, Any]
) -> None:
    compared = 0
    wrong = []
    for case in cases["cases"]:
        if case["status"] != 200 or case["name"] in NOT_SERVED:
            continue
        compared += 1
        answer = await answer_of(client, case, read)
        if case["name"] in REFUSED:
            if answer.status_code != REFUSED[case["name"]]:
                wrong.append(f"{case['name']}: status {answer.status_code}")
            continue
        expected = expected_answer(case, read, {"{ROOT}": str(read)})
        found = (
            differences(answer.json(), expected)
            if answer.status_code == 200
            else [f"status {answer.status_code}"]
        )
        wrong += [f"{case['name']}: {line}" for line in found[:1]]
    assert compared == 50
    assert wrong == []


async def test_every_refusal_has_the_right_status_and_a_whole_body(
    client: httpx.AsyncClient, read: Path, cases: dict[str, Any]
) -> None:
    failing = {case["name"]: case for case in cases["cases"] if case["status"] != 200}
    assert failing.keys() - NOT_SERVED == STATUSES.keys()
    for name, status in STATUSES.items():
        answer = await answer_of(client, failing[name], read)
        assert answer.status_code == status, f"{name}: {answer.text[:200]}"
        if status != 200:
            body = answer.json()
            assert {"message", "code", "reason", "field"} <= body.keys(), name
            assert body["message"]
            assert "Traceback" not in answer.text
            assert ("detail" in body) is (status == 422), name


async def test_answers_carry_the_references_cors_headers(
    client: httpx.AsyncClient, read: Path, cases: dict[str, Any]
) -> None:
    seen = 0
    for case in cases["cases"]:
        if "response_headers" not in case:
            continue
        seen += 1
        answer = await answer_of(client, case, read)
        for name in ("access-control-allow-origin", "access-control-allow-credentials"):
            assert answer.headers.get(name) == case["response_headers"].get(name), case["name"]
    assert seen == 3


async def test_a_second_time_it_is_answered_from_memory_alike(
    client: httpx.AsyncClient, read: Path, cases: dict[str, Any]
) -> None:
    case = next(each for each in cases["cases"] if each["name"] == "attention_head_record_1")
    first = await answer_of(client, case, read)
    assert (await answer_of(client, case, read)).content == first.content


def test_the_openapi_document_describes_what_the_references_describes(read: Path) -> None:
    reference = json.loads((read / "openapi.json").read_text())
    cors: Any = create_app(Deployment(http=Http(answer_cache_megabytes=0)))
    document = describe(cors.app.application.application)
    served = document["paths"].keys() - {"/healthz"}
    assert served == reference["paths"].keys() - {
        "/force_client_code_generation",
        "/dump_memory_snapshot",
    }
    for path in served:
        for method, operation in document["paths"][path].items():
            theirs = reference["paths"][path][method]
            assert operation["operationId"] == theirs["operationId"]
            assert operation["tags"] == theirs["tags"]
            assert _plain(operation.get("requestBody")) == _plain(theirs.get("requestBody"))
            assert _plain(operation["responses"]["200"]) == _plain(theirs["responses"]["200"])
    mine, their_schemas = document["components"]["schemas"], reference["components"]["schemas"]
    assert their_schemas.keys() <= mine.keys()
    for name in mine.keys() & their_schemas.keys() - {"ValidationError"}:
        ours, theirs = _plain(mine[name]), _plain(their_schemas[name])
        assert ours.get("required", []) == theirs.get("required", []), name
        assert set(theirs.get("enum", ())) <= set(ours.get("enum", ())), name
        for field, schema in theirs.get("properties", {}).items():
            assert ours["properties"][field] == schema, f"{name}.{field}"
        # What is ours alone must be optional, or clients made from their document break.
        assert ours.get("properties", {}).keys() - theirs.get("properties", {}).keys() <= {
            "quantileSamples",
            "quantileBoundaries",
            "moments",
            "includeQuantileSamples",
            "includeMoments",
            "excludeBottomK",
        }


def _plain(schema: Any) -> Any:
    """A schema without prose, in one spelling of what can be spelt in two ways."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        key: _plain(value)
        for key, value in schema.items()
        if key not in {"title", "description", "propertyNames", "summary"}
    }
    if len(plain.get("allOf", ())) == 1:
        plain |= plain.pop("allOf")[0]
    if "const" in plain:
        plain["enum"] = [plain.pop("const")]
    for key in ("enum", "required"):
        if isinstance(plain.get(key), list):
            plain[key] = sorted(plain[key])
    return plain
