"""Streams that nobody reads: what they hold is bounded, and let go of with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from neuropil import names
from neuropil.channel import DEFAULT_MESSAGE_BYTES
from neuropil.scalars import v1
from services.scalars.data_plane import DataPlane
from services.scalars.engine.worker import Engine
from services.scalars.model.subject import load_subject
from services.scalars.service import DerivedScalarsService
from services.scalars.unread import UnreadAnswers
from shared.errors import ResourceExhausted
from tests.unit.scalars_checkpoint import LAYERS, NEURONS, write_checkpoint

N_BYTES = 4 * LAYERS * NEURONS
"""Of the neurons of a single token."""
SELECTION = v1.ScalarSelection(derived_scalar_type=names.DERIVED_SCALAR_TYPES.value("mlp_post_act"))


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[DerivedScalarsService]:
    subject = load_subject("tiny", str(write_checkpoint(tmp_path / "model")), "cpu")
    engine = Engine(subject.model, subject.autoencoders)
    yield DerivedScalarsService(
        DataPlane(subject, engine), DEFAULT_MESSAGE_BYTES, max_unread_bytes=N_BYTES
    )
    engine.close()


def streams(service: DerivedScalarsService) -> list[AsyncIterator[object]]:
    """One of each kind, not begun."""
    inference = v1.InferenceSpec(prompt="a")
    batch = v1.BatchInference(
        inference=inference, specs=[v1.NamedSpec(name="x", selection=SELECTION)]
    )
    return [
        service.Derive(v1.DeriveRequest(inference=inference, selections=[SELECTION]), None),
        service.BatchDerive(v1.BatchDeriveRequest(inferences=[batch]), None),
    ]


@pytest.mark.parametrize("kind", [0, 1])
async def test_unread_answers_are_bounded(service: DerivedScalarsService, kind: int) -> None:
    unread = streams(service)[kind]
    await anext(unread)
    for other in streams(service):
        with pytest.raises(ResourceExhausted) as caught:
            await anext(other)
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_after_seconds is not None
        assert caught.value.metadata["bytes"] == str(N_BYTES)
    # As the server does where a client leaves.
    await unread.aclose()  # type: ignore[attr-defined]
    for other in streams(service):
        assert [each async for each in other]


def test_a_single_answer_may_be_larger() -> None:
    unread = UnreadAnswers(10)
    with unread.held(100), pytest.raises(ResourceExhausted), unread.held(1):
        raise AssertionError
    with unread.held(4), unread.held(6):
        assert unread.n_bytes == 10
    assert unread.n_bytes == 0
