"""The reference's answers about a model, over HTTP from the real services."""

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
from shared.settings import Autoencoder, Dataset, Deployment, Model, Services
from tests.golden.reference_answers import differences, expected_answer, request_body
from tests.integration.gateway_running import gateway

pytestmark = pytest.mark.golden

ROUTES = {
    "/derived_scalars",
    "/derived_attention_scalars",
    "/multiple_top_k_derived_scalars",
    "/model_info",
}
# What the deriver does not serve yet; it may serve it at any time.
LATER = {
    "plain/ds_trace_mlp",
    "plain/ds_trace_attn_QK",
    "plain/ds_vocab_token_read",
    "plain/ds_ae_without_ae",
}


@pytest.fixture(scope="module")
def document(golden: Path) -> dict[str, Any]:
    text = gzip.decompress((golden / "endpoints" / "cases.json.gz").read_bytes())
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@asynccontextmanager
async def serving(golden: Path, name: str, files: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the whole deployment of the model with these autoencoders."""
    dataset = Dataset(
        short_name="oracle-pub",
        derived_scalar_type="mlp_post_act",
        user_visible_name="MLP",
        neuron_dataset_path=str(golden / "read" / "mlp"),
    )
    heads = dataset.model_copy(
        update={
            "derived_scalar_type": "attn_write_norm",
            "neuron_dataset_path": str(golden / "read" / "attn"),
        }
    )
    model = Model(
        name=name,
        path=str(golden / "model"),
        device="cpu",
        excluded_tokens=str(golden / "least_common_tokens.json"),
        autoencoders=tuple(
            Autoencoder(name=file, path=str(golden / "model" / f"autoencoder_{file}.safetensors"))
            for file in files
        ),
    )
    deployment = Deployment(datasets=(dataset, heads), model=model)
    async with record_services(deployment) as records, scalar_services(deployment) as scalars:
        reading = await start_server(records, ServerOptions("records"))
        deriving = await start_server(scalars, ServerOptions("scalars"))
        found = Services(records=f"127.0.0.1:{reading.port}", scalars=f"127.0.0.1:{deriving.port}")
        async with gateway(deployment.model_copy(update={"services": found})) as connected:
            yield connected
        await deriving.drain(1)
        await reading.drain(1)


async def test_the_models_description_is_the_references_for_every_set_of_autoencoders(
    golden: Path, document: dict[str, Any]
) -> None:
    for server in document["servers"]:
        files = [server[kind] for kind in ("mlp", "attn") if server[kind]]
        (case,) = (
            each
            for each in document["cases"]
            if each["server"] == server["id"] and each["route"] == "/model_info"
        )
        async with serving(golden, document["model"], files) as client:
            assert (await client.post("/model_info")).json() == case["response"]


@pytest.fixture
async def client(golden: Path, document: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(golden, document["model"], []) as connected:
        yield connected


async def test_every_answer_on_the_model_alone_is_the_references(
    client: httpx.AsyncClient, golden: Path, document: dict[str, Any]
) -> None:
    replacements = {"{READ}": str(golden / "read")}
    wrong, agreeing, later = [], [], []
    for case in document["cases"]:
        if case["server"] != "plain" or case["route"] not in ROUTES:
            continue
        answer = await client.post(
            case["route"],
            content=request_body(case, replacements),
            headers={"content-type": "application/json"},
        )
        if answer.status_code == 501:
            later.append(case["name"])
        elif case["name"] == "plain/da_bad_dst":
            # The reference derives two types by token pair, Neuropil any that is by token pair.
            assert answer.status_code == 200
        elif case["status"] != 200:
            if not 400 <= answer.status_code < 500:
                wrong.append(f"{case['name']}: status {answer.status_code}")
        elif answer.status_code != 200:
            wrong.append(f"{case['name']}: status {answer.status_code} {answer.text[:200]}")
        else:
            expected = expected_answer(case, golden, replacements)
            found = differences(answer.json(), expected)
            wrong += [f"{case['name']}: {line}" for line in found[:1]]
            agreeing += [] if found else [case["name"]]
    assert wrong == []
    assert len(agreeing) >= 34
    assert set(later) <= LATER
