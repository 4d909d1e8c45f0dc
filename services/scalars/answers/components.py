"""One component at every token or token pair, and what its write promotes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.answers.derivation import Derivation
from services.scalars.answers.node_lists import INDICES, NodeList
from services.scalars.answers.results import ComponentScalars, TokenPairTable
from services.scalars.catalogue import CATALOGUE, Requirement
from services.scalars.model.locations import LayerIndex
from services.scalars.model.taps import RawTensorId
from services.scalars.requests.components import ComponentSpec
from services.scalars.requests.selections import ResolvedSelection
from services.scalars.vocabulary.node_directions import Layout, NodeDirections
from services.scalars.vocabulary.scored_tokens import TokenScoring
from services.scalars.vocabulary.top_tokens import TopTokens, VocabularyProjection
from shared.errors import InvalidArgument


@dataclass(frozen=True)
class ComponentByTokenPairSpec:
    """One component at every query and key."""

    dst: str
    layer_index: LayerIndex
    component_index: int


@dataclass(frozen=True)
class ResolvedComponent:
    """A checked request for one component; `selection` is its own scalars at its layer."""

    spec: ComponentSpec | ComponentByTokenPairSpec
    selection: ResolvedSelection
    captures: frozenset[RawTensorId] = frozenset()

    @property
    def layer(self) -> LayerIndex:
        """Its layer."""
        return self.selection.layers[0]

    @property
    def layout(self) -> Layout:
        """What the indices of its nodes count."""
        return {self.selection.dst.node_type: self.selection.dst.dimensions}

    def nodes(self, tokens: NDArray[np.int64]) -> NodeList:
        """Its nodes at these tokens or token pairs."""
        indices = np.full((len(tokens), INDICES), -1, dtype=np.int64)
        indices[:, 0] = tokens
        indices[:, 1] = self.spec.component_index
        return NodeList(
            (self.selection.dst.node_type,),
            np.zeros(len(tokens), dtype=np.int64),
            np.full(len(tokens), -1 if self.layer is None else self.layer, dtype=np.int64),
            indices,
            self.selection.pass_type,
        )


def with_top_tokens(
    resolved: ResolvedComponent, directions: NodeDirections, count: int, field: str
) -> ResolvedComponent:
    """The same, checked for top tokens, with what a run must capture for them.

    Raises InvalidArgument where the component writes nothing to the residual stream.
    """
    dst = resolved.selection.dst
    if count == 0 or _reads_vocabulary(dst.name):
        return resolved
    # A scalar that has a layer or none has all of its nodes so.
    wanted = {
        target
        for target in directions.captures(TokenScoring.UPVOTED_OUTPUT_TOKENS, resolved.layout)
        if target.layer == resolved.layer
    }
    if not wanted:
        raise InvalidArgument(
            f"{dst.name} is of no node that writes to the residual stream; "
            "top tokens exist for neurons, heads, latents and the embedding",
            field=f"{field}.top_token_count",
        )
    return replace(resolved, captures=frozenset(wanted))


def _reads_vocabulary(name: str) -> bool:
    """Whether a scalar is of what a node reads of each vocabulary entry."""
    return Requirement.ACTIVATION_INDEX in CATALOGUE[name].requirements


def component_scalars(
    resolved: ResolvedComponent,
    derivation: Derivation,
    directions: NodeDirections,
    projection: VocabularyProjection,
) -> ComponentScalars:
    """The component at every token, with its top tokens where they are asked for."""
    tensor = derivation.scalars(resolved.selection).activations_by_layer_index[resolved.layer]
    activations = tensor[resolved.selection.slices][:, 0].float().cpu().numpy().copy()
    spec = resolved.spec
    top_tokens = None
    if isinstance(spec, ComponentSpec) and spec.top_token_count:
        top_tokens = _top_tokens(
            resolved, spec.top_token_count, tensor, activations, derivation, directions, projection
        )
    return ComponentScalars(
        activations, resolved.nodes(np.arange(len(activations), dtype=np.int64)), top_tokens
    )


def _top_tokens(
    resolved: ResolvedComponent,
    count: int,
    tensor: Tensor,
    activations: NDArray[np.float32],
    derivation: Derivation,
    directions: NodeDirections,
    projection: VocabularyProjection,
) -> TopTokens | None:
    """Top tokens of the write at the first token; None where the component is inactive there."""
    if _reads_vocabulary(resolved.selection.dst.name):
        scores = tensor[0].float()
        return projection.top_of(scores, count) if bool((scores != 0).any()) else None
    if activations[0] == 0 or not np.isfinite(activations[0]):
        return None
    (found,) = directions.of(
        TokenScoring.UPVOTED_OUTPUT_TOKENS,
        resolved.nodes(np.zeros(1, dtype=np.int64)),
        resolved.layout,
        derivation.captured,
        derivation.check,
    )
    vector = found.vectors(np.zeros(1, dtype=np.int64))[0].float()
    length = vector.norm()
    write = vector * (found.factors[0] / torch.where(length == 0, 1.0, length))
    if not bool(write.isfinite().all()):
        return None
    return projection.top_tokens(write, count, swapped=bool(activations[0] < 0))


def token_pair_table(resolved: ResolvedComponent, derivation: Derivation) -> TokenPairTable:
    """The component at every query and key."""
    tensor = derivation.scalars(resolved.selection).activations_by_layer_index[resolved.layer]
    return TokenPairTable(tensor[resolved.selection.slices][:, :, 0].float().cpu().numpy().copy())
