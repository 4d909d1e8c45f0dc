"""Which attended-to tokens a latent of attention's output is active for.

A latent's value at a query is, near by, linear in what the heads write there, and that is a sum
over the tokens that they attend to: (Σ_h P v_k W_O^h) · ∇_x z_n for the token k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from services.scalars.answers.node_lists import NodeList
from services.scalars.autoencoders import AutoencoderSet
from services.scalars.deriving.differentiation import gradient
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    NodeType,
    PassType,
)
from services.scalars.model.taps import RawTensorId
from services.scalars.model.weights import lasting
from services.scalars.vocabulary.node_directions import Captured, Layout
from services.scalars.vocabulary.read_directions import lasting_indices

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

    def of(
        self,
        spec: TokenPairAttributionSpec,
        nodes: NodeList,
        layout: Layout,
        captured: Captured,
        n_tokens: int,
    ) -> TokenPairAttributions:
        """The tokens of each node; a latent that is inactive at its token has none."""
        count = min(spec.count, n_tokens)
        attributed = np.zeros(len(nodes), dtype=bool)
        tokens = np.zeros((2, len(nodes), count), dtype=np.int64)
        values = np.zeros((2, len(nodes), count), dtype=np.float32)
        for node_type, layer, positions in nodes.blocks():
            if not self._attributes(node_type, layout):
                continue
            active, by_token = self._by_token(
                layer,
                nodes.indices[positions][:, :2],
                [captured(each, layer) for each in _LOCATIONS],
            )
            attributed[positions] = active
            for side, largest in enumerate((True, False)):
                best = torch.topk(by_token, count, dim=1, largest=largest)
                tokens[side, positions] = best.indices.cpu().numpy()
                values[side, positions] = best.values.cpu().numpy()
        return TokenPairAttributions(attributed, tokens[0], values[0], tokens[1], values[1])

    def _by_token(
        self, layer: int, indices: NDArray[np.int64], tensors: Sequence[torch.Tensor]
    ) -> tuple[NDArray[np.bool_], torch.Tensor]:
        """Which latents (m,) are active, and what each token contributes to them, (m, S)."""
        autoencoder = self._autoencoders.attention
        if autoencoder is None:
            raise ValueError("there is no autoencoder on attention")
        output, probs, values = tensors
        query, latent = lasting_indices(output.device, indices[:, 0], indices[:, 1])
        rows = output[query]
        with lasting():
            chosen = latent[:, None]
        active = autoencoder.encode(layer, rows).gather(1, chosen)[:, 0]
        slopes = gradient(
            lambda inputs: autoencoder.encode(layer, inputs).gather(1, chosen).sum(), rows
        )
        # What each head would have to write along the gradient, for every value at once.
        along = torch.einsum("hed,md->mhe", self._model.write.attn[layer], slopes)
        per_value = torch.einsum("she,mhe->msh", values, along)
        found = (probs[query] * per_value).sum(dim=2).float()
        usable = (active != 0) & found.isfinite().all(dim=1)
        return usable.cpu().numpy(), torch.where(usable[:, None], found, 0.0)
