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

from services.scalars.model.checkpoint import Checkpoint
from services.scalars.model.decoder import Decoder
from services.scalars.model.llama_config import LlamaConfig, read_llama_config
from services.scalars.model.llama_weights import LlamaLayer, LlamaWeights, read_weights
from services.scalars.model.products import affine, columns
from services.scalars.model.rotary import RotaryPositions, Rotation, read_rotary


class Llama(Decoder[LlamaLayer, Rotation]):
    """A checkpoint of the Llama family as a subject model."""

    def __init__(self, config: LlamaConfig, weights: LlamaWeights, rotary: RotaryPositions) -> None:
        super().__init__(
            config.shape,
            weights.embedding,
            weights.layers,
            weights.final_norm,
            weights.unembedding,
        )
        self.weight_bytes = weights.n_bytes
        self._rotary = rotary
        self._heads_per_group = config.shape.attn_heads // config.kv_heads

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: torch.device) -> Llama:
        """Takes the weights of a checkpoint.

        Raises ConfigurationError where its configuration isn't served, or its weights don't fit.
        """
        config = read_llama_config(checkpoint)
        rotary = read_rotary(checkpoint, config.shape.query_and_key_channels, device)
        return cls(config, read_weights(checkpoint, config, device), rotary)

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.token_embedding[tokens]

    def _placed(self, positions: Tensor) -> Rotation:
        # The scale of the dot product is shared: each side carries dh^-1/4.
        scale = self.shape.query_and_key_channels**-0.25
        return self._rotary.at(positions, scale)

    def _heads(
        self, normed: Tensor, layer: LlamaLayer, placed: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = (normed.shape[0], -1, self.shape.query_and_key_channels)
        q = affine(normed, layer.query, layer.query_bias).view(heads)
        k = affine(normed, layer.key, layer.key_bias).view(heads)
        v = affine(normed, layer.value, layer.value_bias).view(heads)
        if layer.query_norm is not None and layer.key_norm is not None:
            q, k = layer.query_norm.of(q), layer.key_norm.of(k)
        q, k = placed(q), placed(k)
        if self._heads_per_group > 1:
            k = k.repeat_interleave(self._heads_per_group, dim=1)
            v = v.repeat_interleave(self._heads_per_group, dim=1)
        return q, k, v

    def _pre_act(self, normed: Tensor, layer: LlamaLayer, neurons: Tensor | None = None) -> Tensor:
        return affine(normed, *columns(layer.mlp_gate, layer.mlp_gate_bias, neurons))

    def _post_act(
        self, pre_act: Tensor, normed: Tensor, layer: LlamaLayer, neurons: Tensor | None = None
    ) -> Tensor:
        up = affine(normed, *columns(layer.mlp_up, layer.mlp_up_bias, neurons))
        return functional.silu(pre_act) * up
