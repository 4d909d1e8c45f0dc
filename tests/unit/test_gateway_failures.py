"""Failures as HTTP answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from neuropil.errors import NeuropilError
from services.gateway.debugger_paths import DebuggerPath
from services.gateway.errors import from_service_error
from services.gateway.paths import json_path
from services.gateway.requests.debugger import BatchedTdbRequest

SPEC = "derivedScalarsRequestSpec"


@pytest.mark.parametrize(
    ("path", "prefix", "expected"),
    [
        ("component.layer_index", "", "layerIndex"),
        ("component.component_index", "", "activationIndex"),
        ("component.derived_scalar_type", "", "dst"),
        ("datasets[2]", "", "datasets[2]"),
        ("explanation_datasets.paths[1]", "", "explanationDatasets[1]"),
        ("neuron_dataset", "", "neuronDataset"),
        ("recorded_component.component.layer_index", "", "layerIndex"),
        ("recorded_component.datasets", "", "datasets"),
        ("max_sequences", "", "maxSequences"),
        ("spec.component.layer_index", SPEC, f"{SPEC}.layerIndex"),
        ("spec.top_token_count", SPEC, f"{SPEC}.numTopTokens"),
        ("spec.pass_type", SPEC, f"{SPEC}.passType"),
        ("inference.prompt", SPEC, "inferenceRequestSpec.prompt"),
        (
            "inference.ablations[0].index.tensor_indices[1].index",
            SPEC,
            "inferenceRequestSpec.ablationSpecs[0].index.tensorIndices[1]",
        ),
        (
            "inference.ablations[3].index.location_type",
            SPEC,
            "inferenceRequestSpec.ablationSpecs[3].index.activationLocationType",
        ),
        ("inference.ablations[3].value", SPEC, "inferenceRequestSpec.ablationSpecs[3].value"),
        (
            "inference.loss.target_tokens[0]",
            SPEC,
            "inferenceRequestSpec.lossFnConfig.targetTokens[0]",
        ),
        ("inference.loss.kind", SPEC, "inferenceRequestSpec.lossFnConfig.name"),
        (
            "inference.trace.downstream.node_index.node_type",
            SPEC,
            "inferenceRequestSpec.traceConfig.downstreamTraceConfig.nodeIndex.nodeType",
        ),
        ("inference.trace.side", SPEC, "inferenceRequestSpec.traceConfig.preOrPostAct"),
        ("spec.groups[0].derived_scalar_types[1]", "m", "m.dstListByGroupId[0][1]"),
        ("spec.sum_dimensions.dimensions[0]", "m", "m.dimensionsToKeepForIntermediateSum[0]"),
        (
            "components[0].layer_index",
            "a.normalizeActivationsUsingNeuronRecord",
            "a.normalizeActivationsUsingNeuronRecord.layerIndex",
        ),
        ("", "", ""),
    ],
)
def test_fields_are_named_as_clients_write_them(path: str, prefix: str, expected: str) -> None:
    assert json_path(path, prefix) == expected


def test_groups_are_named_as_the_client_named_them() -> None:
    path = "spec.groups[1].derived_scalar_types[0]"
    groups = ["write_norm", "activation"]
    assert json_path(path, "m", groups) == "m.dstListByGroupId.activation[0]"
    assert json_path("spec.groups", "m", groups) == "m.dstListByGroupId"
    assert json_path("spec.groups[2]", "m", groups) == "m.dstListByGroupId[2]"


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        ("INVALID_ARGUMENT", "INVALID_ARGUMENT", 400),
        ("NOT_FOUND", "RECORD_NOT_FOUND", 404),
        ("DATA_LOSS", "CORRUPT_FILE", 502),
        ("RESOURCE_EXHAUSTED", "QUEUE_FULL", 429),
        ("RESOURCE_EXHAUSTED", "REPLY_TOO_LARGE", 413),
        ("RESOURCE_EXHAUSTED", "EXPLANATION_TOO_LONG", 413),
        ("RESOURCE_EXHAUSTED", "TOO_MANY_TOKENS", 413),
        ("RESOURCE_EXHAUSTED", "LANGUAGE_MODEL_QUOTA", 429),
        ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", 429),
        ("UNAVAILABLE", "STORAGE_UNAVAILABLE", 503),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", 504),
        ("UNIMPLEMENTED", "NOT_IMPLEMENTED_YET", 501),
        ("FAILED_PRECONDITION", "MODEL_NOT_CONFIGURED", 503),
        ("FAILED_PRECONDITION", "STORAGE_ACCESS_DENIED", 503),
        ("FAILED_PRECONDITION", "FAILED_PRECONDITION", 400),
    ],
)
def test_every_code_has_its_status(code: str, reason: str, status: int) -> None:
    answer = from_service_error(NeuropilError(code, "a sentence", reason=reason), "records")
    assert answer is not None
    assert answer.status == status
    assert answer.body == {"message": "a sentence", "code": code, "reason": reason, "field": ""}


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "CANCELLED"])
def test_a_defect_of_a_service_is_not_passed_on(code: str) -> None:
    assert from_service_error(NeuropilError(code, "a secret"), "records") is None


@pytest.mark.parametrize(
    ("code", "message", "status", "reason"),
    [
        ("UNAVAILABLE", "ipv4:10.0.0.1:50051: refused", 503, "SERVICE_UNAVAILABLE"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", 504, "DEADLINE_EXCEEDED"),
        (
            "RESOURCE_EXHAUSTED",
            "Received message larger than max (9 vs. 4)",
            413,
            "REPLY_TOO_LARGE",
        ),
        ("RESOURCE_EXHAUSTED", "at 10.0.0.1", 429, "RESOURCE_EXHAUSTED"),
        ("UNIMPLEMENTED", "Method not found at 10.0.0.1", 501, "UNIMPLEMENTED"),
    ],
)
def test_the_transports_own_text_is_not_shown(
    code: str, message: str, status: int, reason: str
) -> None:
    answer = from_service_error(NeuropilError(code, message), "records")
    assert answer is not None
    assert (answer.status, answer.body["reason"]) == (status, reason)
    assert message not in answer.body["message"]
    assert "10.0.0.1" not in json.dumps(answer.body)
    assert "records" in answer.body["message"]


def body_of(**details: Any) -> dict[str, Any]:
    error = NeuropilError("INVALID_ARGUMENT", details.pop("message", "m"), reason="R", **details)
    answer = from_service_error(error, "records")
    assert answer is not None
    return answer.body


def test_the_message_names_the_field_as_the_client_wrote_it() -> None:
    body = body_of(message="component.layer_index: must be below 4", field="component.layer_index")
    assert body["message"] == "layerIndex: must be below 4"
    assert body["field"] == "layerIndex"


def test_the_message_names_another_prompt_as_the_client_wrote_it() -> None:
    prompt = {
        "prompt": "a",
        "targetTokens": [],
        "distractorTokens": [],
        "componentTypeForMlp": "neuron",
        "componentTypeForAttention": "attention_head",
        "topAndBottomKForNodeTable": 1,
        "hideEarlyLayersWhenAblating": False,
    }
    body = BatchedTdbRequest.model_validate({"subRequests": [prompt, prompt]})
    error = NeuropilError(
        "INVALID_ARGUMENT",
        "this one has 1 tokens, inferences[0].inference.prompt has 5",
        reason="PROMPT_LENGTHS_DIFFER",
        field="inferences[1].inference.prompt",
    )
    answer = from_service_error(error, "scalars", DebuggerPath(body))
    assert answer is not None
    assert answer.body["message"] == "this one has 1 tokens, subRequests[0].prompt has 5"
    assert answer.body["field"] == "subRequests[1].prompt"


def test_facts_stand_beside_the_message_and_can_not_replace_it() -> None:
    body = body_of(metadata={"file": "0.json", "max_bytes": "7", "message": "another"})
    assert (body["file"], body["maxBytes"], body["message"]) == ("0.json", "7", "m")


def test_the_field_of_a_corrupt_file_is_shown() -> None:
    assert body_of(metadata={"field": "neuron_id"})["field"] == "neuron_id"
    both = body_of(metadata={"field": "tokens"}, field="datasets[0]")
    assert both["field"] == "datasets[0]"


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.5, "2"), (3.0, "3")])
def test_when_to_try_again_is_in_header_and_body(seconds: float, header: str) -> None:
    error = NeuropilError(
        "RESOURCE_EXHAUSTED", "full", reason="QUEUE_FULL", retry_after_seconds=seconds
    )
    answer = from_service_error(error, "records")
    assert answer is not None
    assert answer.headers == {"Retry-After": header}
    assert answer.body["retryAfterSeconds"] == seconds
    assert answer.response().headers["retry-after"] == header
