"""What the derived-scalars service does, without a word of how it is called.

Requests come in as the domain's objects and are checked here, results leave as numpy arrays. A face
only translates. Every call is a batch of inferences with named requests, most of one of each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from services.scalars.answers.batch_work import HELD_BYTES, BatchWork, Tools, united_by_name
from services.scalars.answers.components import ComponentByTokenPairSpec
from services.scalars.answers.output_logits import OutputLogits
from services.scalars.answers.ranking import NodeScalars
from services.scalars.answers.results import (
    Array,
    ComponentScalars,
    InferenceAnswer,
    InferenceResult,
    SelectedTensors,
    SpecResult,
    TokenPairTable,
)
from services.scalars.answers.token_pair_attribution import TokenPairAttribution
from services.scalars.engine.jobs import Check, Job
from services.scalars.engine.worker import Engine
from services.scalars.model.locations import LayerIndex
from services.scalars.model.subject import Subject
from services.scalars.passes.inference import (
    InferenceSpec,
    PreparedInference,
    RunResult,
    prepare_inference,
)
from services.scalars.requests.batches import (
    AnySpec,
    BatchInference,
    InferencePlan,
    NamedSpec,
    Planner,
)
from services.scalars.requests.components import ComponentSpec
from services.scalars.requests.selections import Selection
from services.scalars.requests.top_nodes import TopNodesSpec
from services.scalars.vocabulary.node_directions import NodeDirections
from services.scalars.vocabulary.remembered_lists import RememberedLists
from services.scalars.vocabulary.top_tokens import VocabularyProjection, excluded_entries
from services.scalars.vocabulary.vocabulary_lists import VocabularyLists

Result = TypeVar("Result", bound=SpecResult)
Turn = TypeVar("Turn")


class DataPlane:
    """Derives scalars on one subject model.

    Entries of the vocabulary among `excluded` are in no list of tokens. `held_bytes` bounds
    what the inferences of a call hold while they wait for each other.
    """

    def __init__(
        self,
        subject: Subject,
        engine: Engine,
        excluded: Collection[str] = (),
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self.subject = subject
        self._engine = engine
        self._held_bytes = held_bytes
        entries = excluded_entries(subject.tokenizer, excluded)
        vocabulary = VocabularyLists(subject.model, entries)
        self._tools = Tools(
            NodeDirections(subject.model, subject.autoencoders),
            TokenPairAttribution(subject.model, subject.autoencoders),
            vocabulary,
            RememberedLists(),
            VocabularyProjection(subject.model, subject.tokenizer, entries),
            OutputLogits(subject.model),
        )
        self._planner = Planner(
            subject, self._tools.directions, self._tools.attribution, vocabulary
        )

    async def derive(
        self, spec: InferenceSpec, selections: Sequence[Selection]
    ) -> tuple[InferenceResult, list[dict[LayerIndex, Array]]]:
        """Tensors of each selection by layer, in the order of the request."""
        named = tuple(
            NamedSpec(str(position), each, f"selections[{position}]")
            for position, each in enumerate(selections)
        )
        (answer,) = await self.derive_batch([BatchInference(spec, named, "inference")])
        tensors = [each for _, each in answer.results if isinstance(each, SelectedTensors)]
        return answer.inference, [each.by_layer for each in tensors]

    async def derive_component(
        self, spec: InferenceSpec, component: ComponentSpec
    ) -> tuple[InferenceResult, ComponentScalars]:
        """One component's scalars at every token, or token pair where the type is flattened."""
        return await self._derive_one(spec, component, ComponentScalars)

    async def derive_component_by_token_pair(
        self, spec: InferenceSpec, component: ComponentByTokenPairSpec
    ) -> tuple[InferenceResult, TokenPairTable]:
        """One component's scalars by query and key."""
        return await self._derive_one(spec, component, TokenPairTable)

    async def list_top_nodes(
        self, spec: InferenceSpec, top_nodes: TopNodesSpec
    ) -> tuple[InferenceResult, NodeScalars]:
        """The nodes with the largest and the smallest scalars."""
        return await self._derive_one(spec, top_nodes, NodeScalars)

    async def _derive_one(
        self, inference: InferenceSpec, spec: AnySpec, kind: type[Result]
    ) -> tuple[InferenceResult, Result]:
        named = (NamedSpec("", spec, "spec"),)
        (answer,) = await self.derive_batch([BatchInference(inference, named, "inference")])
        ((_, result),) = answer.results
        if not isinstance(result, kind):
            raise TypeError(f"{type(spec).__name__} was answered with {type(result).__name__}")
        return answer.inference, result

    async def derive_batch(self, inferences: Sequence[BatchInference]) -> list[InferenceAnswer]:
        """The answers of several inferences, in the order of the request.

        All are handed to the device at once, so that they run together. Where one fails, or nobody
        waits any more, the others are given up.
        """
        plans = await asyncio.to_thread(self._plan, inferences)
        work = BatchWork(plans, self._tools, self._held_bytes)
        if work.in_one_turn:
            runs = await self._all(
                [self._job(plan, partial(work.derive, at)) for at, plan in enumerate(plans)]
            )
        else:
            listed = await self._all(
                [self._job(plan, partial(work.rank, at)) for at, plan in enumerate(plans)]
            )
            nodes = united_by_name(listed)
            runs = await self._all(
                [
                    self._job(plan, partial(work.derive_with, at, nodes))
                    for at, plan in enumerate(plans)
                ]
            )
        return [
            InferenceAnswer(
                self._inference_result(plan.prepared, run),
                tuple((name, work.results[at][name]) for name in plan.specs),
            )
            for at, (plan, run) in enumerate(zip(plans, runs, strict=True))
        ]

    def _plan(self, inferences: Sequence[BatchInference]) -> list[InferencePlan]:
        prepared = [
            prepare_inference(
                each.inference,
                self.subject.model,
                self.subject.tokenizer,
                each.field,
                self.subject.autoencoders,
            )
            for each in inferences
        ]
        return self._planner.plan(inferences, prepared)

    def _job(self, plan: InferencePlan, derive: Callable[[RunResult, Check], Turn]) -> Job[Turn]:
        return Job(plan.prepared, plan.captures, derive, plan.extra_bytes)

    async def _all(self, jobs: Sequence[Job[Turn]]) -> list[Turn]:
        tasks = [asyncio.ensure_future(self._engine.run(job)) for job in jobs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # The trace of an error holds this frame, and its task the error.
            tasks.clear()

    def _inference_result(self, prepared: PreparedInference, run: RunResult) -> InferenceResult:
        return InferenceResult(
            tokens=prepared.tokens,
            token_strings=tuple(self.subject.tokenizer.decode(t) for t in prepared.tokens),
            loss=_if_finite(run.loss),
            traced_activation=_if_finite(run.traced_activation),
            seconds=run.seconds,
            memory_used_before=run.memory_used_before,
            memory_used_after=run.memory_used_after,
        )


def _if_finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
