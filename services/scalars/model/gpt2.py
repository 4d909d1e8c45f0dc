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

from services.scalars.model.attention import attend
from services.scalars.model.blocks import (
    ALL_PARTS,
    AttentionPart,
    HeadActivations,
    MlpActivations,
    attended,
)
from services.scalars.model.checkpoint import MODEL_KEY, Checkpoint
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LayerIndex, ModelShape
from services.scalars.model.products import affine, as_float32
from services.scalars.model.taps import Taps
from services.scalars.model.weights import WriteWeights
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
        return centred, torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + self.epsilon)


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


class Gpt2:
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
        self.shape = shape
        self.token_embedding = token_embedding
        self._position_embedding = position_embedding
        self._layers = tuple(layers)
        self._final_norm = final_norm
        self.device = token_embedding.device
        self.write = WriteWeights(
            mlp=as_float32([layer.mlp_out for layer in layers]),
            attn=as_float32(
                [
                    layer.attn_out.view(
                        shape.attn_heads, shape.value_channels, shape.residual_stream_channels
                    )
                    for layer in layers
                ]
            ),
            unembedding=unembedding,
            final_norm_gain=final_norm.gain,
            mlp_bias=[layer.mlp_out_bias for layer in layers],
            attn_bias=[layer.attn_out_bias for layer in layers],
        )
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
        epsilon = checkpoint.config.get("layer_norm_epsilon", 1e-5)
        if not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise ConfigurationError(
                MODEL_KEY, f"config.json: layer_norm_epsilon is {epsilon!r}, not between 0 and 1"
            )
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
        tied = checkpoint.config.get("tie_word_embeddings", True)
        unembedding = (
            embedding
            if tied
            else checkpoint.tensor("lm_head.weight", (shape.vocab_size, width)).to(device)
        )
        return cls(
            shape,
            embedding,
            take("wpe.weight", shape.context, width),
            layers,
            norm("ln_f"),
            unembedding,
        )

    def forward(self, tokens: Tensor, taps: Taps, logit_tokens: Tensor | None) -> Tensor | None:
        """See `SubjectModel.forward`."""
        x = self.token_embedding[tokens] + self._position_embedding[taps.packing.positions]
        x = taps(taps.begin(x, None), Location.RESID_POST_EMBEDDING)
        # Without logits the pass ends as soon as everything was tapped that anybody asked for.
        whole = logit_tokens is not None or not taps.ends_in_layers()
        for index, layer in enumerate(self._layers):
            for block in (self._attend, self._mlp):
                if not whole and taps.complete():
                    return None
                x = block(taps.begin(x, index), layer, index, taps)
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
        """See `SubjectModel.attention_parts`; positions are in the residual stream already."""
        weights = self._layers[layer]
        normed = weights.attn_norm.of(residual, detach_scale=detach_scale)
        return self._heads(normed, weights)

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
        matrix, bias = weights.mlp_in, weights.mlp_in_bias
        if neurons is not None:
            matrix, bias = matrix[:, neurons], bias[neurons]
        pre = affine(normed, matrix, bias)
        return MlpActivations(pre, functional.gelu(pre, approximate="tanh"))

    def mlp_output(self, layer: int, post_act: Tensor) -> Tensor:
        """See `SubjectModel.mlp_output`."""
        weights = self._layers[layer]
        return affine(post_act, weights.mlp_out, weights.mlp_out_bias)

    def logits(self, residual: Tensor, *, detach_scale: bool = False) -> Tensor:
        """See `SubjectModel.logits`."""
        normed = self._final_norm.of(residual, detach_scale=detach_scale)
        return normed @ self.write.unembedding.T

    def _heads(self, normed: Tensor, weights: _Layer) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (N, H, dh)."""
        heads = (-1, self.shape.attn_heads, self.shape.query_and_key_channels)
        q, k, v = affine(normed, weights.qkv, weights.qkv_bias).chunk(3, dim=1)
        # The scale of the dot product is shared: each side carries dh^-1/4.
        scale = self.shape.query_and_key_channels**-0.25
        return (q * scale).view(heads), (k * scale).view(heads), v.reshape(heads)

    def _attend(self, x: Tensor, layer: _Layer, index: int, taps: Taps) -> Tensor:
        normed = layer.attn_norm(x, taps, Location.ATTN_INPUT_LAYER_NORM_SCALE, index)
        normed = taps(normed, Location.RESID_POST_ATTN_LAYER_NORM, index)
        q, k, v = self._heads(normed, layer)
        q = taps(q, Location.ATTN_QUERY, index)
        k = taps(k, Location.ATTN_KEY, index)
        v = taps(v, Location.ATTN_VALUE, index)
        mixed = attend(q, k, v, taps, index)
        mixed = taps(mixed, Location.ATTN_WEIGHTED_SUM_OF_VALUES, index)
        delta = affine(mixed.flatten(1), layer.attn_out, layer.attn_out_bias)
        delta = taps(delta, Location.RESID_DELTA_ATTN, index)
        return taps(x + delta, Location.RESID_POST_ATTN, index)

    def _mlp(self, x: Tensor, layer: _Layer, index: int, taps: Taps) -> Tensor:
        normed = layer.mlp_norm(x, taps, Location.MLP_INPUT_LAYER_NORM_SCALE, index)
        normed = taps(normed, Location.RESID_POST_MLP_LAYER_NORM, index)
        pre = affine(normed, layer.mlp_in, layer.mlp_in_bias)
        pre = taps(pre, Location.MLP_PRE_ACT, index)
        post = taps(functional.gelu(pre, approximate="tanh"), Location.MLP_POST_ACT, index)
        delta = affine(post, layer.mlp_out, layer.mlp_out_bias)
        delta = taps(delta, Location.RESID_DELTA_MLP, index)
        return taps(x + delta, Location.RESID_POST_MLP, index)


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
