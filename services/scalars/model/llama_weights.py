"""The weights of a checkpoint of the Llama family, in the orientation in which they are used.

Matrices are (in, out): views of what the files hold, never copies of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from services.scalars.model.checkpoint import MODEL_KEY, Checkpoint
from services.scalars.model.llama_config import LlamaConfig
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex
from services.scalars.model.taps import Taps
from shared.errors import ConfigurationError

_COMPUTED = ".rotary_emb.inv_freq"
"""Older files hold frequencies that the configuration gives as well."""


@dataclass(frozen=True)
class RmsNorm:
    """x / sqrt(mean(x^2) + epsilon) * gain, over the last axis."""

    gain: Tensor
    epsilon: float

    def __call__(self, x: Tensor, taps: Taps, scale: Location, layer: LayerIndex) -> Tensor:
        """The norm, with its scale sqrt(mean(x^2) + epsilon) tapped."""
        if not taps.touches(scale, layer):
            return functional.rms_norm(x, (x.shape[-1],), self.gain, self.epsilon)
        return x / taps(self._scale(x), scale, layer) * self.gain

    def of(self, x: Tensor, *, detach_scale: bool = False) -> Tensor:
        """The same without taps, the scale a constant if so wanted."""
        if not detach_scale:
            return functional.rms_norm(x, (x.shape[-1],), self.gain, self.epsilon)
        return x / self._scale(x).detach() * self.gain

    def _scale(self, x: Tensor) -> Tensor:
        return torch.sqrt(x.square().mean(dim=-1, keepdim=True) + self.epsilon)


@dataclass(frozen=True)
class LlamaLayer:
    """One layer; heads of `key` and `value` are those of its groups. No bias is None."""

    attn_norm: RmsNorm
    mlp_norm: RmsNorm
    query: Tensor
    key: Tensor
    value: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    query_norm: RmsNorm | None
    key_norm: RmsNorm | None
    attn_out: Tensor
    attn_out_bias: Tensor | None
    mlp_gate: Tensor
    mlp_gate_bias: Tensor | None
    mlp_up: Tensor
    mlp_up_bias: Tensor | None
    mlp_out: Tensor
    mlp_out_bias: Tensor | None

    def tensors(self) -> Iterator[Tensor]:
        """All weights of the layer."""
        for value in vars(self).values():
            if value is not None:
                yield value.gain if isinstance(value, RmsNorm) else value


@dataclass(frozen=True)
class LlamaWeights:
    """All weights; `unembedding` is `embedding` itself where the two are tied. Each (V, D)."""

    embedding: Tensor
    layers: tuple[LlamaLayer, ...]
    final_norm: RmsNorm
    unembedding: Tensor

    @property
    def n_bytes(self) -> int:
        """Memory of all weights, what is tied counted once."""
        tensors = [self.embedding, self.final_norm.gain]
        if self.unembedding is not self.embedding:
            tensors.append(self.unembedding)
        for layer in self.layers:
            tensors += layer.tensors()
        return sum(tensor.nbytes for tensor in tensors)


def read_weights(checkpoint: Checkpoint, config: LlamaConfig, device: torch.device) -> LlamaWeights:
    """Takes the weights of a checkpoint onto a device.

    Raises ConfigurationError where one is missing or of the wrong shape, and where the files hold
    one that the configuration has no place for: the model would not be the one that was trained.
    """
    reader = _Reader(checkpoint, config, device)
    shape = config.shape
    embedding = reader.take(
        "model.embed_tokens.weight", shape.vocab_size, shape.residual_stream_channels
    )
    layers = tuple(reader.layer(f"model.layers.{index}.") for index in range(shape.layers))
    final_norm = reader.norm("model.norm", shape.residual_stream_channels)
    unembedding = reader.unembedding(embedding)
    unknown = sorted(
        name for name in checkpoint.names - reader.taken if not name.endswith(_COMPUTED)
    )
    if unknown:
        raise _fault(
            f"the files hold {len(unknown)} tensors that a {checkpoint.config.get('model_type')} "
            f"with this config.json has no place for, such as {unknown[0]}"
        )
    return LlamaWeights(embedding, layers, final_norm, unembedding)


class _Reader:
    """Reads tensors and notes which."""

    def __init__(self, checkpoint: Checkpoint, config: LlamaConfig, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._device = device
        # The base model saved alone has no prefix.
        self._prefix = "" if "embed_tokens.weight" in checkpoint.names else "model."
        self.taken: set[str] = set()

    def take(self, name: str, *sizes: int, dtype: torch.dtype | None = None) -> Tensor:
        name = self._prefix + name.removeprefix("model.") if name.startswith("model.") else name
        self.taken.add(name)
        return self._checkpoint.tensor(name, sizes, dtype).to(self._device)

    def norm(self, name: str, channels: int) -> RmsNorm:
        return RmsNorm(self.take(f"{name}.weight", channels), self._config.epsilon)

    def matrix(self, name: str, inputs: int, outputs: int) -> Tensor:
        """A linear layer's (out, in) as (in, out)."""
        return self.take(f"{name}.weight", outputs, inputs, dtype=self._checkpoint.dtype).T

    def bias(self, name: str, wanted: bool, outputs: int) -> Tensor | None:
        return self.take(f"{name}.bias", outputs) if wanted else None

    def layer(self, at: str) -> LlamaLayer:
        config, shape = self._config, self._config.shape
        width, neurons = shape.residual_stream_channels, shape.mlp_acts
        channels = shape.value_channels
        heads, kv_heads = shape.attn_heads * channels, config.kv_heads * channels
        attention, mlp = f"{at}self_attn.", f"{at}mlp."
        return LlamaLayer(
            attn_norm=self.norm(f"{at}input_layernorm", width),
            mlp_norm=self.norm(f"{at}post_attention_layernorm", width),
            query=self.matrix(f"{attention}q_proj", width, heads),
            key=self.matrix(f"{attention}k_proj", width, kv_heads),
            value=self.matrix(f"{attention}v_proj", width, kv_heads),
            query_bias=self.bias(f"{attention}q_proj", config.qkv_bias, heads),
            key_bias=self.bias(f"{attention}k_proj", config.qkv_bias, kv_heads),
            value_bias=self.bias(f"{attention}v_proj", config.qkv_bias, kv_heads),
            query_norm=self.norm(f"{attention}q_norm", channels) if config.qk_norm else None,
            key_norm=self.norm(f"{attention}k_norm", channels) if config.qk_norm else None,
            attn_out=self.matrix(f"{attention}o_proj", heads, width),
            attn_out_bias=self.bias(f"{attention}o_proj", config.attn_out_bias, width),
            mlp_gate=self.matrix(f"{mlp}gate_proj", width, neurons),
            mlp_gate_bias=self.bias(f"{mlp}gate_proj", config.mlp_bias, neurons),
            mlp_up=self.matrix(f"{mlp}up_proj", width, neurons),
            mlp_up_bias=self.bias(f"{mlp}up_proj", config.mlp_bias, neurons),
            mlp_out=self.matrix(f"{mlp}down_proj", neurons, width),
            mlp_out_bias=self.bias(f"{mlp}down_proj", config.mlp_bias, width),
        )

    def unembedding(self, embedding: Tensor) -> Tensor:
        self.taken.add("lm_head.weight")
        return self._checkpoint.unembedding(embedding, tied=self._config.tied)


def _fault(message: str) -> ConfigurationError:
    return ConfigurationError(MODEL_KEY, message)
