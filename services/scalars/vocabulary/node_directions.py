"""Which direction of the residual stream each node of a list writes or reads, and how strongly."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.answers.node_lists import NodeList
from services.scalars.autoencoders import Autoencoder, AutoencoderSet
from services.scalars.deriving.residual_points import entering_attention, entering_mlp
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    LayerIndex,
    NodeType,
    PassType,
)
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.nodes import LATENT_TYPES
from services.scalars.vocabulary.read_directions import (
    head_read_bytes,
    head_reads,
    latent_reads,
    mlp_read_bytes,
    neuron_read_directions,
    neuron_read_lengths,
)
from services.scalars.vocabulary.scored_tokens import Directions, TokenScoring, lengths

Column = NDArray[np.int64]
Captured = Callable[[ActivationLocationType, LayerIndex], Tensor]
"""Gives a tensor of the forward pass."""
Layout = Mapping[NodeType, tuple[Dimension, ...]]
"""What the indices of the nodes of a type count."""

_PARTS = {
    TokenScoring.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q: AttentionPart.QUERY,
    TokenScoring.INPUT_TOKENS_THAT_UPVOTE_ATTN_K: AttentionPart.KEY,
}
_TOKEN_PAIRS = (
    (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS, Dimension.ATTN_HEADS),
    (Dimension.SEQUENCE_TOKEN_PAIRS, Dimension.ATTN_HEADS),
)
_BY_TOKEN = Dimension.SEQUENCE_TOKENS
_KEPT, _PASSING = 3, 3
"""Copies of a direction: until all are projected, and besides while it is found."""


class NodeDirections:
    """Directions of nodes of a model and its autoencoders."""

    def __init__(self, model: SubjectModel, autoencoders: AutoencoderSet) -> None:
        self._model = model
        self._autoencoders = autoencoders

    def captures(self, scoring: TokenScoring, layout: Layout) -> frozenset[RawTensorId]:
        """The tensors of a run that the directions of such nodes take."""
        layers = range(self._model.shape.layers)
        found: set[RawTensorId] = set()
        for node_type, dimensions in layout.items():
            for layer in (None, *layers):
                found.update(
                    RawTensorId(location, at, PassType.FORWARD)
                    for location, at in self._needed(scoring, node_type, dimensions, layer)
                )
        return frozenset(found)

    def n_bytes(self, nodes: int) -> int:
        """Memory that the directions of so many nodes take, from above."""
        return _KEPT * 4 * nodes * self._model.shape.residual_stream_channels

    def finding_bytes(self, scoring: TokenScoring, nodes: int, n_tokens: int) -> int:
        """Memory that finding them takes besides, from above, and only until they are found."""
        copies = _PASSING * 4 * nodes * self._model.shape.residual_stream_channels
        if scoring in _PARTS:
            return copies + head_read_bytes(self._model, n_tokens)
        if scoring is TokenScoring.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return copies + mlp_read_bytes(self._model, nodes)
        return copies

    def _needed(
        self,
        scoring: TokenScoring,
        node_type: NodeType,
        dimensions: tuple[Dimension, ...],
        layer: LayerIndex,
    ) -> Iterator[tuple[ActivationLocationType, LayerIndex]]:
        """Names of the tensors that nodes of a type and layer take; none where they have none."""
        location = ActivationLocationType
        if layer is None:
            if self._is_embedding(scoring, node_type, dimensions):
                yield location.RESID_POST_EMBEDDING, None
            return
        autoencoder = self._mlp_autoencoder(scoring, node_type, layer)
        if scoring is TokenScoring.UPVOTED_OUTPUT_TOKENS:
            if node_type is NodeType.MLP_NEURON:
                yield location.MLP_POST_ACT, layer
            elif node_type is NodeType.ATTENTION_HEAD and dimensions in _TOKEN_PAIRS:
                yield location.ATTN_QK_PROBS, layer
                yield location.ATTN_VALUE, layer
            elif node_type is NodeType.ATTENTION_HEAD and dimensions[0] is _BY_TOKEN:
                yield location.ATTN_WEIGHTED_SUM_OF_VALUES, layer
            elif autoencoder is not None and dimensions[0] is _BY_TOKEN:
                yield autoencoder.latent_location, layer
        elif scoring is TokenScoring.INPUT_TOKENS_THAT_UPVOTE_MLP:
            if node_type is NodeType.MLP_NEURON or autoencoder is not None:
                point = entering_mlp(layer)
                yield point.location, point.layer
        elif node_type is NodeType.ATTENTION_HEAD and dimensions in _TOKEN_PAIRS:
            point = entering_attention(layer)
            yield point.location, point.layer

    def of(
        self,
        scoring: TokenScoring,
        nodes: NodeList,
        layout: Layout,
        captured: Captured,
        check: Callable[[], None],
    ) -> list[Directions]:
        """Directions of the nodes of a list that have one; `check` is called now and then."""
        found = []
        for node_type, number, positions in nodes.blocks():
            check()
            layer = None if number < 0 else number
            dimensions = layout[node_type]
            needed = list(self._needed(scoring, node_type, dimensions, layer))
            if not needed:
                continue
            indices = _indices(nodes.indices[positions], dimensions)
            tensors = [captured(*each) for each in needed]
            if layer is None:
                found.append(_embedding(positions, indices, tensors[0]))
            elif scoring is TokenScoring.UPVOTED_OUTPUT_TOKENS:
                found.append(self._write(node_type, layer, positions, indices, tensors))
            elif scoring is TokenScoring.INPUT_TOKENS_THAT_UPVOTE_MLP:
                found.append(
                    self._mlp_read(node_type, layer, positions, indices, tensors[0], check)
                )
            else:
                found.append(self._head_read(scoring, layer, positions, indices, tensors[0], check))
        return found

    def _is_embedding(
        self, scoring: TokenScoring, node_type: NodeType, dimensions: tuple[Dimension, ...]
    ) -> bool:
        return (
            scoring is TokenScoring.UPVOTED_OUTPUT_TOKENS
            and node_type is NodeType.LAYER
            and dimensions[0] is _BY_TOKEN
        )

    def _mlp_autoencoder(
        self, scoring: TokenScoring, node_type: NodeType, layer: int
    ) -> Autoencoder | None:
        """The autoencoder whose latents are such nodes; for reads only one on the MLP."""
        if node_type not in LATENT_TYPES:
            return None
        found = self._autoencoders.for_node_type(node_type)
        if found is None or layer not in found:
            return None
        writes = scoring is TokenScoring.UPVOTED_OUTPUT_TOKENS
        return found if writes or found is self._autoencoders.mlp else None

    def _write(
        self,
        node_type: NodeType,
        layer: int,
        positions: Column,
        indices: Column,
        tensors: list[Tensor],
    ) -> Directions:
        write = self._model.write
        first = tensors[0]
        device = first.device
        if node_type is NodeType.ATTENTION_HEAD:
            if indices.shape[1] == 3:
                source, index = tensors[1], indices[:, 1:]
                active = first[tuple(torch.from_numpy(indices.T).to(device))]
            else:
                source, index = first, indices
                active = torch.ones(len(positions), device=device)
            unique, which = np.unique(index, axis=0, return_inverse=True)
            token, head = torch.from_numpy(unique.T).to(device)
            values = source[token, head]
            # A head at a time: its matrix is large, and not copied for every token.
            matrices = write.attn[layer]
            vectors = values.new_zeros((len(unique), matrices.shape[2]))
            for each in np.unique(unique[:, 1]).tolist():
                mine = head == each
                vectors[mine] = values[mine] @ matrices[each]
            keys = [(layer, "head", *each) for each in index.tolist()]
            return _located(positions, keys, vectors, which, active, constant=False)
        active = first[tuple(torch.from_numpy(indices.T).to(device))]
        unique, which = np.unique(indices[:, 1], return_inverse=True)
        rows = torch.from_numpy(unique).to(device)
        if node_type is NodeType.MLP_NEURON:
            vectors = write.mlp[layer][rows]
        else:
            autoencoder = self._autoencoders.for_node_type(node_type)
            if autoencoder is None:
                raise ValueError(f"no autoencoder has the nodes {node_type.value}")
            vectors = autoencoder.write_directions(layer, write, rows)
        keys = [(layer, node_type, each) for each in indices[:, 1].tolist()]
        return _located(positions, keys, vectors, which, active, constant=True)

    def _mlp_read(
        self,
        node_type: NodeType,
        layer: int,
        positions: Column,
        indices: Column,
        residual: Tensor,
        check: Callable[[], None],
    ) -> Directions:
        model, tokens, which = self._model, indices[:, 0], indices[:, 1]
        if node_type is NodeType.MLP_NEURON:
            # The layer norm's scale alone makes a neuron's differ from token to token.
            return Directions(
                positions,
                [(layer, node_type, each) for each in which.tolist()],
                lambda some: neuron_read_directions(model, layer, residual, which[some], check),
                neuron_read_lengths(model, layer, residual, tokens, which, check),
                constant=True,
            )
        autoencoder = self._autoencoders.for_node_type(node_type)
        if autoencoder is None:
            raise ValueError(f"no autoencoder has the nodes {node_type.value}")
        vectors = latent_reads(model, autoencoder, layer, residual, tokens, which, check)
        return _read(positions, [(layer, node_type, *each) for each in indices.tolist()], vectors)

    def _head_read(
        self,
        scoring: TokenScoring,
        layer: int,
        positions: Column,
        indices: Column,
        residual: Tensor,
        check: Callable[[], None],
    ) -> Directions:
        pairs, heads = indices[:, :2], indices[:, 2]
        vectors = head_reads(self._model, _PARTS[scoring], layer, residual, pairs, heads, check)
        keys = [(layer, "head", *each) for each in indices.tolist()]
        return _read(positions, keys, vectors)


def _indices(given: Column, dimensions: tuple[Dimension, ...]) -> Column:
    """A node's own indices; those of a flattened token pair as query and key."""
    used = given[:, : len(dimensions)]
    if dimensions[0] is not Dimension.SEQUENCE_TOKEN_PAIRS:
        return used
    pair = used[:, 0]
    query = ((np.sqrt(8 * pair + 1) - 1) // 2).astype(np.int64)
    return np.column_stack([query, pair - query * (query + 1) // 2, used[:, 1:]])


def _embedding(positions: Column, indices: Column, embedding: Tensor) -> Directions:
    tokens, which = np.unique(indices[:, 0], return_inverse=True)
    vectors = embedding[torch.from_numpy(tokens).to(embedding.device)]
    keys = [(None, "embedding", each) for each in indices[:, 0].tolist()]
    ones = torch.ones(len(positions), device=embedding.device)
    return _located(positions, keys, vectors, which, ones, constant=False)


def _located(
    positions: Column,
    keys: Sequence[Hashable],
    vectors: Tensor,
    which: Column,
    active: Tensor,
    *,
    constant: bool,
) -> Directions:
    """Nodes that write their activation times one of the vectors each."""
    which = which.reshape(-1)
    chosen = torch.from_numpy(which).to(vectors.device)
    return Directions(
        positions,
        keys,
        lambda some: vectors[chosen[torch.from_numpy(some).to(vectors.device)]],
        active.float() * lengths(vectors)[chosen],
        constant,
    )


def _read(positions: Column, keys: Sequence[Hashable], vectors: Tensor) -> Directions:
    """Nodes that read a vector each, which depends on the run."""
    return Directions(
        positions,
        keys,
        lambda some: vectors[torch.from_numpy(some).to(vectors.device)],
        lengths(vectors),
        constant=False,
    )
