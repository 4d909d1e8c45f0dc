"""Reading what autoencoder files say of themselves.

One safetensors file with `layers.<i>.encoder.weight` and the like, and metadata that names what the
autoencoder reads and its activation function.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from services.scalars.model.locations import ModelShape, NodeType
from shared.errors import ConfigurationError
from shared.settings import Autoencoder

_KINDS = {
    "mlp_post_act": NodeType.MLP_AUTOENCODER_LATENT,
    "resid_delta_mlp": NodeType.MLP_AUTOENCODER_LATENT,
    "resid_delta_attn": NodeType.ATTENTION_AUTOENCODER_LATENT,
}
_ACTIVATIONS = ("relu", "topk", "jumprelu", "gated")
_ENCODER = re.compile(r"layers\.(\d+)\.encoder\.weight")


@dataclass(frozen=True)
class AutoencoderInfo:
    """What an autoencoder is: what it reads, its activation, and the latents of each layer."""

    name: str
    node_type: NodeType
    input: str
    activation: str
    latent_counts: tuple[int, ...]


def read_autoencoders(
    configured: Sequence[Autoencoder], shape: ModelShape
) -> tuple[AutoencoderInfo, ...]:
    """Describes the autoencoders of a deployment.

    Raises ConfigurationError naming `model.autoencoders[i].path` for a file that can't be read,
    whose metadata is missing or unknown, whose layers or widths don't fit the model, and for a
    second autoencoder of one kind.
    """
    found: list[AutoencoderInfo] = []
    for position, each in enumerate(configured):
        key = f"model.autoencoders[{position}].path"
        info = _read(each, shape, key)
        if any(other.node_type == info.node_type for other in found):
            raise ConfigurationError(
                key, f"{each.name} is a second autoencoder of the kind {info.node_type}"
            )
        found.append(info)
    return tuple(found)


def _read(configured: Autoencoder, shape: ModelShape, key: str) -> AutoencoderInfo:
    file = Path(configured.path)
    if not file.is_file():
        raise ConfigurationError(key, f"{file} is not a safetensors file")
    try:
        with safe_open(str(file), framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigurationError(key, f"{file} can't be read as safetensors: {error}") from error
    dst = metadata.get("dst", "")
    if dst not in _KINDS:
        raise ConfigurationError(
            key, f"{file}: metadata dst is {dst!r}; it must be one of {', '.join(_KINDS)}"
        )
    activation = metadata.get("activation", "").lower()
    if activation not in _ACTIVATIONS:
        raise ConfigurationError(
            key,
            f"{file}: metadata activation is {metadata.get('activation')!r}; "
            f"it must be one of {', '.join(_ACTIVATIONS)}",
        )
    width = shape.mlp_acts if dst == "mlp_post_act" else shape.residual_stream_channels
    counts = [0] * shape.layers
    for name, sizes in shapes.items():
        matched = _ENCODER.fullmatch(name)
        if matched is None:
            continue
        layer = int(matched.group(1))
        if layer >= shape.layers or len(sizes) != 2 or sizes[1] != width:
            raise ConfigurationError(
                key,
                f"{file}: {name} has shape {list(sizes)}; the model has {shape.layers} layers and "
                f"{dst} has {width} channels",
            )
        counts[layer] = sizes[0]
    if not any(counts):
        raise ConfigurationError(key, f"{file} has no layers.<i>.encoder.weight")
    return AutoencoderInfo(configured.name, _KINDS[dst], dst, activation, tuple(counts))
