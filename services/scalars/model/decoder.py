"""What the families have in common: layers whose two blocks read a normalised residual stream.

A family says how it embeds tokens, how heads and neurons follow from what they read, and how it
normalises; the order of a pass, its taps, and the blocks that are recomputed alone stand here once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from services.scalars.model.attention import attend
from services.scalars.model.blocks import (
    ALL_PARTS,
    AttentionPart,
    HeadActivations,
    MlpActivations,
    attended,
)
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, ModelShape
from services.scalars.model.products import affine, as_float32
from services.scalars.model.taps import Taps
from services.scalars.model.weights import WriteWeights


class Norm(Protocol):
    """A normalisation whose scale is an activation of its own."""

    @property
    def gain(self) -> Tensor:
        """What each channel is multiplied by, (D,)."""
        ...

    def __call__(self, x: Tensor, taps: Taps, scale: Location, layer: LayerIndex) -> Tensor:
        """Normalises `x`, its scale tapped."""
        ...

    def of(self, x: Tensor, *, detach_scale: bool) -> Tensor:
        """The same without taps, the scale a constant if so wanted."""
        ...


class DecoderLayer(Protocol):
    """Weights that every family's layers have, products applied from the right."""

    @property
    def attn_norm(self) -> Norm: ...

    @property
    def mlp_norm(self) -> Norm: ...

    @property
    def attn_out(self) -> Tensor: ...

    @property
    def attn_out_bias(self) -> Tensor | None: ...

    @property
    def mlp_out(self) -> Tensor: ...

    @property
    def mlp_out_bias(self) -> Tensor | None: ...


Layer = TypeVar("Layer", bound=DecoderLayer)
Positions = TypeVar("Positions")
"""What a family's heads need to know of the positions of their tokens."""


class Decoder(ABC, Generic[Layer, Positions]):
    """A subject model whose family says only what is its own; see `SubjectModel`."""

    def __init__(
        self,
        shape: ModelShape,
        token_embedding: Tensor,
        layers: Sequence[Layer],
        final_norm: Norm,
        unembedding: Tensor,
    ) -> None:
        self.shape = shape
        self.token_embedding = token_embedding
        self.device = token_embedding.device
        self._layers = tuple(layers)
        self._final_norm = final_norm
        heads = (shape.attn_heads, shape.value_channels, shape.residual_stream_channels)
        self.write = WriteWeights(
            mlp=as_float32([layer.mlp_out for layer in layers]),
            attn=as_float32([layer.attn_out.view(heads) for layer in layers]),
            unembedding=unembedding,
            final_norm_gain=final_norm.gain,
            mlp_bias=[layer.mlp_out_bias for layer in layers],
            attn_bias=[layer.attn_out_bias for layer in layers],
        )

    @abstractmethod
    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The residual stream (N, D) that enters the first layer."""

    @abstractmethod
    def _placed(self, positions: Tensor) -> Positions:
        """What heads need to know of tokens at these positions, (N,); the same for all layers."""

    @abstractmethod
    def _heads(
        self, normed: Tensor, layer: Layer, placed: Positions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (N, H, dh); queries and keys scaled by dh^-1/4 each."""

    @abstractmethod
    def _pre_act(self, normed: Tensor, layer: Layer, neurons: Tensor | None = None) -> Tensor:
        """What the neurons' nonlinearity reads, (N, F), or of the neurons named alone."""

    @abstractmethod
    def _post_act(
        self, pre_act: Tensor, normed: Tensor, layer: Layer, neurons: Tensor | None = None
    ) -> Tensor:
        """What the output weights read, in the shape of `pre_act`."""

    def forward(self, tokens: Tensor, taps: Taps, logit_tokens: Tensor | None) -> Tensor | None:
        """See `SubjectModel.forward`."""
        positions = taps.packing.positions
        x = taps(taps.begin(self._embedded(tokens, positions), None), Location.RESID_POST_EMBEDDING)
        placed = self._placed(positions)
        # Without logits the pass ends as soon as everything was tapped that anybody asked for.
        whole = logit_tokens is not None or not taps.ends_in_layers()
        for index, layer in enumerate(self._layers):
            if not whole and taps.complete():
                return None
            x = self._attend(taps.begin(x, index), layer, index, taps, placed)
            if not whole and taps.complete():
                return None
            x = self._mlp(x, layer, index, taps)
        if not whole:
            return None
        x = taps.begin(x, self.shape.layers)
        x = self._final_norm(x, taps, Location.RESID_FINAL_LAYER_NORM_SCALE, None)
        x = taps(x, Location.RESID_POST_FINAL_LAYER_NORM)
        return None if logit_tokens is None else x[logit_tokens] @ self.write.unembedding.T

    def attention_heads(
        self,
        layer: int,
        residual: Tensor,
        *,
        attached: frozenset[AttentionPart] = ALL_PARTS,
        detach_scale: bool = False,
    ) -> HeadActivations:
        """See `SubjectModel.attention_heads`."""
        positions = torch.arange(residual.shape[0], device=self.device)
        parts = self.attention_parts(layer, residual, positions, detach_scale=detach_scale)
        return attended(*parts, attached=attached)

    def attention_parts(
        self, layer: int, residual: Tensor, positions: Tensor, *, detach_scale: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `SubjectModel.attention_parts`."""
        weights = self._layers[layer]
        normed = weights.attn_norm.of(residual, detach_scale=detach_scale)
        return self._heads(normed, weights, self._placed(positions))

    def attention_output(self, layer: int, mixed: Tensor) -> Tensor:
        """See `SubjectModel.attention_output`."""
        weights = self._layers[layer]
        return affine(mixed.flatten(1), weights.attn_out, weights.attn_out_bias)

    def mlp_neurons(
        self,
        layer: int,
        residual: Tensor,
        *,
        detach_scale: bool = False,
        neurons: Tensor | None = None,
    ) -> MlpActivations:
        """See `SubjectModel.mlp_neurons`."""
        weights = self._layers[layer]
        normed = weights.mlp_norm.of(residual, detach_scale=detach_scale)
        pre = self._pre_act(normed, weights, neurons)
        return MlpActivations(pre, self._post_act(pre, normed, weights, neurons))

    def mlp_output(self, layer: int, post_act: Tensor) -> Tensor:
        """See `SubjectModel.mlp_output`."""
        weights = self._layers[layer]
        return affine(post_act, weights.mlp_out, weights.mlp_out_bias)

    def logits(self, residual: Tensor, *, detach_scale: bool = False) -> Tensor:
        """See `SubjectModel.logits`."""
        normed = self._final_norm.of(residual, detach_scale=detach_scale)
        return normed @ self.write.unembedding.T

    def _attend(self, x: Tensor, layer: Layer, index: int, taps: Taps, placed: Positions) -> Tensor:
        normed = layer.attn_norm(x, taps, Location.ATTN_INPUT_LAYER_NORM_SCALE, index)
        normed = taps(normed, Location.RESID_POST_ATTN_LAYER_NORM, index)
        q, k, v = self._heads(normed, layer, placed)
        q = taps(q, Location.ATTN_QUERY, index)
        k = taps(k, Location.ATTN_KEY, index)
        v = taps(v, Location.ATTN_VALUE, index)
        mixed = attend(q, k, v, taps, index)
        mixed = taps(mixed, Location.ATTN_WEIGHTED_SUM_OF_VALUES, index)
        delta = affine(mixed.flatten(1), layer.attn_out, layer.attn_out_bias)
        delta = taps(delta, Location.RESID_DELTA_ATTN, index)
        return taps(x + delta, Location.RESID_POST_ATTN, index)

    def _mlp(self, x: Tensor, layer: Layer, index: int, taps: Taps) -> Tensor:
        normed = layer.mlp_norm(x, taps, Location.MLP_INPUT_LAYER_NORM_SCALE, index)
        normed = taps(normed, Location.RESID_POST_MLP_LAYER_NORM, index)
        pre = taps(self._pre_act(normed, layer), Location.MLP_PRE_ACT, index)
        post = taps(self._post_act(pre, normed, layer), Location.MLP_POST_ACT, index)
        delta = affine(post, layer.mlp_out, layer.mlp_out_bias)
        delta = taps(delta, Location.RESID_DELTA_MLP, index)
        return taps(x + delta, Location.RESID_POST_MLP, index)
