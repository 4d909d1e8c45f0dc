"""The record service as processes over every kind of storage: reads, writes, crashes."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuropil.channel import open_aio_channel
from neuropil.errors import NeuropilError, atranslated
from neuropil.names import component_id
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_array, to_tensor
from services.records.storage.local import LOCK_FILE
from shared.formats.decoding import decode_simulation_results
from shared.formats.encoding import encode
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.formats.simulations import NeuronSimulationResults
from tests.emulators.azurite import Azurite
from tests.emulators.gcs import FakeGcs
from tests.load.processes import server

MLP = "mlp_post_act"
HEADS = "attn_write_norm"


@dataclass
class Place:
    """Where a deployment's files are, and what a service needs to find them."""

    root: str
    put: Callable[[str, bytes], None]
    environment: dict[str, str] = field(default_factory=dict)

    def deployment(self, folder: Path) -> Path:
        def dataset(name: str, scalar_type: str, path: str) -> dict[str, Any]:
            return {
                "short_name": name,
                "derived_scalar_type": scalar_type,
                "user_visible_name": name,
                "neuron_dataset_path": path,
                "explanation_dataset_paths": [f"{self.root}/explanations"],
            }

        parent = self.root.rsplit("/", 1)[0]
        datasets = [
            dataset("first", MLP, f"{self.root}/first"),
            dataset("nowhere", MLP, f"{parent}/no-such-{uuid.uuid4().hex[:6]}/records"),
            dataset("second", MLP, f"{self.root}/second"),
            dataset("heads", HEADS, f"{self.root}/heads"),
        ]
        path = folder / "deployment.yaml"
        path.write_text(yaml.safe_dump({"datasets": datasets}))
        return path


@pytest.fixture(params=["local", "azure", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    name = f"box-{uuid.uuid4().hex[:8]}"
    if request.param == "local":
        root = tmp_path / name

        def put(relative: str, content: bytes) -> None:
            (root / relative).parent.mkdir(parents=True, exist_ok=True)
            (root / relative).write_bytes(content)

        return Place(str(root), put)
    emulator: Azurite | FakeGcs = request.getfixturevalue(
        "azurite" if request.param == "azure" else "gcs"
    )
    if isinstance(emulator, Azurite):
        emulator.create_container("acct", name)
        path = f"az://acct/{name}"
    else:
        emulator.create_bucket(name)
        path = f"gs://{name}"
    return Place(
        path,
        lambda relative, content: emulator.put(f"{path}/{relative}", content),
        emulator.environment,
    )


class Replicas:
    """Services over the same files, ended at last."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self._arguments = ["--config", str(place.deployment(folder))]
        self._arguments += ["--port", "0", "--metrics-port", "0"]
        self.stack = ExitStack()

    def start(self) -> tuple[str, int]:
        """Address and process id of one more."""
        return self.stack.enter_context(
            server("services.records", *self._arguments, environment=self.place.environment)
        )


@pytest.fixture
def replicas(place: Place, tmp_path: Path) -> Iterator[Replicas]:
    made = Replicas(place, tmp_path)
    yield made
    made.stack.close()


def record(index: int, top: float) -> bytes:
    sequence = ActivationRecord([0.0, top], ["a", "東"])
    return encode(NeuronRecord(NeuronId(index, 0), most_positive_activation_records=[sequence]))


def put_request(text: str, index: int = 0, root: str = "") -> Any:
    return v1.PutExplanationRequest(
        component=component_id(MLP, 0, index),
        explanation_dataset=f"{root}/explanations",
        explanation=text,
        scored_simulation=simulation.ScoredSimulation(
            scores=simulation.Scores(ev_correlation=simulation.Score(value=0.5))
        ),
    )


async def texts(stub: Any, place: Place, index: int = 0, scalar_type: str = MLP) -> list[str]:
    request = v1.GetScoredSimulationsRequest(
        component=component_id(scalar_type, 0, index),
        explanation_dataset=f"{place.root}/explanations",
    )
    return [answer.explanation.text async for answer in stub.GetScoredSimulations(request)]


async def failure_of(call: Any) -> NeuropilError:
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            await call
    return caught.value


async def test_reading(place: Place, replicas: Replicas) -> None:
    place.put("first/0/1.json", record(1, 1.0))
    place.put("second/0/1.json", record(1, 2.0))
    place.put("second/0/2.json", record(2, 2.0))
    place.put("second/12/2.json", record(2, 2.0))
    place.put("second/0/3.json", record(3, 2.0)[:-9])
    address, _ = replicas.start()
    async with open_aio_channel(address) as channel:
        stub = v1.RecordReaderStub(channel)

        def read(index: int) -> Any:
            return stub.GetTokenRecord(
                v1.GetTokenRecordRequest(
                    component=component_id(MLP, 0, index), datasets=["first", "nowhere", "second"]
                )
            )

        assert (await read(1)).max_activation == 1.0
        assert (await read(2)).max_activation == 2.0
        assert (await failure_of(read(3))).code == "DATA_LOSS"
        assert (await failure_of(read(4))).code == "NOT_FOUND"
        dataset = v1.DatasetId(
            dataset="second", derived_scalar_type=component_id(MLP, 0, 0).derived_scalar_type
        )
        layers = await stub.ListLayers(v1.ListLayersRequest(dataset=dataset))
        assert list(layers.layer_indices) == [0, 12]
        pages: list[list[int]] = []
        token = ""
        for _ in range(2):
            page = await stub.ListComponents(
                v1.ListComponentsRequest(dataset=dataset, page_size=2, page_token=token)
            )
            pages.append(list(page.component_indices))
            token = page.next_page_token
        assert (pages, token) == ([[1, 2], [3]], "")


async def test_fifty_writers_at_two_services_lose_nothing(place: Place, replicas: Replicas) -> None:
    one, other = replicas.start()[0], replicas.start()[0]
    written = [f"explanation {number} 東" for number in range(50)]
    async with open_aio_channel(one) as first, open_aio_channel(other) as second:
        stubs = [v1.RecordReaderStub(first), v1.RecordReaderStub(second)]
        answers = await asyncio.gather(
            *(
                stubs[number % 2].PutExplanation(put_request(text, root=place.root))
                for number, text in enumerate(written)
            )
        )
        assert not any(answer.replaced for answer in answers)
        for stub in stubs:
            assert sorted(await texts(stub, place)) == sorted(written)
        assert (await stubs[0].PutExplanation(put_request(written[7], root=place.root))).replaced
        listed = await stubs[0].ListExplanations(
            v1.ListExplanationsRequest(component=component_id(MLP, 0, 0), neuron_dataset="first")
        )
        assert {each.text for each in listed.explanations} == set(written)


async def test_explanations_of_token_pairs(place: Place, replicas: Replicas) -> None:
    def request(text: str, label: float = 1.0) -> Any:
        pairs = v1.AttentionSimulation(
            tokens=["a", "b"],
            token_pair_coordinates=to_tensor([[1.0, 0.0], [0.0, 0.0]]),
            token_pair_labels=to_tensor([label, 0.0]),
            predictions=to_tensor([0.75, 0.25]),
        )
        return v1.PutExplanationRequest(
            component=component_id(HEADS, 0, 4),
            explanation_dataset=f"{place.root}/explanations",
            explanation=text,
            scored_attention_simulation=v1.ScoredAttentionSimulation(
                attention_simulations=[pairs], roc_auc_score=0.75
            ),
        )

    address, _ = replicas.start()
    async with open_aio_channel(address) as channel:
        stub = v1.RecordReaderStub(channel)
        written = [f"{number}" for number in range(8)]
        await asyncio.gather(*(stub.PutExplanation(request(text)) for text in written))
        assert sorted(await texts(stub, place, 4, HEADS)) == written
        assert (await stub.PutExplanation(request("0"))).replaced
        answers = stub.GetScoredSimulations(
            v1.GetScoredSimulationsRequest(
                component=component_id(HEADS, 0, 4),
                explanation_dataset=f"{place.root}/explanations",
            )
        )
        answer = await anext(aiter(answers))
        assert answer.explanation.score == 0.75
        (pairs,) = answer.scored_attention_simulation.attention_simulations
        assert list(pairs.tokens) == ["a", "b"]
        assert to_array(pairs.token_pair_coordinates).tolist() == [[1, 0], [0, 0]]
        assert to_array(pairs.token_pair_labels).tolist() == [1, 0]
        assert to_array(pairs.predictions).tolist() == [0.75, 0.25]
        wrong = await failure_of(stub.PutExplanation(request("x", label=2.0)))
        field = "scored_attention_simulation.attention_simulations[0].token_pair_labels"
        assert (wrong.code, wrong.field) == ("INVALID_ARGUMENT", field)
        # Explanations of the other kind are in the file already.
        mixed = put_request("x", 4, place.root)
        assert (await failure_of(stub.PutExplanation(mixed))).code == "FAILED_PRECONDITION"


async def test_a_service_that_is_killed_leaves_whole_files(
    place: Place, replicas: Replicas
) -> None:
    acknowledged: list[str] = []
    address, process = replicas.start()
    async with open_aio_channel(address) as channel:
        stub = v1.RecordReaderStub(channel)

        async def write(writer: int) -> None:
            for number in range(10_000):
                text = f"{writer} {number}"
                await stub.PutExplanation(put_request(text, root=place.root))
                acknowledged.append(text)

        writers = [asyncio.create_task(write(writer)) for writer in range(8)]
        for _ in range(1000):
            await asyncio.sleep(0.02)
            if len(acknowledged) > 30:
                break
        os.kill(process, signal.SIGKILL)
        with suppress(Exception):
            await asyncio.gather(*writers)
        for writer in writers:
            writer.cancel()
    assert len(acknowledged) > 30
    survivor, _ = replicas.start()
    async with open_aio_channel(survivor) as channel:
        stub = v1.RecordReaderStub(channel)
        assert set(acknowledged) <= set(await texts(stub, place))
        await stub.PutExplanation(put_request("afterwards", root=place.root))
        assert "afterwards" in await texts(stub, place)
    if not place.environment:
        assert_one_whole_file(Path(place.root, "explanations", "0"))


def assert_one_whole_file(layer: Path) -> None:
    assert sorted(path.name for path in layer.iterdir()) == [LOCK_FILE, "0.jsonl"]
    results = decode_simulation_results((layer / "0.jsonl").read_bytes(), "0.jsonl")
    assert isinstance(results, NeuronSimulationResults)
