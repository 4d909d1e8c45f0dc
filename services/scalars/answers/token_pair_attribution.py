"""Which attended-to tokens a latent of attention's output is active for.

A latent's value at a query is, near by, linear in what the heads write there, and that is a sum
over the tokens that they attend to: (Σ_h P v_k W_O^h) · ∇_x z_n for the token k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.answers.node_lists import NodeList
from services.scalars.autoencoders import Autoencoder, AutoencoderSet
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    NodeType,
    PassType,
)
from services.scalars.model.taps import RawTensorId
from services.scalars.vocabulary.node_directions import Captured, Layout

_PART_BYTES = 32 << 20
_LOCATIONS = (
    ActivationLocationType.RESID_DELTA_ATTN,
    ActivationLocationType.ATTN_QK_PROBS,
    ActivationLocationType.ATTN_VALUE,
)


@dataclass(frozen=True)
class TokenPairAttributionSpec:
    """How many attended-to tokens to list for each of which top nodes."""

    count: int
    depends_on: str


@dataclass(frozen=True, eq=False)
class TokenPairAttributions:
    """For each of n nodes the attended-to tokens with the largest and the smallest attribution.

    Tokens and values have the shape (n, k); `top` begins with the largest, `bottom` with the
    smallest. Nodes where `attributed` is false have none.
    """

    attributed: NDArray[np.bool_]
    top_tokens: NDArray[np.int64]
    top_values: NDArray[np.float32]
    bottom_tokens: NDArray[np.int64]
    bottom_values: NDArray[np.float32]

    @property
    def n_bytes(self) -> int:
        """What it keeps in memory."""
        return self.attributed.nbytes + 2 * (self.top_tokens.nbytes + self.top_values.nbytes)


class TokenPairAttribution:
    """Attributes latents of attention's output to the tokens attended to."""

    def __init__(self, model: SubjectModel, autoencoders: AutoencoderSet) -> None:
        self._model = model
        self._autoencoders = autoencoders

    def _attributes(self, node_type: NodeType, layout: Layout) -> bool:
        found = self._autoencoders.for_node_type(node_type)
        return (
            found is not None
            and found is self._autoencoders.attention
            and layout[node_type][0] is Dimension.SEQUENCE_TOKENS
        )

    def captures(self, layout: Layout) -> frozenset[RawTensorId]:
        """The tensors of a run that it takes for such nodes."""
        autoencoder = self._autoencoders.attention
        if autoencoder is None or not any(self._attributes(each, layout) for each in layout):
            return frozenset()
        return frozenset(
            RawTensorId(location, layer, PassType.FORWARD)
            for location in _LOCATIONS
            for layer in autoencoder.layers
        )

    def n_bytes(self, nodes: int, count: int, n_tokens: int) -> int:
        """Memory that attributing so many nodes takes, from above."""
        autoencoder = self._autoencoders.attention
        if autoencoder is None:
            return 0
        latents = max(autoencoder.latent_count(layer) for layer in autoencoder.layers)
        of_parts = max(
            min(number, _at_once(each)) * each
            for number, each in (
                (n_tokens, _encoded_bytes(latents)),
                (nodes, self._bytes_of_one(n_tokens)),
            )
        )
        return of_parts + nodes * (24 * min(count, n_tokens) + 64)

    def _bytes_of_one(self, n_tokens: int) -> int:
        """What a latent takes: its slope along each head, and its products with all values."""
        shape = self._model.shape
        return 4 * (
            4 * shape.residual_stream_channels
            + shape.attn_heads * (2 * shape.value_channels + 4 * n_tokens)
        )

    def of(
        self,
        spec: TokenPairAttributionSpec,
        nodes: NodeList,
        layout: Layout,
        captured: Captured,
        check: Callable[[], None],
    ) -> TokenPairAttributions:
        """The tokens of each node; a latent that is inactive at its token has none.

        `check` is called now and then, and may raise.
        """
        blocks = [each for each in nodes.blocks() if self._attributes(each[0], layout)]
        n_tokens = len(captured(_LOCATIONS[0], blocks[0][1])) if blocks else 0
        count = min(spec.count, n_tokens)
        attributed = np.zeros(len(nodes), dtype=bool)
        tokens = np.zeros((2, len(nodes), count), dtype=np.int64)
        values = np.zeros((2, len(nodes), count), dtype=np.float32)
        for _, layer, positions in blocks:
            indices = nodes.indices[positions][:, :2]
            output, probs, head_values = (captured(each, layer) for each in _LOCATIONS)
            active = np.flatnonzero(self._active(layer, indices, output, check))
            step = _at_once(self._bytes_of_one(n_tokens))
            for first in range(0, len(active), step):
                check()
                some = active[first : first + step]
                by_token = self._by_token(layer, indices[some], probs, head_values)
                finite = by_token.isfinite().all(dim=1).cpu().numpy()
                by_token = by_token[torch.from_numpy(finite).to(by_token.device)]
                here = positions[some[finite]]
                attributed[here] = True
                for side, largest in enumerate((True, False)):
                    best = torch.topk(by_token, count, dim=1, largest=largest)
                    tokens[side, here] = best.indices.cpu().numpy()
                    values[side, here] = best.values.cpu().numpy()
        return TokenPairAttributions(attributed, tokens[0], values[0], tokens[1], values[1])

    def _active(
        self,
        layer: int,
        indices: NDArray[np.int64],
        output: Tensor,
        check: Callable[[], None],
    ) -> NDArray[np.bool_]:
        """Which latents (m,) are active at their tokens."""
        autoencoder = self._of_attention()
        queries, which = np.unique(indices[:, 0], return_inverse=True)
        found = np.zeros(len(indices), dtype=bool)
        step = _at_once(_encoded_bytes(autoencoder.latent_count(layer)))
        for first in range(0, len(queries), step):
            check()
            rows = torch.from_numpy(queries[first : first + step]).to(output.device)
            active = autoencoder.encode(layer, output[rows]) > 0
            here = np.flatnonzero((which >= first) & (which < first + step))
            at = torch.from_numpy(np.stack([which[here] - first, indices[here, 1]]))
            row, latent = at.to(output.device)
            found[here] = active[row, latent].cpu().numpy()
        return found

    def _by_token(
        self, layer: int, indices: NDArray[np.int64], probs: Tensor, values: Tensor
    ) -> Tensor:
        """What each token contributes to active latents (m, 2), (m, S)."""
        query, latent = torch.from_numpy(indices.T).to(values.device)
        # An active latent rises by what is written along its row of the encoder.
        slopes = self._of_attention().encoder(layer)[latent].to(values.dtype)
        # What each head would have to write along it, for every value at once.
        along = torch.einsum("hed,md->mhe", self._model.write.attn[layer], slopes)
        per_value = torch.einsum("she,mhe->msh", values, along)
        return (probs[query] * per_value).sum(dim=2).float()

    def _of_attention(self) -> Autoencoder:
        autoencoder = self._autoencoders.attention
        if autoencoder is None:
            raise ValueError("there is no autoencoder on attention")
        return autoencoder


def _encoded_bytes(latents: int) -> int:
    """What encoding a token takes: its latents before and after the activation, and masks."""
    return 4 * 8 * latents


def _at_once(bytes_of_one: int) -> int:
    return max(1, _PART_BYTES // bytes_of_one)
