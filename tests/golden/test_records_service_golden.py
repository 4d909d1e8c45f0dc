"""The reference's pairs on the record routes, asked of the service through a socket.

The answers' numbers are compared in `test_records_reading`; here it is what is answered, and
what is refused with which code.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from neuropil.channel import open_aio_channel
from neuropil.errors import NeuropilError, atranslated
from neuropil.names import DERIVED_SCALAR_TYPES, component_id
from neuropil.records import v1
from services.records.app import record_services
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Dataset, Deployment

pytestmark = pytest.mark.golden

# What Neuropil answers where the reference fails, or answers what it should not.
DIFFERENT = {
    **{f"neuron_record_{index}": "OK" for index in (5, 6, 7, 13, 15, 16, 20, 24, 27)},
    **{f"neuron_record_{index}": "DATA_LOSS" for index in (17, 18, 22, 26)},
    **{f"attention_head_record_{index}": "OK" for index in (2, 3, 8, 10, 11, 12)},
    **{f"attention_head_record_{index}": "DATA_LOSS" for index in (6, 7)},
    **{f"existing_explanations_{index}": "OK" for index in (3, 9)},
    **{f"existing_explanations_{index}": "DATA_LOSS" for index in (7, 8, 12)},
    "neuron_record_no_datasets": "INVALID_ARGUMENT",
    "neuron_record_unknown_dataset": "NOT_FOUND",
    "neuron_record_undefined": "NOT_FOUND",
    "neuron_record_unknown_then_known": "OK",
    "neuron_record_wrong_dst": "INVALID_ARGUMENT",
    "neuron_record_negative_index": "INVALID_ARGUMENT",
    "neuron_record_on_attn_file": "INVALID_ARGUMENT",
    "neuron_record_local_path": "OK",
    "attention_head_record_on_mlp_file": "INVALID_ARGUMENT",
    "existing_explanations_neither": "INVALID_ARGUMENT",
    "existing_explanations_unknown_neuron_dataset": "NOT_FOUND",
    "existing_explanations_one_bad": "DATA_LOSS",
}
# Bodies that no message of the contract can be: the gateway answers them.
OF_THE_GATEWAY = {
    "neuron_record_bad_dst",
    "neuron_record_missing_field",
    "neuron_record_float_index",
    "neuron_record_get",
    "existing_explanations_both",
    "existing_explanations_no_list_key",
    "malformed_body",
}
CODES = {200: "OK", 400: "INVALID_ARGUMENT", 404: "NOT_FOUND"}


@pytest.fixture
def read(golden: Path) -> Path:
    return golden / "read"


@pytest.fixture
def document(read: Path) -> Any:
    return json.loads((read / "cases.json").read_text().replace("{ROOT}", str(read)))


@pytest.fixture
async def stub(read: Path, document: Any) -> AsyncIterator[Any]:
    datasets = []
    for row in document["registry"]:
        cached = read / "cached_explanations" / row["short_name"]
        if cached.is_dir() and row["derived_scalar_type"] == "mlp_post_act":
            row["cached_explanations_path"] = str(cached)
        datasets.append(Dataset(**row))
    deployment = Deployment(datasets=tuple(datasets), allowed_path_prefixes=(str(read),))
    async with record_services(deployment) as services:
        running = await start_server(services, ServerOptions("records"))
        async with open_aio_channel(f"127.0.0.1:{running.port}") as channel:
            yield v1.RecordReaderStub(channel)
        await running.drain(1)


def component_of(request: dict[str, Any]) -> Any:
    return component_id(
        request["dst"],
        int(request.get("layerIndex", request.get("layer_index"))),
        int(request.get("activationIndex", request.get("activation_index"))),
    )


async def ask(stub: Any, case: dict[str, Any]) -> tuple[str, Any]:
    """Code and answer of a case."""
    request = case["request"]
    try:
        async with atranslated():
            if case["route"] == "/neuron_record":
                message = v1.GetTokenRecordRequest(
                    component=component_of(request), datasets=request["datasets"]
                )
                return "OK", await stub.GetTokenRecord(message)
            if case["route"] == "/attention_head_record":
                message = v1.GetTokenPairRecordRequest(
                    component=component_of(request), datasets=request["datasets"]
                )
                return "OK", await stub.GetTokenPairRecord(message)
            message = v1.ListExplanationsRequest(component=component_of(request))
            if request.get("neuronDataset") is not None:
                message.neuron_dataset = request["neuronDataset"]
            else:
                message.explanation_datasets.paths.extend(request["explanationDatasets"])
            return "OK", await stub.ListExplanations(message)
    except NeuropilError as error:
        return error.code, error


def wanted(read: Path, case: dict[str, Any]) -> Any:
    if "response_file" in case:
        text = gzip.decompress((read / case["response_file"]).read_bytes()).decode()
        return json.loads(text.replace("{ROOT}", str(read)))
    return case["response"]


async def test_every_pair(stub: Any, document: Any, read: Path) -> None:
    routes = ("/neuron_record", "/attention_head_record", "/existing_explanations")
    cases = [case for case in document["cases"] if case["route"] in routes]
    asked = 0
    for case in cases:
        if case["name"] in OF_THE_GATEWAY:
            continue
        asked += 1
        code, answer = await ask(stub, case)
        expected = DIFFERENT.get(case["name"]) or CODES[case["status"]]
        assert code == expected, f"{case['name']}: {answer}"
        if case["status"] != 200 or code != "OK":
            continue
        want = wanted(read, case)
        if case["route"] == "/existing_explanations":
            assert not answer.failures
            got = [
                {
                    "explanation": each.text,
                    "score": each.score if each.HasField("score") else None,
                    "datasetName": each.dataset_name,
                }
                for each in answer.explanations
            ]
            assert got == want, case["name"]
        else:
            assert answer.dataset == want["dataset"]
            maximum = want.get("maxActivation", want.get("maxAttentionActivation"))
            assert answer.max_activation == maximum
    assert asked == len(cases) - len(OF_THE_GATEWAY)


async def test_old_names_without_class_names(stub: Any, document: Any) -> None:
    (case,) = (each for each in document["cases"] if each["name"] == "existing_explanations_3")
    _, answer = await ask(stub, case)
    assert [(each.text, each.score) for each in answer.explanations] == [("old style", 0.25)]


async def test_datasets(stub: Any, document: Any) -> None:
    (case,) = (each for each in document["cases"] if each["route"] == "/neuron_datasets_metadata")
    answer = await stub.ListDatasets(v1.ListDatasetsRequest())
    assert [
        {
            "shortName": each.short_name,
            "derivedScalarType": DERIVED_SCALAR_TYPES.name(each.derived_scalar_type),
            "userVisibleName": each.user_visible_name,
            "neuronDatasetPath": each.neuron_dataset_path,
        }
        for each in answer.datasets
    ] == case["response"]
