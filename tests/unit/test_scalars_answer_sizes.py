"""Answers that a message can't hold are refused with a reason, and large ones let others work."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message

from neuropil import names
from neuropil.scalars import v1 as scalars
from services.scalars.answers.node_lists import NodeList, united
from services.scalars.data_plane import DataPlane
from services.scalars.engine.worker import Engine
from services.scalars.model.locations import NodeType
from services.scalars.model.subject import Subject, load_subject
from services.scalars.service import DerivedScalarsService
from shared.errors import ResourceExhausted
from tests.unit.scalars_checkpoint import write_checkpoint

INFERENCE = scalars.InferenceSpec(prompt="The cat sat on the mat")
ANSWERS: dict[str, tuple[str, Callable[[DerivedScalarsService], Awaitable[Message]]]] = {
    "tokens": (
        "texts",
        lambda service: service.Tokenize(scalars.TokenizeRequest(texts=["a b c d"] * 20), None),
    ),
    "component": (
        "spec",
        lambda service: service.DeriveComponent(
            scalars.DeriveComponentRequest(
                inference=INFERENCE,
                spec=scalars.ComponentSpec(component=names.component_id("mlp_post_act", 1, 0)),
            ),
            None,
        ),
    ),
    "token pairs": (
        "spec",
        lambda service: service.DeriveComponentByTokenPair(
            scalars.DeriveComponentByTokenPairRequest(
                inference=INFERENCE,
                spec=scalars.ComponentByTokenPairSpec(
                    component=names.component_id("attn_qk_probs", 1, 0)
                ),
            ),
            None,
        ),
    ),
    "nodes": (
        "spec",
        lambda service: service.ListTopNodes(
            scalars.ListTopNodesRequest(
                inference=INFERENCE,
                spec=scalars.TopNodesSpec(
                    groups=[
                        scalars.ScalarGroup(
                            group_id=names.GROUP_IDS.value("write_norm"),
                            derived_scalar_types=[
                                names.DERIVED_SCALAR_TYPES.value("mlp_write_norm")
                            ],
                        )
                    ]
                ),
            ),
            None,
        ),
    ),
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


@pytest.fixture(scope="module")
def data_plane(subject: Subject) -> Iterator[DataPlane]:
    engine = Engine(subject.model, subject.autoencoders)
    yield DataPlane(subject, engine)
    engine.close()


@pytest.mark.parametrize("what", ANSWERS)
async def test_an_answer_that_no_message_holds_is_refused(data_plane: DataPlane, what: str) -> None:
    field, ask = ANSWERS[what]
    size = (await ask(DerivedScalarsService(data_plane))).ByteSize()
    with pytest.raises(ResourceExhausted) as caught:
        await ask(DerivedScalarsService(data_plane, 100))
    error = caught.value
    assert (error.reason, error.field) == ("REQUEST_TOO_LARGE", field)
    assert error.metadata["limit_bytes"] == "100"
    assert 100 < int(error.metadata["bytes"]) <= size + 16


async def test_no_text_is_encoded_that_no_message_holds(data_plane: DataPlane) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        await DerivedScalarsService(data_plane, 100).Tokenize(
            scalars.TokenizeRequest(texts=["a b c d" * 10, "a b c d" * 10_000]), None
        )
    assert int(caught.value.metadata["bytes"]) < 10_000


def test_others_work_while_a_long_text_is_encoded(subject: Subject) -> None:
    text = "the cat " * 100_000
    encoded: list[int] = []
    assert longest_wait(lambda: encoded.extend(subject.tokenizer.encode(text))) < 0.5
    assert encoded


def test_others_work_while_many_nodes_are_united() -> None:
    numbers = np.random.default_rng(0).integers(0, 1000, (400_000, 3))
    lists = [
        NodeList((NodeType.MLP_NEURON,), each[:, 0] * 0, each[:, 0] % 7, each)
        for each in (numbers, numbers[::-1])
    ]
    found: list[NodeList] = []
    assert longest_wait(lambda: found.append(united(lists))) < 0.5
    (nodes,) = found
    expected = dict.fromkeys(map(tuple, numbers.tolist()))
    assert list(map(tuple, nodes.indices.tolist())) == list(expected)


def longest_wait(work: Callable[[], None]) -> float:
    """The longest time that another thread can't work, as a part of the time that `work` takes."""
    thread = threading.Thread(target=work)
    started = last = time.perf_counter()
    longest = 0.0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    return longest / (last - started)
