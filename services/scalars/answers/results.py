"""What is answered: the domain's results, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.scalars.answers.node_lists import NodeList
from services.scalars.answers.ranking import NodeScalars
from services.scalars.answers.token_pair_attribution import TokenPairAttributions
from services.scalars.model.locations import LayerIndex
from services.scalars.vocabulary.scored_tokens import ScoredTokens
from services.scalars.vocabulary.top_tokens import TopTokens

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
    traced_activation: float | None = None


@dataclass(frozen=True)
class ComponentScalars:
    """One component's scalars, (T,) or (T(T+1)/2,), the nodes they belong to, and top tokens."""

    activations: Array
    nodes: NodeList
    top_tokens: TopTokens | None


@dataclass(frozen=True)
class TokenPairTable:
    """One component's scalars by query and key, (T, T)."""

    scalars: Array


@dataclass(frozen=True)
class SelectedTensors:
    """A selection's tensors by layer, cut to its ranges."""

    by_layer: dict[LayerIndex, Array]


SpecResult = (
    ComponentScalars
    | TokenPairTable
    | NodeScalars
    | ScoredTokens
    | TokenPairAttributions
    | SelectedTensors
)
"""The answer to one request on an inference."""


@dataclass(frozen=True)
class InferenceAnswer:
    """What was derived from one inference, in the order of its requests."""

    inference: InferenceResult
    results: tuple[tuple[str, SpecResult], ...]

    @property
    def tensor_bytes(self) -> int:
        """What its selections take."""
        return sum(
            array.nbytes
            for _, each in self.results
            if isinstance(each, SelectedTensors)
            for array in each.by_layer.values()
        )

    def __getitem__(self, name: str) -> SpecResult:
        """The answer to the request of a name; KeyError where there is none."""
        return dict(self.results)[name]
