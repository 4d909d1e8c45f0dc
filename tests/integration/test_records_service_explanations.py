"""Explanations of the record service: listed, put, and their simulations; through the stubs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuropil.names import component_id
from neuropil.records import v1
from neuropil.tensors import to_array, to_tensor
from shared.formats.records import NeuronId
from shared.formats.simulations import (
    ActivationScale,
    AttentionSimulation,
    AttentionSimulationResults,
    NeuronSimulationResults,
    ScoredAttentionExplanation,
    ScoredAttentionSimulation,
    ScoredExplanation,
    ScoredSequenceSimulation,
    ScoredSimulation,
    SequenceSimulation,
)
from tests.integration.records_running import (
    HEADS,
    MLP,
    World,
    failure_of,
    put_request,
    scored_message,
    serving,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Any]:
    async with serving(world.deployment()) as opened:
        yield opened


def explanations_request(index: int = 0, *paths: str, dataset: str = "", scalar: str = MLP) -> Any:
    request = v1.ListExplanationsRequest(component=component_id(scalar, 0, index))
    if paths:
        request.explanation_datasets.paths.extend(paths)
    if dataset:
        request.neuron_dataset = dataset
    return request


async def test_explanations_of_a_dataset(stub: Any, world: World) -> None:
    answer = await stub.ListExplanations(explanations_request(dataset="pub"))
    got = [(each.text, each.HasField("score"), each.dataset_name) for each in answer.explanations]
    assert got == [
        ("vowels", True, "expl"),
        ("nothing", False, "expl"),
        ("cached a", False, "a"),
        ("cached b", True, "b"),
    ]
    assert answer.explanations[0].score == 0.5
    assert answer.explanations[3].dataset == world.path("cached/b")
    assert not answer.failures
    for request in (
        explanations_request(5, dataset="pub"),
        explanations_request(dataset="more"),
        explanations_request(dataset=world.path("open/x")),
    ):
        assert not (await stub.ListExplanations(request)).explanations


async def test_explanations_by_path(stub: Any, world: World) -> None:
    paths = [world.path("cached/b"), world.path("expl") + "/", world.path("open/none"), "unheard"]
    answer = await stub.ListExplanations(explanations_request(0, *paths))
    assert [each.dataset_name for each in answer.explanations] == ["b", "", ""]
    (failure,) = answer.failures
    assert (failure.code, failure.dataset) == ("NOT_FOUND", "unheard")
    assert (failure.reason, failure.metadata) == ("UNKNOWN_DATASET", {"datasets": "unheard"})


async def test_failed_explanation_datasets(stub: Any, world: World) -> None:
    (world.root / "cached/a/0/0.jsonl").write_bytes(b"{}")
    answer = await stub.ListExplanations(explanations_request(dataset="pub"))
    assert [each.text for each in answer.explanations] == ["vowels", "nothing", "cached b"]
    assert [(each.code, each.dataset) for each in answer.failures] == [
        ("DATA_LOSS", world.path("cached/a"))
    ]
    alone = await failure_of(
        stub.ListExplanations(
            explanations_request(0, world.path("cached/a"), world.path("open/none"))
        )
    )
    assert (alone.code, alone.metadata) == (
        "DATA_LOSS",
        {"file": world.path("cached/a/0/0.jsonl"), "field": "neuron_id"},
    )


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (explanations_request(), "INVALID_ARGUMENT"),
        (explanations_request(0, "/etc"), "INVALID_ARGUMENT"),
        (explanations_request(0, "unheard"), "NOT_FOUND"),
        (explanations_request(dataset="unheard"), "NOT_FOUND"),
        (explanations_request(dataset="more", scalar=HEADS), "INVALID_ARGUMENT"),
        (explanations_request(dataset="/etc"), "INVALID_ARGUMENT"),
    ],
)
async def test_refused_explanation_requests(stub: Any, request_: Any, code: str) -> None:
    assert (await failure_of(stub.ListExplanations(request_))).code == code


async def simulations(stub: Any, dataset: str, index: int = 0) -> list[Any]:
    request = v1.GetScoredSimulationsRequest(
        component=component_id(MLP, 0, index), explanation_dataset=dataset
    )
    return [answer async for answer in stub.GetScoredSimulations(request)]


async def test_an_explanation_that_is_put_is_listed_and_read_back(stub: Any, world: World) -> None:
    slashed = explanations_request(0, world.path("expl") + "/", scalar=HEADS)
    for request in (explanations_request(dataset="pub"), slashed):
        await stub.ListExplanations(request)
    assert not (await stub.PutExplanation(put_request(world, "naïve \u2028 東"))).replaced
    assert (await stub.PutExplanation(put_request(world, "naïve \u2028 東"))).replaced
    listed = await stub.ListExplanations(explanations_request(dataset="pub"))
    assert [each.text for each in listed.explanations][:3] == [
        "vowels",
        "nothing",
        "naïve \u2028 東",
    ]
    assert listed.explanations[2].score == 0.75
    assert len((await stub.ListExplanations(slashed)).explanations) == 3
    answers = await simulations(stub, world.path("expl"))
    assert len(answers) == 3
    assert answers[2].explanation == listed.explanations[2]
    sequence = answers[2].scored_simulation.sequences[0]
    sent = scored_message([0.0, 3.0]).sequences[0]
    assert list(sequence.simulation.tokens) == list(sent.simulation.tokens)
    for name in (
        "expected_activations",
        "distribution_probabilities",
        "distribution_values",
        "uncalibrated_expected_activations",
        "uncalibrated_distribution_values",
    ):
        got, want = getattr(sequence.simulation, name), getattr(sent.simulation, name)
        np.testing.assert_array_equal(to_array(got), to_array(want))
    assert sequence.simulation.activation_scale == sent.simulation.activation_scale
    assert sequence.scores.ev_correlation.value == 1.0
    assert not sequence.scores.r_squared.HasField("value")


async def test_an_explanation_may_be_put_where_nothing_was(stub: Any, world: World) -> None:
    await stub.ListExplanations(explanations_request(3, world.path("open/new")))
    await stub.PutExplanation(put_request(world, "first", 3, "open/new"))
    listed = await stub.ListExplanations(explanations_request(3, world.path("open/new")))
    assert [each.text for each in listed.explanations] == ["first"]


async def test_concurrent_writers_lose_nothing(world: World) -> None:
    deployment = world.deployment()
    async with serving(deployment) as one, serving(deployment) as other:
        texts = [f"explanation {number}" for number in range(40)]
        await asyncio.gather(
            *(
                (one if number % 2 else other).PutExplanation(put_request(world, text, 2))
                for number, text in enumerate(texts)
            )
        )
        answers = await simulations(one, world.path("expl"), 2)
        assert {answer.explanation.text for answer in answers} == set(texts)
    files = [path.name for path in (world.root / "expl/0").iterdir()]
    assert sorted(files) == [".lock", "0.jsonl", "2.jsonl"]


def without_scale(request: Any) -> None:
    request.scored_simulation.sequences[0].simulation.activation_scale = 0


def wrong_length(request: Any) -> None:
    request.scored_simulation.sequences[0].true_activations.CopyFrom(to_tensor([1.0]))


def short_tensor(request: Any) -> None:
    request.scored_simulation.sequences[0].simulation.expected_activations.data = b"123"


def wrong_table(request: Any) -> None:
    tensor = to_tensor(np.zeros((3, 2)))
    request.scored_simulation.sequences[0].simulation.distribution_probabilities.CopyFrom(tensor)


def out_of_range(request: Any) -> None:
    request.scored_simulation.sequences[0].scores.r_squared.value = 1.5


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (out_of_range, "scores.r_squared.value"),
        (without_scale, "simulation.activation_scale"),
        (wrong_length, "true_activations"),
        (short_tensor, "simulation.expected_activations"),
        (wrong_table, "simulation.distribution_probabilities"),
    ],
)
async def test_simulations_that_make_no_sense_are_not_stored(
    stub: Any, world: World, change: Callable[[Any], None], field: str
) -> None:
    request = put_request(world, "x")
    change(request)
    refused = await failure_of(stub.PutExplanation(request))
    assert refused.code == "INVALID_ARGUMENT"
    assert refused.field == f"scored_simulation.sequences[0].{field}"


async def test_an_explanation_without_simulation_has_no_score(stub: Any, world: World) -> None:
    request = put_request(world, "only words", 3)
    request.scored_simulation.Clear()
    request.scored_simulation.SetInParent()
    await stub.PutExplanation(request)
    (kept,) = await simulations(stub, world.path("expl"), 3)
    assert kept.explanation.text == "only words"
    assert not kept.explanation.HasField("score")
    assert not kept.scored_simulation.sequences


async def test_what_can_not_be_written(stub: Any, world: World) -> None:
    refused = await failure_of(stub.PutExplanation(put_request(world, "x", folder="mlp")))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "PATH_NOT_ALLOWED")
    (world.root / "expl/0/4.jsonl").write_bytes(b"{broken")
    corrupt = await failure_of(stub.PutExplanation(put_request(world, "x", 4)))
    assert corrupt.code == "DATA_LOSS"
    assert (world.root / "expl/0/4.jsonl").read_bytes() == b"{broken"
    (world.root / "open").write_text("a file where a folder was to be")
    blocked = await failure_of(stub.PutExplanation(put_request(world, "x", folder="open/new")))
    assert (blocked.code, blocked.reason) == ("FAILED_PRECONDITION", "NOT_WRITABLE")
    world.write(
        "expl/0/5.jsonl", AttentionSimulationResults(NeuronId(5, 0), scored_explanations=[])
    )
    pairs = await failure_of(stub.PutExplanation(put_request(world, "x", 5)))
    assert pairs.code == "FAILED_PRECONDITION"


async def test_scored_simulations_of_uneven_distributions(stub: Any, world: World) -> None:
    uneven = SequenceSimulation(
        ["a", "b", "c"],
        [1.0, math.nan, 2.0],
        ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS,
        [[0.0, 1.0], [], [5.0]],
        [[0.5, 0.5], [], [1.0]],
    )
    scored = ScoredSequenceSimulation(uneven, [0.0, 1.0, math.nan], math.nan, -math.inf, 0.5)
    world.write(
        "expl/0/6.jsonl",
        NeuronSimulationResults(
            NeuronId(6, 0), [ScoredExplanation("x", ScoredSimulation([scored]))]
        ),
    )
    (answer,) = await simulations(stub, world.path("expl"), 6)
    assert not answer.explanation.HasField("score")
    (sequence,) = answer.scored_simulation.sequences
    np.testing.assert_array_equal(
        to_array(sequence.simulation.distribution_values), [[0, 1], [np.nan] * 2, [5, np.nan]]
    )
    np.testing.assert_array_equal(
        to_array(sequence.simulation.expected_activations), [1.0, np.nan, 2.0]
    )
    assert not sequence.simulation.HasField("uncalibrated_expected_activations")
    assert not sequence.scores.ev_correlation.HasField("value")
    assert not sequence.scores.r_squared.HasField("value")
    assert sequence.scores.absolute_deviation_explained.value == 0.5


async def test_scored_attention_simulations(stub: Any, world: World) -> None:
    pairs = [
        AttentionSimulation(["a", "b"], (1, 0), 1, 0.9),
        AttentionSimulation(["a", "b"], (0, 0), 0, math.nan),
        AttentionSimulation(["c"], (0, 0), 1, 0.5),
    ]
    explanation = ScoredAttentionExplanation("first", ScoredAttentionSimulation(pairs, 0.8))
    world.write("expl/0/7.jsonl", AttentionSimulationResults(NeuronId(7, 0), [explanation]))
    (answer,) = await simulations(stub, world.path("expl"), 7)
    assert answer.explanation.score == 0.8
    first, second = answer.scored_attention_simulation.attention_simulations
    assert to_array(first.token_pair_coordinates).tolist() == [[1, 0], [0, 0]]
    assert to_array(first.token_pair_labels).tolist() == [1, 0]
    np.testing.assert_array_equal(to_array(first.predictions), [0.9, np.nan])
    assert list(second.tokens) == ["c"]
    missing = v1.GetScoredSimulationsRequest(
        component=component_id(MLP, 0, 77), explanation_dataset=world.path("expl")
    )
    assert (await failure_of(stub.GetScoredSimulations(missing))).code == "NOT_FOUND"
