"""Places in a subject model where a tensor exists, and the vocabulary of their shapes.

An activation location is a tensor that a forward pass really makes: it can be captured, and it (or
its gradient) can be overwritten. Shapes are per sequence, without a batch dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

LayerIndex = int | None
"""Index of a layer, counted from 0; None for what exists once a model, such as the embedding."""


class PassType(StrEnum):
    """Whether a tensor is an activation or the gradient of one scalar with respect to it."""

    FORWARD = "forward"
    BACKWARD = "backward"


class Dimension(StrEnum):
    """What an axis of a tensor counts."""

    SEQUENCE_TOKENS = "sequence_tokens"
    ATTENDED_TO_SEQUENCE_TOKENS = "attended_to_sequence_tokens"
    SEQUENCE_TOKEN_PAIRS = "sequence_token_pairs"
    """Pairs of the lower triangle, row-major: token t attending to tokens 0 to t."""
    RESIDUAL_STREAM_CHANNELS = "residual_stream_channels"
    VOCAB_SIZE = "vocab_size"
    ATTN_HEADS = "attn_heads"
    QUERY_AND_KEY_CHANNELS = "query_and_key_channels"
    VALUE_CHANNELS = "value_channels"
    MLP_ACTS = "mlp_acts"
    AUTOENCODER_LATENTS = "autoencoder_latents"
    SINGLETON = "singleton"


class NodeType(StrEnum):
    """What kind of part the last axis of a tensor indexes."""

    ATTENTION_HEAD = "attention_head"
    QK_CHANNEL = "qk_channel"
    V_CHANNEL = "v_channel"
    MLP_NEURON = "mlp_neuron"
    AUTOENCODER_LATENT = "autoencoder_latent"
    MLP_AUTOENCODER_LATENT = "mlp_autoencoder_latent"
    ATTENTION_AUTOENCODER_LATENT = "attention_autoencoder_latent"
    AUTOENCODER_LATENT_BY_TOKEN_PAIR = "autoencoder_latent_by_token_pair"
    LAYER = "layer"
    RESIDUAL_STREAM_CHANNEL = "residual_stream_channel"
    VOCAB_TOKEN = "vocab_token"


NODE_TYPE_OF_DIMENSION: dict[Dimension, NodeType] = {
    Dimension.MLP_ACTS: NodeType.MLP_NEURON,
    Dimension.ATTN_HEADS: NodeType.ATTENTION_HEAD,
    Dimension.QUERY_AND_KEY_CHANNELS: NodeType.QK_CHANNEL,
    Dimension.VALUE_CHANNELS: NodeType.V_CHANNEL,
    Dimension.SINGLETON: NodeType.LAYER,
    Dimension.RESIDUAL_STREAM_CHANNELS: NodeType.RESIDUAL_STREAM_CHANNEL,
    Dimension.VOCAB_SIZE: NodeType.VOCAB_TOKEN,
    Dimension.AUTOENCODER_LATENTS: NodeType.AUTOENCODER_LATENT,
}


class LocationWithinLayer(IntEnum):
    """Where in a layer a tensor stands, in the order in which a forward pass reaches it.

    Fine enough to tell whether one thing is upstream of another, and no finer.
    """

    END_OF_PREVIOUS_LAYER = 1
    ATTN = 2
    RESID_POST_ATTN = 3
    MLP = 4
    RESID_POST_MLP = 5


_T = Dimension.SEQUENCE_TOKENS
_S = Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_D = Dimension.RESIDUAL_STREAM_CHANNELS
_H = Dimension.ATTN_HEADS
_A = Dimension.AUTOENCODER_LATENTS


class ActivationLocationType(StrEnum):
    """Names of activation locations, as requests spell them.

    `resid.post_attn_ln` and `resid.post_mlp_ln` are the normalised inputs of the attention and of
    the MLP block, gain and bias applied.
    """

    RESID_POST_EMBEDDING = "resid.post_emb"
    RESID_DELTA_ATTN = "resid.delta_attn"
    RESID_POST_ATTN = "resid.post_attn"
    RESID_DELTA_MLP = "resid.delta_mlp"
    RESID_POST_MLP = "resid.post_mlp"
    RESID_POST_MLP_LAYER_NORM = "resid.post_mlp_ln"
    RESID_POST_ATTN_LAYER_NORM = "resid.post_attn_ln"
    RESID_POST_FINAL_LAYER_NORM = "resid.post_ln_f"
    MLP_INPUT_LAYER_NORM_SCALE = "mlp_ln.scale"
    ATTN_INPUT_LAYER_NORM_SCALE = "attn_ln.scale"
    RESID_FINAL_LAYER_NORM_SCALE = "resid.ln_f.scale"
    ATTN_QUERY = "attn.q"
    ATTN_KEY = "attn.k"
    ATTN_VALUE = "attn.v"
    ATTN_QK_LOGITS = "attn.qk_logits"
    ATTN_QK_PROBS = "attn.qk_probs"
    ATTN_WEIGHTED_SUM_OF_VALUES = "attn.v_out"
    MLP_PRE_ACT = "mlp.pre_act"
    MLP_POST_ACT = "mlp.post_act"
    LOGITS = "logits"
    ONLINE_AUTOENCODER_LATENT = "online_autoencoder_latent"
    ONLINE_MLP_AUTOENCODER_LATENT = "online_mlp_autoencoder_latent"
    ONLINE_ATTENTION_AUTOENCODER_LATENT = "online_attention_autoencoder_latent"
    ONLINE_MLP_AUTOENCODER_ERROR = "online_mlp_autoencoder_error"
    ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR = "online_residual_mlp_autoencoder_error"
    ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR = "online_residual_attention_autoencoder_error"

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What each axis of the tensor counts."""
        return _DIMENSIONS[self]

    @property
    def has_layers(self) -> bool:
        """Whether there is one such tensor a layer, rather than one a model."""
        return self not in _WITHOUT_LAYERS

    @property
    def exists_by_default(self) -> bool:
        """Whether an ordinary forward pass makes it, without an autoencoder."""
        return not self.value.startswith("online_")

    @property
    def node_type(self) -> NodeType:
        """What the last axis indexes."""
        return NODE_TYPE_OF_DIMENSION[self.dimensions[-1]]

    @property
    def location_within_layer(self) -> LocationWithinLayer | None:
        """Its place in the layer; None where it has no layer or the place depends on more."""
        return _LOCATIONS_WITHIN_LAYER.get(self)


_WITHOUT_LAYERS = frozenset(
    {
        ActivationLocationType.RESID_POST_EMBEDDING,
        ActivationLocationType.RESID_FINAL_LAYER_NORM_SCALE,
        ActivationLocationType.RESID_POST_FINAL_LAYER_NORM,
        ActivationLocationType.LOGITS,
    }
)

_DIMENSIONS: dict[ActivationLocationType, tuple[Dimension, ...]] = {
    ActivationLocationType.RESID_POST_EMBEDDING: (_T, _D),
    ActivationLocationType.RESID_DELTA_ATTN: (_T, _D),
    ActivationLocationType.RESID_POST_ATTN: (_T, _D),
    ActivationLocationType.RESID_DELTA_MLP: (_T, _D),
    ActivationLocationType.RESID_POST_MLP: (_T, _D),
    ActivationLocationType.RESID_POST_MLP_LAYER_NORM: (_T, _D),
    ActivationLocationType.RESID_POST_ATTN_LAYER_NORM: (_T, _D),
    ActivationLocationType.RESID_POST_FINAL_LAYER_NORM: (_T, _D),
    ActivationLocationType.MLP_INPUT_LAYER_NORM_SCALE: (_T, Dimension.SINGLETON),
    ActivationLocationType.ATTN_INPUT_LAYER_NORM_SCALE: (_T, Dimension.SINGLETON),
    ActivationLocationType.RESID_FINAL_LAYER_NORM_SCALE: (_T, Dimension.SINGLETON),
    ActivationLocationType.ATTN_QUERY: (_T, _H, Dimension.QUERY_AND_KEY_CHANNELS),
    ActivationLocationType.ATTN_KEY: (_S, _H, Dimension.QUERY_AND_KEY_CHANNELS),
    ActivationLocationType.ATTN_VALUE: (_S, _H, Dimension.VALUE_CHANNELS),
    ActivationLocationType.ATTN_QK_LOGITS: (_T, _S, _H),
    ActivationLocationType.ATTN_QK_PROBS: (_T, _S, _H),
    ActivationLocationType.ATTN_WEIGHTED_SUM_OF_VALUES: (_T, _H, Dimension.VALUE_CHANNELS),
    ActivationLocationType.MLP_PRE_ACT: (_T, Dimension.MLP_ACTS),
    ActivationLocationType.MLP_POST_ACT: (_T, Dimension.MLP_ACTS),
    ActivationLocationType.LOGITS: (_T, Dimension.VOCAB_SIZE),
    ActivationLocationType.ONLINE_AUTOENCODER_LATENT: (_T, _A),
    ActivationLocationType.ONLINE_MLP_AUTOENCODER_LATENT: (_T, _A),
    ActivationLocationType.ONLINE_ATTENTION_AUTOENCODER_LATENT: (_T, _A),
    ActivationLocationType.ONLINE_MLP_AUTOENCODER_ERROR: (_T, Dimension.MLP_ACTS),
    ActivationLocationType.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR: (_T, _D),
    ActivationLocationType.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR: (_T, _D),
}

_LOCATIONS_WITHIN_LAYER: dict[ActivationLocationType, LocationWithinLayer] = {
    ActivationLocationType.ATTN_INPUT_LAYER_NORM_SCALE: LocationWithinLayer.ATTN,
    ActivationLocationType.RESID_POST_ATTN_LAYER_NORM: LocationWithinLayer.ATTN,
    ActivationLocationType.ATTN_QUERY: LocationWithinLayer.ATTN,
    ActivationLocationType.ATTN_KEY: LocationWithinLayer.ATTN,
    ActivationLocationType.ATTN_VALUE: LocationWithinLayer.ATTN,
    ActivationLocationType.ATTN_QK_LOGITS: LocationWithinLayer.ATTN,
    ActivationLocationType.ATTN_QK_PROBS: LocationWithinLayer.ATTN,
    ActivationLocationType.ATTN_WEIGHTED_SUM_OF_VALUES: LocationWithinLayer.ATTN,
    ActivationLocationType.RESID_DELTA_ATTN: LocationWithinLayer.ATTN,
    ActivationLocationType.RESID_POST_ATTN: LocationWithinLayer.RESID_POST_ATTN,
    ActivationLocationType.MLP_INPUT_LAYER_NORM_SCALE: LocationWithinLayer.MLP,
    ActivationLocationType.RESID_POST_MLP_LAYER_NORM: LocationWithinLayer.MLP,
    ActivationLocationType.MLP_PRE_ACT: LocationWithinLayer.MLP,
    ActivationLocationType.MLP_POST_ACT: LocationWithinLayer.MLP,
    ActivationLocationType.RESID_DELTA_MLP: LocationWithinLayer.MLP,
    ActivationLocationType.RESID_POST_MLP: LocationWithinLayer.RESID_POST_MLP,
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a subject model."""

    layers: int
    residual_stream_channels: int
    attn_heads: int
    query_and_key_channels: int
    value_channels: int
    mlp_acts: int
    vocab_size: int
    context: int

    def size(self, dimension: Dimension, tokens: int) -> int:
        """Length of an axis for a sequence of `tokens` tokens.

        An autoencoder's latents are no size of the model: KeyError.
        """
        return {
            Dimension.SEQUENCE_TOKENS: tokens,
            Dimension.ATTENDED_TO_SEQUENCE_TOKENS: tokens,
            Dimension.SEQUENCE_TOKEN_PAIRS: tokens * (tokens + 1) // 2,
            Dimension.RESIDUAL_STREAM_CHANNELS: self.residual_stream_channels,
            Dimension.VOCAB_SIZE: self.vocab_size,
            Dimension.ATTN_HEADS: self.attn_heads,
            Dimension.QUERY_AND_KEY_CHANNELS: self.query_and_key_channels,
            Dimension.VALUE_CHANNELS: self.value_channels,
            Dimension.MLP_ACTS: self.mlp_acts,
            Dimension.SINGLETON: 1,
        }[dimension]

    def sizes(self, dimensions: tuple[Dimension, ...], tokens: int) -> tuple[int, ...]:
        """Shape of a tensor with these axes."""
        return tuple(self.size(dimension, tokens) for dimension in dimensions)
