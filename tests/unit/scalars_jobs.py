"""Jobs of a device, and how to have them run together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import torch

from services.scalars.engine.worker import Check, Engine, Job
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.subject import Subject
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import (
    InferenceSpec,
    PreparedInference,
    RunResult,
    prepare_inference,
)
from services.scalars.passes.losses import LossKind, LossSpec
from tests.unit.scalars_gates import Gate, begun, until

PROMPTS = ("The cat", "The dog sat on the mat", " mat", "A cat and a dog")
GRADIENT = RawTensorId(ActivationLocationType.MLP_POST_ACT, 0, PassType.BACKWARD)
PROBS = RawTensorId(ActivationLocationType.ATTN_QK_PROBS, 1, PassType.FORWARD)


def inferences_of(subject: Subject) -> list[PreparedInference]:
    """Prompts of several lengths, each with a loss."""
    loss = LossSpec(LossKind.LOGIT_DIFF, (" cat",))
    return [
        prepare_inference(InferenceSpec(each, loss=loss), subject.model, subject.tokenizer, "i")
        for each in PROMPTS
    ]


def tensors(run: RunResult, check: Check) -> dict[RawTensorId, torch.Tensor]:
    """A derivation: copies of all that was captured."""
    return {target: tensor.clone() for target, tensor in run.raw_store.tensors.items()}


@asynccontextmanager
async def held(engine: Engine, prepared: PreparedInference) -> AsyncIterator[None]:
    """Keeps the worker busy, so that what is queued meanwhile is there together."""
    gate = Gate()
    ended = replace(prepared, tokens=prepared.tokens[:1], loss=None)
    running = asyncio.create_task(engine.run(Job(ended, (), gate.derive)))
    await begun(gate)
    try:
        yield
    finally:
        gate.release.set()
        await running


async def together(engine: Engine, jobs: Sequence[Job[Any]]) -> list[Any]:
    """Runs jobs that are in the queue at the same time; results or what was raised."""
    async with held(engine, jobs[0].prepared):
        tasks = [asyncio.create_task(engine.run(each)) for each in jobs]
        await until(lambda: engine.waiting == len(jobs))
    return await asyncio.gather(*tasks, return_exceptions=True)
