"""Quantile samples and moments of records over HTTP, from files that the test wrote."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.records.app import record_services
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Dataset, Deployment, Services
from tests.integration.gateway_running import gateway

BOTH = {"includeQuantileSamples": True, "includeMoments": True}
NEW = {"quantileSamples", "quantileBoundaries", "moments"}
ROUTES = [("/neuron_record", "mlp_post_act"), ("/attention_head_record", "attn_write_norm")]


def write_record(folder: Path, *, statistics: bool, pairs: bool) -> None:
    def sequence(*values: float) -> ActivationRecord:
        # Two tokens have two activations, or three pairs.
        return ActivationRecord([*values, 0.5] if pairs else list(values), ["a", "東"])

    record = NeuronRecord(
        NeuronId(int(statistics), 0), most_positive_activation_records=[sequence(1.0, 4.0)]
    )
    if statistics:
        record.random_sample_by_quantile = [[sequence(0.25, 2.0)], []]
        record.quantile_boundaries = [0.75]
        record.mean, record.variance = 0.5, math.nan
    path = folder / "0" / f"{int(statistics)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encode(record))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Component 1 has statistics, component 0 has none."""
    for _, kind in ROUTES:
        for statistics in (False, True):
            pairs = kind == "attn_write_norm"
            write_record(tmp_path / kind, statistics=statistics, pairs=pairs)
    datasets = tuple(
        Dataset(
            short_name="d",
            derived_scalar_type=kind,
            user_visible_name="D",
            neuron_dataset_path=str(tmp_path / kind),
        )
        for _, kind in ROUTES
    )
    deployment = Deployment(datasets=datasets)
    async with record_services(deployment) as services:
        running = await start_server(services, ServerOptions("records"))
        found = Services(records=f"127.0.0.1:{running.port}")
        async with gateway(deployment.model_copy(update={"services": found})) as connected:
            yield connected
        await running.drain(1)


def body(kind: str, index: int, **more: Any) -> dict[str, Any]:
    return {"dst": kind, "layerIndex": 0, "activationIndex": index, "datasets": ["d"], **more}


@pytest.mark.parametrize(("route", "kind"), ROUTES)
async def test_they_are_given_where_asked_for(
    client: httpx.AsyncClient, route: str, kind: str
) -> None:
    plain = (await client.post(route, json=body(kind, 1))).json()
    assert not plain.keys() & NEW
    answer = await client.post(route, json=body(kind, 1, **BOTH))
    assert answer.status_code == 200, answer.text
    asked = answer.json()
    assert asked.keys() - plain.keys() == NEW
    assert asked["quantileBoundaries"] == [0.75]
    # What is not finite is null, as everywhere; what the file hasn't is null too.
    assert asked["moments"] == {"mean": 0.5, "variance": None, "skewness": None, "kurtosis": None}
    first, second = asked["quantileSamples"]
    assert (len(first), second) == (1, [])
    if kind == "mlp_post_act":
        assert [(each["token"], each["scalar"]) for each in first[0]] == [("a", 0.25), ("東", 2.0)]
    # The rest of the answer is the same.
    assert {key: asked[key] for key in plain} == plain


@pytest.mark.parametrize(("route", "kind"), ROUTES)
async def test_one_may_be_asked_for_without_the_other(
    client: httpx.AsyncClient, route: str, kind: str
) -> None:
    moments = (await client.post(route, json=body(kind, 1, includeMoments=True))).json()
    assert moments.keys() & NEW == {"moments"}
    quantiles = (await client.post(route, json=body(kind, 1, includeQuantileSamples=True))).json()
    assert quantiles.keys() & NEW == NEW - {"moments"}


@pytest.mark.parametrize(("route", "kind"), ROUTES)
async def test_a_record_without_them_is_answered(
    client: httpx.AsyncClient, route: str, kind: str
) -> None:
    answer = await client.post(route, json=body(kind, 0, **BOTH))
    assert answer.status_code == 200, answer.text
    assert not answer.json().keys() & {"quantileSamples", "quantileBoundaries"}
