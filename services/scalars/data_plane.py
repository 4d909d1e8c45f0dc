"""What the derived-scalars service does, without a word of how it is called.

Requests come in as the domain's objects and are checked here, results leave as numpy arrays. A face
only translates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from services.scalars.catalogue import CATALOGUE, Derivers
from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.store import DerivedScalarStore
from services.scalars.engine import Check, Engine, Job
from services.scalars.inference import (
    InferenceSpec,
    PreparedInference,
    RunResult,
    prepare_inference,
)
from services.scalars.model.locations import (
    ActivationLocationType,
    LayerIndex,
    NodeType,
    PassType,
)
from services.scalars.model.subject import Subject
from services.scalars.model.taps import RawTensorId
from services.scalars.node_lists import INDICES, NodeList
from services.scalars.ranking import NodeScalars, rank_nodes
from services.scalars.selections import (
    ComponentSpec,
    ResolvedSelection,
    Selection,
    resolve_component,
    resolve_selection,
)
from services.scalars.top_nodes import TopNodesSpec, resolve_top_nodes
from services.scalars.top_tokens import TopTokens, VocabularyProjection
from shared.errors import InvalidArgument

Result = TypeVar("Result")

Array = NDArray[np.float32]


@dataclass(frozen=True)
class InferenceResult:
    """What a run gave besides activations; see `RunResult` for units."""

    tokens: tuple[int, ...]
    token_strings: tuple[str, ...]
    loss: float | None
    seconds: float
    memory_used_before: int | None
    memory_used_after: int | None


@dataclass(frozen=True)
class ComponentScalars:
    """One component's scalars, (T,) or (T(T+1)/2,), the nodes they belong to, and top tokens."""

    activations: Array
    nodes: NodeList
    top_tokens: TopTokens | None


class DataPlane:
    """Derives scalars on one subject model."""

    def __init__(self, subject: Subject, engine: Engine, excluded: Collection[str] = ()) -> None:
        self.subject = subject
        self._engine = engine
        self._projection = VocabularyProjection(subject.model, subject.tokenizer, excluded)

    async def tokenize(self, texts: Sequence[str]) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
        """Ids and strings of each text's tokens."""
        tokenizer = self.subject.tokenizer

        def encode() -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
            found = []
            for text in texts:
                ids = tuple(tokenizer.encode(text))
                found.append((ids, tuple(tokenizer.decode(token) for token in ids)))
            return found

        return await asyncio.to_thread(encode)

    async def derive(
        self, spec: InferenceSpec, selections: Sequence[Selection]
    ) -> tuple[InferenceResult, list[dict[LayerIndex, Array]]]:
        """Tensors of each selection by layer, in the order of the request."""
        prepared = await self._prepare(spec)
        resolved = [
            resolve_selection(
                selection,
                self.subject.model.shape,
                len(prepared.tokens),
                has_loss=prepared.loss is not None,
                field=f"selections[{position}]",
                loss_field="inference.loss",
            )
            for position, selection in enumerate(selections)
        ]

        def collect(store: DerivedScalarStore, _: RunResult) -> list[dict[LayerIndex, Array]]:
            return [
                {layer: _array(store, each, layer) for layer in each.layers} for each in resolved
            ]

        return await self._run(prepared, resolved, collect)

    async def derive_component(
        self, spec: InferenceSpec, component: ComponentSpec
    ) -> tuple[InferenceResult, ComponentScalars]:
        """One component's scalars at every token, or token pair where the type is flattened."""
        prepared = await self._prepare(spec)
        resolved = self._component(component, prepared, by_token_pair=False)
        write = (
            self._write_at_first_token(resolved, component) if component.top_token_count else None
        )
        layer = resolved.layers[0]

        def collect(store: DerivedScalarStore, run: RunResult) -> ComponentScalars:
            activations = _array(store, resolved, layer)[:, 0]
            top_tokens = None
            # A node that is inactive at the first token writes nothing there to list.
            if write is not None and activations[0] != 0:
                top_tokens = self._projection.top_tokens(
                    write.direction(run),
                    component.top_token_count,
                    swapped=bool(activations[0] < 0),
                )
            return ComponentScalars(
                activations=activations,
                nodes=component_nodes(resolved, component, len(activations)),
                top_tokens=top_tokens,
            )

        captures = () if write is None else (write.capture,)
        return await self._run(prepared, [resolved], collect, captures)

    async def derive_component_by_token_pair(
        self, spec: InferenceSpec, component: ComponentSpec
    ) -> tuple[InferenceResult, Array]:
        """One component's scalars by query and key, (T, T)."""
        prepared = await self._prepare(spec)
        resolved = self._component(component, prepared, by_token_pair=True)

        def collect(store: DerivedScalarStore, _: RunResult) -> Array:
            return _array(store, resolved, resolved.layers[0])[:, :, 0]

        return await self._run(prepared, [resolved], collect)

    async def list_top_nodes(
        self, spec: InferenceSpec, top_nodes: TopNodesSpec
    ) -> tuple[InferenceResult, NodeScalars]:
        """The nodes with the largest and the smallest scalars."""
        prepared = await self._prepare(spec)
        resolved = resolve_top_nodes(
            top_nodes,
            self.subject.model.shape,
            len(prepared.tokens),
            has_loss=prepared.loss is not None,
            field="spec",
            loss_field="inference.loss",
        )

        def collect(store: DerivedScalarStore, _: RunResult) -> NodeScalars:
            return rank_nodes(resolved, lambda each: store.get(each.dst, each.pass_type))

        return await self._run(prepared, resolved.selections, collect)

    async def _prepare(self, spec: InferenceSpec) -> PreparedInference:
        return await asyncio.to_thread(
            prepare_inference, spec, self.subject.model, self.subject.tokenizer, "inference"
        )

    def _component(
        self, spec: ComponentSpec, prepared: PreparedInference, *, by_token_pair: bool
    ) -> ResolvedSelection:
        return resolve_component(
            spec,
            self.subject.model.shape,
            len(prepared.tokens),
            has_loss=prepared.loss is not None,
            field="spec",
            loss_field="inference.loss",
            by_token_pair=by_token_pair,
        )

    async def _run(
        self,
        prepared: PreparedInference,
        selections: Sequence[ResolvedSelection],
        collect: Callable[[DerivedScalarStore, RunResult], Result],
        extra_captures: Collection[RawTensorId] = (),
    ) -> tuple[InferenceResult, Result]:
        """Runs the model and derives all selections from one graph, then collects the result."""
        derivers = Derivers(CATALOGUE, DstConfig(self.subject.model, derive_gradients=True))
        captures = set(extra_captures)
        layers: dict[tuple[str, PassType], dict[LayerIndex, None]] = {}
        for each in selections:
            captures |= derivers[each.dst.name].raw_tensors(each.pass_type, each.layers)
            wanted = layers.setdefault((each.dst.name, each.pass_type), {})
            wanted.update(dict.fromkeys(each.layers))

        def derive(run: RunResult, check: Check) -> tuple[RunResult, Result]:
            scalars = []
            for (name, pass_type), wanted in layers.items():
                check()
                scalars.append(
                    derivers[name].derive_from_raw(run.raw_store, pass_type, list(wanted))
                )
            return run, collect(DerivedScalarStore(scalars), run)

        extra_bytes = sum(each.n_bytes for each in selections)
        run, result = await self._engine.run(Job(prepared, captures, derive, extra_bytes))
        return self._inference_result(prepared, run), result

    def _inference_result(self, prepared: PreparedInference, run: RunResult) -> InferenceResult:
        return InferenceResult(
            tokens=prepared.tokens,
            token_strings=tuple(self.subject.tokenizer.decode(t) for t in prepared.tokens),
            loss=run.loss if run.loss is not None and np.isfinite(run.loss) else None,
            seconds=run.seconds,
            memory_used_before=run.memory_used_before,
            memory_used_after=run.memory_used_after,
        )

    def _write_at_first_token(
        self, resolved: ResolvedSelection, component: ComponentSpec
    ) -> _FirstTokenWrite:
        """How to find what a node writes to the residual stream at token 0."""
        layer, index = resolved.layers[0], component.component_index
        weights = self.subject.model.write
        forward = PassType.FORWARD
        match resolved.dst.node_type:
            case NodeType.MLP_NEURON if layer is not None:
                row = weights.mlp[layer][index]
                return _FirstTokenWrite(
                    RawTensorId(ActivationLocationType.MLP_POST_ACT, layer, forward),
                    lambda post: post[0, index] * row,
                )
            case NodeType.ATTENTION_HEAD if layer is not None:
                # Token 0 attends to itself alone, so that this is the write of its only pair too.
                matrix = weights.attn[layer][index]
                return _FirstTokenWrite(
                    RawTensorId(ActivationLocationType.ATTN_WEIGHTED_SUM_OF_VALUES, layer, forward),
                    lambda mixed: mixed[0, index] @ matrix,
                )
            case NodeType.LAYER if layer is None:
                return _FirstTokenWrite(
                    RawTensorId(ActivationLocationType.RESID_POST_EMBEDDING, None, forward),
                    lambda embedding: embedding[0],
                )
            case _:
                raise InvalidArgument(
                    f"{resolved.dst.name} is of no node that writes to the residual stream; "
                    "top tokens exist for neurons, heads and the embedding",
                    field="spec.top_token_count",
                )


@dataclass(frozen=True)
class _FirstTokenWrite:
    """The activation that a node's write at token 0 follows from, and how."""

    capture: RawTensorId
    of_activation: Callable[[torch.Tensor], torch.Tensor]

    def direction(self, run: RunResult) -> torch.Tensor:
        """The write, (D,)."""
        captured = run.raw_store.get(self.capture.location, self.capture.pass_type)
        return self.of_activation(captured.activations_by_layer_index[self.capture.layer])


def component_nodes(resolved: ResolvedSelection, component: ComponentSpec, count: int) -> NodeList:
    """The nodes of one component, at every token or token pair."""
    indices = np.full((count, INDICES), -1, dtype=np.int64)
    indices[:, 0] = np.arange(count)
    indices[:, 1] = component.component_index
    layer = resolved.layers[0]
    return NodeList(
        (resolved.dst.node_type,),
        np.zeros(count, dtype=np.int64),
        np.full(count, -1 if layer is None else layer, dtype=np.int64),
        indices,
        component.pass_type,
    )


def _array(store: DerivedScalarStore, selection: ResolvedSelection, layer: LayerIndex) -> Array:
    scalars = store.get(selection.dst, selection.pass_type)
    cut = scalars.activations_by_layer_index[layer][selection.slices]
    array: Array = cut.contiguous().cpu().numpy()
    return array
