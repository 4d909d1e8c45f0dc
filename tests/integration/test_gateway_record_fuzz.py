"""Generated bodies at every route of records: the gateway and the record service are real."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.settings import Deployment, Http, Services
from tests.integration.gateway_running import gateway
from tests.load.processes import server

# One gateway for all examples: to start one takes longer than to ask it a hundred times.
pytestmark = pytest.mark.asyncio(loop_scope="module")

_SCALAR_TYPES = {"mlp_post_act": [0.5], "attn_write_norm": [0.25]}
_ROUTES = (
    "/neuron_record",
    "/attention_head_record",
    "/existing_explanations",
    "/neuron_datasets_metadata",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    configuration = _datasets(tmp_path_factory.mktemp("records"))
    arguments = ("--config", str(configuration), "--port", "0", "--metrics-port", "0")
    with server("services.records", *arguments) as (address, _):
        deployment = Deployment(services=Services(records=address), http=Http(max_body_megabytes=1))
        async with gateway(deployment) as connected:
            yield connected


def _datasets(folder: Path) -> Path:
    datasets = []
    for scalar_type, activations in _SCALAR_TYPES.items():
        record = NeuronRecord(
            NeuronId(0, 0),
            most_positive_activation_records=[ActivationRecord(activations, ["a"])],
        )
        path = folder / scalar_type / "0" / "0.json"
        path.parent.mkdir(parents=True)
        write_atomically(path, encode(record))
        datasets.append(
            {
                "short_name": "d",
                "derived_scalar_type": scalar_type,
                "user_visible_name": "D",
                "neuron_dataset_path": str(folder / scalar_type),
            }
        )
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump({"datasets": datasets}))
    return path


_NUMBERS = (
    st.integers(-1, 2)
    | st.integers()
    | st.floats()
    | st.sampled_from(
        [2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, "0", " 0 ", "0.0", "٣", "1e5"]
    )
)
_NAMES = st.sampled_from(
    ["d", "", "/", "..", "../d", "/etc", "file:///etc/passwd", "https://d", "az://d/e", "\0", "%2e"]
) | st.text(max_size=12)
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _NAMES | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=10,
)
_TYPES = st.sampled_from([*_SCALAR_TYPES, "logits", "nope"]) | _VALUES
_FITTING: dict[str, st.SearchStrategy[Any]] = {
    "dst": st.sampled_from(sorted(_SCALAR_TYPES)) | _TYPES,
    "layerIndex": st.just(0) | _NUMBERS | _VALUES,
    "activationIndex": st.just(0) | _NUMBERS | _VALUES,
    "datasets": st.lists(_NAMES, max_size=3) | _VALUES,
    "explanationDatasets": st.lists(_NAMES, max_size=3) | _VALUES,
    "neuronDataset": st.none() | _NAMES | _VALUES,
    "includeQuantileSamples": st.booleans() | _VALUES,
    "includeMoments": st.booleans() | _VALUES,
}
_BODIES = (
    st.fixed_dictionaries({}, optional=_FITTING) | st.fixed_dictionaries(_FITTING) | _VALUES
).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=64)

_STATUSES = {200, 400, 404, 422}


@settings(max_examples=200, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(route=st.sampled_from(_ROUTES), body=_BODIES, kind=st.sampled_from(["", "; charset=utf-8"]))
@example(
    route="/neuron_record",
    body=b'{"dst":"mlp_post_act","layerIndex":0,"activationIndex":0,"datasets":["d"]}',
    kind="",
)
@example(
    route="/attention_head_record",
    body=b'{"dst":"mlp_post_act","layerIndex":0,"activationIndex":0,"datasets":["d"]}',
    kind="",
)
async def test_no_body_makes_a_defect_of_the_record_routes(
    client: httpx.AsyncClient, route: str, body: bytes, kind: str
) -> None:
    headers = {"content-type": f"application/json{kind}"}
    answer = await client.post(route, content=body, headers=headers)
    assert answer.status_code in _STATUSES, answer.text
    if answer.status_code != 200:
        assert answer.json()["message"]
        assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("route", "scalar_type"),
    [("/neuron_record", "mlp_post_act"), ("/attention_head_record", "attn_write_norm")],
)
async def test_the_records_that_are_asked_for_are_there(
    client: httpx.AsyncClient, route: str, scalar_type: str
) -> None:
    body = {"dst": scalar_type, "layerIndex": 0, "activationIndex": 0, "datasets": ["d"]}
    assert (await client.post(route, json=body)).status_code == 200
