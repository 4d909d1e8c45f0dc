"""The GPT-2 family: learned positions, layer norms before each block, tied unembedding.

A functional forward pass on a checkpoint's weights (never building a module first halves the peak
of memory), with eager attention, since attention probabilities are an activation like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from services.scalars.model.checkpoint import MODEL_KEY, Checkpoint
from services.scalars.model.decoder import Decoder
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, ModelShape
from services.scalars.model.products import affine, columns
from services.scalars.model.taps import Taps
from shared.errors import ConfigurationError


@dataclass(frozen=True)
class _Norm:
    gain: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor, taps: Taps, scale: Location, layer: LayerIndex) -> Tensor:
        """(x - mean) / scale * gain + bias, with scale = sqrt(var + epsilon) tapped."""
        if not taps.touches(scale, layer):
            return functional.layer_norm(x, (x.shape[-1],), self.gain, self.bias, self.epsilon)
        centred, scales = self._parts(x)
        return centred / taps(scales, scale, layer) * self.gain + self.bias

    def of(self, x: Tensor, *, detach_scale: bool) -> Tensor:
        """The same without taps, the scale a constant if so wanted."""
        if not detach_scale:
            return functional.layer_norm(x, (x.shape[-1],), self.gain, self.bias, self.epsilon)
        centred, scales = self._parts(x)
        return centred / scales.detach() * self.gain + self.bias

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centred = x - x.mean(dim=-1, keepdim=True)
        scale = torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + self.epsilon)
        # Where squares overflow, the whole norm in one may give no number. What else is asked for
        # beside a row must not change that.
        inverse = torch.native_layer_norm(x.detach(), (x.shape[-1],), None, None, self.epsilon)[2]
        return centred, torch.where(inverse.isnan(), inverse, scale)


@dataclass(frozen=True)
class _Layer:
    attn_norm: _Norm
    mlp_norm: _Norm
    qkv: Tensor
    qkv_bias: Tensor
    attn_out: Tensor
    attn_out_bias: Tensor
    mlp_in: Tensor
    mlp_in_bias: Tensor
    mlp_out: Tensor
    mlp_out_bias: Tensor


class Gpt2(Decoder[_Layer, None]):
    """A GPT-2 checkpoint as a subject model."""

    def __init__(
        self,
        shape: ModelShape,
        token_embedding: Tensor,
        position_embedding: Tensor,
        layers: Sequence[_Layer],
        final_norm: _Norm,
        unembedding: Tensor,
    ) -> None:
        super().__init__(shape, token_embedding, layers, final_norm, unembedding)
        self._position_embedding = position_embedding
        weights = [token_embedding, position_embedding, final_norm.gain, final_norm.bias]
        if unembedding is not token_embedding:
            weights.append(unembedding)
        for layer in layers:
            for value in vars(layer).values():
                weights += [value.gain, value.bias] if isinstance(value, _Norm) else [value]
        self.weight_bytes = sum(weight.nbytes for weight in weights)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: torch.device,
    ) -> Gpt2:
        """Takes the weights of a GPT-2 checkpoint; ConfigurationError where they don't fit."""
        _check_supported(checkpoint)
        width = checkpoint.integer("n_embd")
        heads = checkpoint.integer("n_head")
        if width % heads:
            raise ConfigurationError(
                MODEL_KEY, f"config.json: n_embd {width} is not a multiple of n_head {heads}"
            )
        shape = ModelShape(
            layers=checkpoint.integer("n_layer"),
            residual_stream_channels=width,
            attn_heads=heads,
            query_and_key_channels=width // heads,
            value_channels=width // heads,
            mlp_acts=checkpoint.integer("n_inner", default=4 * width),
            vocab_size=checkpoint.integer("vocab_size"),
            context=checkpoint.integer("n_positions", "n_ctx"),
        )
        epsilon = checkpoint.fraction("layer_norm_epsilon", default=1e-5)
        tied = checkpoint.flag("tie_word_embeddings", default=True)
        prefix = "transformer." if "transformer.wte.weight" in checkpoint.names else ""

        def take(name: str, *sizes: int) -> Tensor:
            return checkpoint.tensor(prefix + name, sizes).to(device)

        def matrix(name: str, *sizes: int) -> Tensor:
            return checkpoint.tensor(prefix + name, sizes, checkpoint.dtype).to(device)

        def norm(name: str) -> _Norm:
            return _Norm(take(f"{name}.weight", width), take(f"{name}.bias", width), epsilon)

        layers = [
            _Layer(
                attn_norm=norm(f"h.{index}.ln_1"),
                mlp_norm=norm(f"h.{index}.ln_2"),
                qkv=matrix(f"h.{index}.attn.c_attn.weight", width, 3 * width),
                qkv_bias=take(f"h.{index}.attn.c_attn.bias", 3 * width),
                attn_out=matrix(f"h.{index}.attn.c_proj.weight", width, width),
                attn_out_bias=take(f"h.{index}.attn.c_proj.bias", width),
                mlp_in=matrix(f"h.{index}.mlp.c_fc.weight", width, shape.mlp_acts),
                mlp_in_bias=take(f"h.{index}.mlp.c_fc.bias", shape.mlp_acts),
                mlp_out=matrix(f"h.{index}.mlp.c_proj.weight", shape.mlp_acts, width),
                mlp_out_bias=take(f"h.{index}.mlp.c_proj.bias", width),
            )
            for index in range(shape.layers)
        ]
        embedding = take("wte.weight", shape.vocab_size, width)
        return cls(
            shape,
            embedding,
            take("wpe.weight", shape.context, width),
            layers,
            norm("ln_f"),
            checkpoint.unembedding(embedding, tied=tied),
        )

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.token_embedding[tokens] + self._position_embedding[positions]

    def _placed(self, positions: Tensor) -> None:
        """Nothing: positions are in the residual stream already."""

    def _heads(self, normed: Tensor, layer: _Layer, placed: None) -> tuple[Tensor, Tensor, Tensor]:
        heads = (-1, self.shape.attn_heads, self.shape.query_and_key_channels)
        q, k, v = affine(normed, layer.qkv, layer.qkv_bias).chunk(3, dim=1)
        # The scale of the dot product is shared: each side carries dh^-1/4.
        scale = self.shape.query_and_key_channels**-0.25
        return (q * scale).view(heads), (k * scale).view(heads), v.reshape(heads)

    def _pre_act(self, normed: Tensor, layer: _Layer, neurons: Tensor | None = None) -> Tensor:
        return affine(normed, *columns(layer.mlp_in, layer.mlp_in_bias, neurons))

    def _post_act(
        self, pre_act: Tensor, normed: Tensor, layer: _Layer, neurons: Tensor | None = None
    ) -> Tensor:
        return functional.gelu(pre_act, approximate="tanh")


def _check_supported(checkpoint: Checkpoint) -> None:
    """Refuses variants that would be computed wrongly rather than differently."""
    wanted = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    for key, accepted in wanted.items():
        value = checkpoint.config.get(key, accepted[0])
        if value not in accepted:
            raise ConfigurationError(
                MODEL_KEY,
                f"config.json: {key} is {value!r}; served are {', '.join(map(repr, accepted))}",
            )
