"""Every row of docs/errors.md, through the client, against real services."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import neuropil
from neuropil.records import v1 as records
from shared.errors import Aborted, FailedPrecondition, Unimplemented
from shared.rpc.interceptors.errors import INTERNAL_TEXT
from shared.rpc.server import RpcService, ServerOptions, start_server
from tests.emulators.azurite import Azurite
from tests.load.processes import REPOSITORY, server

RECORD = (
    '{"dataclass_name": "NeuronRecord", "neuron_id": {"dataclass_name": "NeuronId",'
    ' "neuron_index": 0, "layer_index": 0}, "most_positive_activation_records":'
    ' [{"dataclass_name": "ActivationRecord", "tokens": ["a"], "activations": [1.0]}]}'
)

SHOWN: set[str] = set()
"""Codes that the tests of this module have shown."""


def shown(error: neuropil.NeuropilError) -> neuropil.NeuropilError:
    SHOWN.add(error.code)
    return error


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment")
    layer = folder / "records" / "0"
    layer.mkdir(parents=True)
    (layer / "0.json").write_text(RECORD)
    (layer / "1.json").write_text(RECORD[:100])
    (layer / "2.json").write_text(RECORD.replace("[1.0]", '["one"]'))
    tokens = ", ".join(['"' + "x" * 1000 + '"'] * 1500)
    values = ", ".join(["1.0"] * 1500)
    (layer / "3.json").write_text(RECORD.replace('["a"]', f"[{tokens}]").replace("1.0", values))
    dataset = {
        "short_name": "demo",
        "derived_scalar_type": "mlp_post_act",
        "user_visible_name": "Demo",
        "neuron_dataset_path": "records",
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump({"datasets": [dataset], "limits": {"message_megabytes": 1}}))
    return path


@pytest.fixture(scope="module")
def client(deployment: Path) -> Iterator[neuropil.Client]:
    arguments = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
    with (
        server("services.records", *arguments) as (address, _),
        neuropil.connect(records=address, scalars="127.0.0.1:1", timeout=20) as connected,
    ):
        yield connected


def failure(client: neuropil.Client, index: int, dataset: str = "demo") -> neuropil.NeuropilError:
    with pytest.raises(neuropil.NeuropilError) as caught:
        client.records.token_record("mlp_post_act", 0, index, [dataset])
    return shown(caught.value)


def storage_failure(place: Path, path: str, variables: dict[str, str]) -> neuropil.NeuropilError:
    """How a record of a dataset on a blob store fails."""
    dataset = {
        "short_name": "far",
        "derived_scalar_type": "mlp_post_act",
        "user_visible_name": "Far",
        "neuron_dataset_path": path,
    }
    (place / "deployment.yaml").write_text(yaml.safe_dump({"datasets": [dataset]}))
    arguments = ("--config", str(place / "deployment.yaml"), "--port", "0", "--metrics-port", "0")
    with (
        server("services.records", *arguments, environment=variables) as (address, _),
        neuropil.connect(records=address, timeout=20) as connected,
    ):
        return failure(connected, 0, "far")


def test_storage_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    nobody = {
        "NEUROPIL_STORAGE__GCS_ENDPOINT": "http://127.0.0.1:9",
        "BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH": "1",
    }
    error = storage_failure(tmp_path, "gs://box/records", nobody)
    assert (error.code, error.reason) == ("UNAVAILABLE", "STORAGE_UNAVAILABLE")
    assert error.metadata == {"file": "gs://box/records/0/0.json"}
    assert error.retry_after_seconds is not None


def test_storage_that_grants_no_access_is_a_failed_precondition(
    tmp_path: Path, azurite: Azurite
) -> None:
    azurite.create_container("acct", "closed")
    variables = {**azurite.environment, "AZURE_STORAGE_KEY": "d3Jvbmc="}
    error = storage_failure(tmp_path, "az://acct/closed/records", variables)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "STORAGE_ACCESS_DENIED")
    assert error.metadata == {"file": "az://acct/closed/records/0/0.json"}


def test_what_is_right_is_answered(client: neuropil.Client) -> None:
    assert client.records.token_record("mlp_post_act", 0, 0, ["demo"]).max_activation == 1


def test_invalid_argument_names_the_field(client: neuropil.Client) -> None:
    error = failure(client, -1)
    assert (error.code, error.field) == ("INVALID_ARGUMENT", "component.component_index")


def test_not_found_names_the_datasets_tried(client: neuropil.Client) -> None:
    error = failure(client, 99)
    assert error.code == "NOT_FOUND"
    assert "records" in error.metadata["datasets"]
    assert failure(client, 0, "nobody").code == "NOT_FOUND"


@pytest.mark.parametrize(("index", "field"), [(1, ""), (2, "activations")])
def test_data_loss_names_file_and_field(client: neuropil.Client, index: int, field: str) -> None:
    error = failure(client, index)
    assert error.code == "DATA_LOSS"
    assert error.metadata["file"].endswith(f"0/{index}.json")
    assert field in error.metadata.get("field", "")


def test_unimplemented_says_so() -> None:
    with (
        answering(Unimplemented("not served by this release")) as address,
        neuropil.connect(records=address) as connected,
        pytest.raises(neuropil.NeuropilError) as caught,
    ):
        connected.records.datasets()
    error = shown(caught.value)
    assert (error.code, error.reason) == ("UNIMPLEMENTED", "NOT_IMPLEMENTED_YET")


def test_a_reply_over_the_limit_is_resource_exhausted(client: neuropil.Client) -> None:
    error = failure(client, 3)
    assert error.code == "RESOURCE_EXHAUSTED"
    assert error.metadata


def test_deadline_exceeded(deployment: Path) -> None:
    arguments = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
    with (
        server("services.records", *arguments) as (address, _),
        neuropil.connect(records=address, timeout=1e-6) as connected,
    ):
        assert failure(connected, 0).code == "DEADLINE_EXCEEDED"


def test_a_service_that_cannot_be_reached_is_unavailable(client: neuropil.Client) -> None:
    with pytest.raises(neuropil.NeuropilError) as caught:
        client.scalars.model_info()
    assert shown(caught.value).code == "UNAVAILABLE"


def test_a_condition_that_does_not_hold_is_a_failed_precondition() -> None:
    refusal = FailedPrecondition("the folder can't be written to", reason="NOT_WRITABLE")
    with (
        answering(refusal) as address,
        neuropil.connect(records=address) as connected,
        pytest.raises(neuropil.NeuropilError) as caught,
    ):
        connected.records.datasets()
    error = shown(caught.value)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NOT_WRITABLE")


def test_what_runs_already_is_aborted() -> None:
    refusal = Aborted("it runs already", reason="RUN_IN_PROGRESS", retry_after_seconds=2.0)
    with (
        answering(refusal) as address,
        neuropil.connect(records=address) as connected,
        pytest.raises(neuropil.NeuropilError) as caught,
    ):
        connected.records.datasets()
    error = shown(caught.value)
    assert (error.code, error.reason) == ("ABORTED", "RUN_IN_PROGRESS")
    assert error.retry_after_seconds == 2.0


def test_a_defect_is_internal_and_keeps_its_text_to_itself() -> None:
    with (
        answering(ZeroDivisionError("secret")) as address,
        neuropil.connect(records=address) as connected,
        pytest.raises(neuropil.NeuropilError) as caught,
    ):
        connected.records.datasets()
    error = shown(caught.value)
    assert (error.code, error.message) == ("INTERNAL", INTERNAL_TEXT)


def test_the_page_lists_exactly_what_was_shown() -> None:
    """Its table of codes, whose second column is the status of HTTP."""
    page = (REPOSITORY / "docs" / "errors.md").read_text()
    assert set(re.findall(r"^\| `([A-Z_]+)` \| \d", page, re.MULTILINE)) == SHOWN


@contextmanager
def answering(error: Exception) -> Iterator[str]:
    """A server of the contract whose every method fails with `error`, on a loop of its own."""

    class Failing:
        def __getattr__(self, name: str) -> Any:
            async def fail(request: Any, context: Any) -> Any:
                raise error

            return fail

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    service = RpcService(records.DESCRIPTOR.services_by_name["RecordReader"], Failing())
    running = asyncio.run_coroutine_threadsafe(
        start_server([service], ServerOptions("records")), loop
    ).result(20)
    try:
        yield f"127.0.0.1:{running.port}"
    finally:
        asyncio.run_coroutine_threadsafe(running.drain(1), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
