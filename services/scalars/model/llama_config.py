"""What a checkpoint of the Llama family says of itself, and what of it isn't served.

Llama, Mistral, Qwen2 and Qwen3 (dense) differ in a few places alone: biases, norms of queries and
keys, channels of a head. Whatever would be computed wrongly is refused, by its key.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.scalars.model.checkpoint import MODEL_KEY, Checkpoint
from services.scalars.model.locations import ModelShape
from shared.errors import ConfigurationError

_QWEN3_HEAD_CHANNELS = 128
"""What the library takes where a Qwen3 configuration doesn't say."""

_WINDOW = 4096
"""What the library takes where a Mistral or Qwen configuration has no sliding_window."""


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and variants. `kv_heads` divides the heads; each key and value serves several."""

    shape: ModelShape
    kv_heads: int
    epsilon: float
    qkv_bias: bool
    attn_out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool


def read_llama_config(checkpoint: Checkpoint) -> LlamaConfig:
    """Reads and checks config.json; ConfigurationError names the key of what isn't served."""
    family = checkpoint.config.get("model_type")
    shape, kv_heads = _sizes(checkpoint, family == "qwen3")
    _refuse(checkpoint, shape)
    attention_bias = checkpoint.flag("attention_bias", default=False)
    if family == "qwen2":
        qkv_bias, out_bias = True, False
    elif family == "mistral":
        qkv_bias = out_bias = False
    else:
        qkv_bias = out_bias = attention_bias
    return LlamaConfig(
        shape=shape,
        kv_heads=kv_heads,
        epsilon=checkpoint.fraction("rms_norm_eps", default=1e-6),
        qkv_bias=qkv_bias,
        attn_out_bias=out_bias,
        mlp_bias=family == "llama" and checkpoint.flag("mlp_bias", default=False),
        qk_norm=family == "qwen3",
        tied=checkpoint.flag("tie_word_embeddings", default=False),
    )


def _sizes(checkpoint: Checkpoint, is_qwen3: bool) -> tuple[ModelShape, int]:
    width = checkpoint.integer("hidden_size")
    heads = checkpoint.integer("num_attention_heads")
    kv_heads = checkpoint.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise _fault(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if is_qwen3:
        channels = checkpoint.integer("head_dim", default=_QWEN3_HEAD_CHANNELS)
    elif checkpoint.config.get("head_dim") is not None:
        channels = checkpoint.integer("head_dim")
    elif width % heads:
        raise _fault(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
    else:
        channels = width // heads
    shape = ModelShape(
        layers=checkpoint.integer("num_hidden_layers"),
        residual_stream_channels=width,
        attn_heads=heads,
        query_and_key_channels=channels,
        value_channels=channels,
        mlp_acts=checkpoint.integer("intermediate_size"),
        vocab_size=checkpoint.integer("vocab_size"),
        context=checkpoint.integer("max_position_embeddings"),
    )
    return shape, kv_heads


def _refuse(checkpoint: Checkpoint, shape: ModelShape) -> None:
    config = checkpoint.config
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise _fault(f"hidden_act is {activation!r}; served is 'silu'")
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(key):
            raise _fault(f"{key} is {config[key]!r}; mixtures of experts aren't served")
    if config.get("quantization_config"):
        raise _fault("quantization_config is set; quantized weights aren't served")
    kinds = config.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list)
        or any(kind not in ("full_attention", "sliding_attention") for kind in kinds)
    ):
        raise _fault(f"layer_types is {kinds!r}; served are layers of full_attention")
    _refuse_sliding_window(checkpoint, shape, kinds)


def _refuse_sliding_window(
    checkpoint: Checkpoint, shape: ModelShape, kinds: list[str] | None
) -> None:
    """A window as long as the context, or of no layer, changes nothing; any other does."""
    qwen = str(checkpoint.config.get("model_type")).startswith("qwen")
    window = _sliding_window(checkpoint, qwen)
    windowed = kinds is not None and "sliding_attention" in kinds
    if window is None:
        if windowed:
            raise _fault("layer_types has sliding_attention, but there is no sliding_window")
        return
    # Qwen's window begins at a layer, or is that of some kinds of layers; others' is of all.
    if kinds is None:
        windowed = not qwen or _first_windowed_layer(checkpoint) < shape.layers
    if (windowed or not qwen) and window < shape.context:
        raise _fault(
            f"sliding_window is {window}, shorter than max_position_embeddings {shape.context}; "
            "attention to a window isn't served"
        )


def _sliding_window(checkpoint: Checkpoint, qwen: bool) -> int | None:
    """The window that a configuration asks for, None where it asks for none."""
    if qwen and not checkpoint.flag("use_sliding_window", default=False):
        return None
    unsaid = None if checkpoint.config.get("model_type") == "llama" else _WINDOW
    if checkpoint.config.get("sliding_window", unsaid) is None:
        return None
    return checkpoint.integer("sliding_window", default=_WINDOW)


def _first_windowed_layer(checkpoint: Checkpoint) -> int:
    value = checkpoint.config.get("max_window_layers", 28)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _fault(f"max_window_layers is {value!r}; a whole number from 0 is needed")
    return value


def _fault(message: str) -> ConfigurationError:
    return ConfigurationError(MODEL_KEY, f"config.json: {message}")
