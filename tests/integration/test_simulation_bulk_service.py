"""Bulk runs over sockets: results, their places, a key used twice, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from neuropil.channel import open_aio_channel
from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, atranslated
from neuropil.names import component_id
from neuropil.records import v1 as records
from neuropil.simulation import v1
from services.records.app import record_services
from services.simulation.app import simulation_services
from services.simulation.simulators.registry import SimulatorRegistry
from shared.formats.encoding import encode, write_atomically
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Dataset, Deployment, Services
from tests.faults.cheap_simulation import CALLS_FILE, CheapSimulator
from tests.integration.simulation_running import animal_record, labeled, sequence

COMPONENTS = 6


@dataclass
class World:
    simulation: v1.SimulationStub
    records: records.RecordReaderStub
    explanations: str
    calls: Path

    def count(self) -> int:
        return self.calls.stat().st_size if self.calls.exists() else 0


@asynccontextmanager
async def serving(
    root: Path, *, state: bool = True, calibration: Literal["linear", "percentile"] = "linear"
) -> AsyncIterator[World]:
    for index in range(COMPONENTS):
        write_atomically(root / f"mlp/0/{index}.json", encode(animal_record(index, 8, 6)))
    explanations = str(root / "explanations")
    dataset = Dataset(
        short_name="demo",
        derived_scalar_type="mlp_post_act",
        user_visible_name="demo",
        neuron_dataset_path=str(root / "mlp"),
        explanation_dataset_paths=(explanations,),
    )
    async with record_services(Deployment(datasets=(dataset,))) as reader:
        record_server = await start_server(reader, ServerOptions("records"))
        address = f"127.0.0.1:{record_server.port}"
        deployment = Deployment(
            datasets=(dataset,),
            services=Services(records=address),
            simulation_state=str(root / "state") if state else None,
            calibration=calibration,
        )
        registry = SimulatorRegistry([CheapSimulator()], "cheap")
        async with simulation_services(deployment, registry) as simulation:
            server = await start_server(simulation, ServerOptions("simulation"))
            channel = open_aio_channel(f"127.0.0.1:{server.port}")
            record_channel = open_aio_channel(address)
            yield World(
                v1.SimulationStub(channel),
                records.RecordReaderStub(record_channel),
                explanations,
                root / "calls",
            )
            await channel.close()
            await record_channel.close()
            await server.drain(1)
        await record_server.drain(1)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv(CALLS_FILE, str(tmp_path / "calls"))
    async with serving(tmp_path) as running:
        yield running


def neuron(index: int) -> common.ComponentId:
    return component_id("mlp_post_act", 0, index)


def request_of(index: int, explanation: str = "animals") -> v1.ScoreExplanationRequest:
    return v1.ScoreExplanationRequest(
        recorded_component=v1.RecordedComponent(component=neuron(index), datasets=["demo"]),
        explanation=explanation,
        max_sequences=1,
        calibration_kind=v1.CALIBRATION_KIND_NONE,
    )


def bulk(
    *requests: v1.ScoreExplanationRequest, key: str = "key", put_to: str = ""
) -> v1.BulkScoreExplanationsRequest:
    return v1.BulkScoreExplanationsRequest(
        resume_key=key, requests=requests, explanation_dataset=put_to
    )


async def run(
    world: World, request: v1.BulkScoreExplanationsRequest
) -> tuple[dict[int, v1.BulkResult], v1.BulkScoreExplanationsResponse]:
    async with atranslated():
        events = [event async for event in world.simulation.BulkScoreExplanations(request)]
    results = [event.result for event in events if event.HasField("result")]
    assert len({result.position for result in results}) == len(results)
    assert events[-1].HasField("summary")
    return {result.position: result for result in results}, events[-1]


async def refusal(world: World, request: v1.BulkScoreExplanationsRequest) -> NeuropilError:
    with pytest.raises(NeuropilError) as refused:
        await run(world, request)
    return refused.value


async def test_results_are_stored_and_come_again_without_being_paid_for(world: World) -> None:
    whole = bulk(*(request_of(n) for n in range(COMPONENTS)), put_to=world.explanations)
    results, last = await run(world, whole)
    assert sorted(results) == list(range(COMPONENTS))
    assert all(result.put == v1.PUT_OUTCOME_STORED for result in results.values())
    assert not any(result.reused for result in results.values())
    assert (last.summary.done, last.summary.failed, last.summary.left) == (COMPONENTS, 0, 0)
    costs = [result.scored_explanation.provenance.cost for result in results.values()]
    assert last.spent.call_count == sum(cost.call_count for cost in costs) == world.count()
    stored = await world.records.GetScoredSimulations(
        records.GetScoredSimulationsRequest(
            component=neuron(3), explanation_dataset=world.explanations
        )
    ).read()
    given = results[3].scored_explanation
    assert stored.explanation.text == "animals"
    assert stored.explanation.score == pytest.approx(given.preferred_score.value)

    again, end = await run(world, whole)
    assert all(result.reused for result in again.values())
    assert {n: result.scored_explanation for n, result in again.items()} == {
        n: result.scored_explanation for n, result in results.items()
    }
    assert (end.summary.reused, end.spent) == (COMPONENTS, last.spent)
    assert world.count() == last.spent.call_count


async def test_what_fails_says_why_and_the_rest_goes_on(world: World) -> None:
    results, last = await run(
        world, bulk(request_of(0), request_of(10**6), request_of(1, " "), request_of(2))
    )
    assert results[1].failure_reason == "RECORD_NOT_FOUND"
    assert results[2].failure_reason == "INVALID_ARGUMENT"
    assert "explanation" in results[2].failure
    assert (last.summary.done, last.summary.failed) == (2, 2)


async def test_where_nothing_can_be_stored_scores_are_given_all_the_same(world: World) -> None:
    # A file stands where the folder should be.
    write_atomically(Path(world.explanations), b"")
    results, last = await run(world, bulk(request_of(0), put_to=world.explanations))
    assert results[0].put == v1.PUT_OUTCOME_FAILED
    assert results[0].put_failure
    assert results[0].HasField("scored_explanation")
    assert (last.summary.done, last.summary.not_put) == (1, 1)


async def test_a_place_that_is_none_is_refused_before_anything_is_paid_for(world: World) -> None:
    for place, reason in (("/nowhere/allowed", "PATH_NOT_ALLOWED"), ("name", "UNKNOWN_DATASET")):
        refused = await refusal(world, bulk(request_of(0), put_to=place))
        assert (refused.reason, refused.field) == (reason, "explanation_dataset")
        assert place in refused.message
    assert world.count() == 0


async def test_requests_that_leave_it_to_other_defaults_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CALLS_FILE, str(tmp_path / "calls"))
    unsaid, said = request_of(0), request_of(0)
    unsaid.calibration_kind = v1.CALIBRATION_KIND_UNSPECIFIED
    async with serving(tmp_path) as world:
        for key, request in (("unsaid", unsaid), ("said", said)):
            await run(world, bulk(request, key=key))
    async with serving(tmp_path, calibration="percentile") as world:
        refused = await refusal(world, bulk(unsaid, key="unsaid"))
        assert refused.reason == "RESUME_KEY_USED"
        results, _ = await run(world, bulk(said, key="said"))
        assert results[0].reused


async def test_a_key_is_used_once_at_a_time_and_for_the_same_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.simulation.bulk.journal.LEASE_PATIENCE_SECONDS", 0.2)
    many = bulk(*(request_of(n % COMPONENTS, f"text {n}") for n in range(200)))
    call = world.simulation.BulkScoreExplanations(many)
    async for event in call:
        if event.HasField("result"):
            break
    in_progress = await refusal(world, many)
    assert (in_progress.code, in_progress.reason) == ("ABORTED", "RUN_IN_PROGRESS")
    assert in_progress.field == "resume_key"
    assert in_progress.retry_after_seconds
    call.cancel()
    # The run ends with its caller, and what is done is kept.
    other = await refusal(world, bulk(request_of(0)))
    assert (other.code, other.reason) == ("FAILED_PRECONDITION", "RESUME_KEY_USED")
    assert other.metadata == {"items": "200"}
    before = world.count()
    assert before < 200
    await asyncio.sleep(0.1)
    assert world.count() == before
    _, last = await run(world, many)
    assert (last.summary.done, last.summary.left) == (200, 0)
    assert last.summary.reused >= 1
    assert world.count() <= 200 + 4


async def test_a_budget_stops_the_run(world: World) -> None:
    whole = bulk(*(request_of(n) for n in range(COMPONENTS)))
    whole.budget.max_calls = 3
    whole.max_concurrency = 1
    results, last = await run(world, whole)
    assert len(results) == 3
    assert last.summary.stopped_by == v1.BUDGET_LIMIT_CALLS
    assert (last.summary.done, last.summary.left) == (3, 3)


async def test_without_a_place_for_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CALLS_FILE, str(tmp_path / "calls"))
    async with serving(tmp_path, state=False) as world:
        refused = await refusal(world, bulk(request_of(0)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "STATE_NOT_CONFIGURED")
    assert refused.metadata == {"setting": "simulation_state"}


async def test_a_place_for_state_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CALLS_FILE, str(tmp_path / "calls"))
    (tmp_path / "state").write_text("")
    async with serving(tmp_path) as world:
        refused = await refusal(world, bulk(request_of(0)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "STATE_ACCESS_DENIED")


async def test_sequences_of_a_request_have_no_component_to_be_stored_with(world: World) -> None:
    own = v1.ScoreExplanationRequest(
        sequences=v1.LabeledSequences(scored_sequences=labeled(sequence(1, active=True))),
        explanation="animals",
        calibration_kind=v1.CALIBRATION_KIND_NONE,
    )
    refused = await refusal(world, bulk(own, put_to=world.explanations))
    assert refused.field == "requests[0].recorded_component"
    results, _ = await run(world, bulk(own))
    assert results[0].HasField("scored_explanation")


async def test_requests_without_their_fields(world: World) -> None:
    assert (await refusal(world, bulk(request_of(0), key=""))).field == "resume_key"
    assert (await refusal(world, bulk())).field == "requests"
