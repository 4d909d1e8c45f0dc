"""The Llama family: RMS norms, rotary positions, grouped-query attention, gated MLPs.

Llama, Mistral, Qwen2 and Qwen3 (dense). Keys and values that several query heads share are seen
once a query head, so that every tensor has the shape that it has without groups; a gradient is that
head's own. Of a gated MLP, `mlp.pre_act` is what the gate's nonlinearity reads and `mlp.post_act`
the gate times the other factor, which is what the output weights read. A norm's scale is
sqrt(mean(x^2) + epsilon).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from services.scalars.model.attention import attend
from services.scalars.model.blocks import (
    ALL_PARTS,
    AttentionPart,
    HeadActivations,
    MlpActivations,
    attended,
)
from services.scalars.model.checkpoint import Checkpoint
from services.scalars.model.llama_config import LlamaConfig, read_llama_config
from services.scalars.model.llama_weights import LlamaLayer, LlamaWeights, read_weights
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.products import affine, as_float32
from services.scalars.model.rotary import RotaryPositions, Rotation, read_rotary
from services.scalars.model.taps import Taps
from services.scalars.model.weights import WriteWeights


class Llama:
    """A checkpoint of the Llama family as a subject model."""

    def __init__(self, config: LlamaConfig, weights: LlamaWeights, rotary: RotaryPositions) -> None:
        shape = config.shape
        self.shape = shape
        self.token_embedding = weights.embedding
        self.device = weights.embedding.device
        self.weight_bytes = weights.n_bytes
        self._layers = weights.layers
        self._final_norm = weights.final_norm
        self._rotary = rotary
        self._heads_per_group = shape.attn_heads // config.kv_heads
        heads = (shape.attn_heads, shape.value_channels, shape.residual_stream_channels)
        layers = weights.layers
        self.write = WriteWeights(
            mlp=as_float32([layer.mlp_out for layer in layers]),
            attn=as_float32([layer.attn_out.view(heads) for layer in layers]),
            unembedding=weights.unembedding,
            final_norm_gain=weights.final_norm.gain,
            mlp_bias=[layer.mlp_out_bias for layer in layers],
            attn_bias=[layer.attn_out_bias for layer in layers],
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: torch.device) -> Llama:
        """Takes the weights of a checkpoint.

        Raises ConfigurationError where its configuration isn't served, or its weights don't fit.
        """
        config = read_llama_config(checkpoint)
        rotary = read_rotary(checkpoint, config.shape.query_and_key_channels, device)
        return cls(config, read_weights(checkpoint, config, device), rotary)

    def forward(self, tokens: Tensor, taps: Taps, logit_tokens: Tensor | None) -> Tensor | None:
        """See `SubjectModel.forward`."""
        x = self.token_embedding[tokens]
        x = taps(taps.begin(x, None), Location.RESID_POST_EMBEDDING)
        rotation = self._rotation(taps.packing.positions)
        # Without logits the pass ends as soon as everything was tapped that anybody asked for.
        whole = logit_tokens is not None or not taps.ends_in_layers()
        for index, layer in enumerate(self._layers):
            if not whole and taps.complete():
                return None
            x = self._attend(taps.begin(x, index), layer, index, taps, rotation)
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
        return self._heads(normed, weights, self._rotation(positions))

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

        def product(matrix: Tensor, bias: Tensor | None) -> Tensor:
            if neurons is None:
                return affine(normed, matrix, bias)
            return affine(normed, matrix[:, neurons], None if bias is None else bias[neurons])

        pre = product(weights.mlp_gate, weights.mlp_gate_bias)
        up = product(weights.mlp_up, weights.mlp_up_bias)
        return MlpActivations(pre, functional.silu(pre) * up)

    def mlp_output(self, layer: int, post_act: Tensor) -> Tensor:
        """See `SubjectModel.mlp_output`."""
        weights = self._layers[layer]
        return affine(post_act, weights.mlp_out, weights.mlp_out_bias)

    def logits(self, residual: Tensor, *, detach_scale: bool = False) -> Tensor:
        """See `SubjectModel.logits`."""
        normed = self._final_norm.of(residual, detach_scale=detach_scale)
        return normed @ self.write.unembedding.T

    def _rotation(self, positions: Tensor) -> Rotation:
        # The scale of the dot product is shared: each side carries dh^-1/4.
        scale = self.shape.query_and_key_channels**-0.25
        return self._rotary.at(positions, scale)

    def _heads(
        self, normed: Tensor, weights: LlamaLayer, rotation: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (N, H, dh)."""
        heads = (normed.shape[0], -1, self.shape.query_and_key_channels)
        q = affine(normed, weights.query, weights.query_bias).view(heads)
        k = affine(normed, weights.key, weights.key_bias).view(heads)
        v = affine(normed, weights.value, weights.value_bias).view(heads)
        if weights.query_norm is not None and weights.key_norm is not None:
            q, k = weights.query_norm.of(q), weights.key_norm.of(k)
        q, k = rotation(q), rotation(k)
        if self._heads_per_group > 1:
            k = k.repeat_interleave(self._heads_per_group, dim=1)
            v = v.repeat_interleave(self._heads_per_group, dim=1)
        return q, k, v

    def _attend(
        self, x: Tensor, layer: LlamaLayer, index: int, taps: Taps, rotation: Rotation
    ) -> Tensor:
        normed = layer.attn_norm(x, taps, Location.ATTN_INPUT_LAYER_NORM_SCALE, index)
        normed = taps(normed, Location.RESID_POST_ATTN_LAYER_NORM, index)
        q, k, v = self._heads(normed, layer, rotation)
        q = taps(q, Location.ATTN_QUERY, index)
        k = taps(k, Location.ATTN_KEY, index)
        v = taps(v, Location.ATTN_VALUE, index)
        mixed = attend(q, k, v, taps, index)
        mixed = taps(mixed, Location.ATTN_WEIGHTED_SUM_OF_VALUES, index)
        delta = affine(mixed.flatten(1), layer.attn_out, layer.attn_out_bias)
        delta = taps(delta, Location.RESID_DELTA_ATTN, index)
        return taps(x + delta, Location.RESID_POST_ATTN, index)

    def _mlp(self, x: Tensor, layer: LlamaLayer, index: int, taps: Taps) -> Tensor:
        normed = layer.mlp_norm(x, taps, Location.MLP_INPUT_LAYER_NORM_SCALE, index)
        normed = taps(normed, Location.RESID_POST_MLP_LAYER_NORM, index)
        pre = affine(normed, layer.mlp_gate, layer.mlp_gate_bias)
        pre = taps(pre, Location.MLP_PRE_ACT, index)
        post = functional.silu(pre) * affine(normed, layer.mlp_up, layer.mlp_up_bias)
        post = taps(post, Location.MLP_POST_ACT, index)
        delta = affine(post, layer.mlp_out, layer.mlp_out_bias)
        delta = taps(delta, Location.RESID_DELTA_MLP, index)
        return taps(x + delta, Location.RESID_POST_MLP, index)
