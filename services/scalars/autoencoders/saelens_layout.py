"""Autoencoders in the layout that SAELens writes: a folder a layer.

Each has `cfg.json` and `sae_weights.safetensors` with W_enc (I, A), W_dec (A, I), b_dec (I,) and
b_enc (A,); jumprelu adds `threshold` (A,), gated has b_gate, b_mag and r_mag (A,) in place of
b_enc. The folder configured is one of these, or holds them. Configurations of version 6 keep the
place in `metadata`, older ones beside the rest. Whatever would have to be computed in another way
is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from services.scalars.autoencoders.autoencoder import Activation, Autoencoder, AutoencoderLayer
from services.scalars.autoencoders.gating import gated_as_threshold
from services.scalars.autoencoders.tensor_file import TensorFile, opened_tensors
from services.scalars.model.locations import ActivationLocationType, ModelShape
from shared.errors import ConfigurationError

_CONFIGURATION = "cfg.json"
_WEIGHTS = "sae_weights.safetensors"
_HOOK = re.compile(r"blocks\.(0|[1-9][0-9]{0,8})\.(.+)")
_LOCATIONS = {
    "mlp.hook_post": ActivationLocationType.MLP_POST_ACT,
    "hook_mlp_out": ActivationLocationType.RESID_DELTA_MLP,
    "hook_attn_out": ActivationLocationType.RESID_DELTA_ATTN,
}
_ARCHITECTURES = {
    "standard": Activation.RELU,
    "topk": Activation.TOPK,
    "jumprelu": Activation.JUMPRELU,
    "gated": Activation.GATED,
}
_TENSORS = {
    Activation.RELU: {"b_enc"},
    Activation.TOPK: {"b_enc"},
    Activation.JUMPRELU: {"b_enc", "threshold"},
    Activation.GATED: {"b_gate", "b_mag", "r_mag"},
}
_COMMON = {"W_enc", "W_dec", "b_dec"}


@dataclass(frozen=True)
class _Folder:
    """What cfg.json says."""

    path: Path
    location: ActivationLocationType
    layer: int
    activation: Activation
    latents: int
    k: int | None
    subtracts_output_bias: bool
    scales_by_decoder: bool


def is_saelens(path: Path) -> bool:
    """Whether a path is a folder, which only this layout has."""
    return path.is_dir()


def read_saelens(
    name: str, path: Path, key: str, shape: ModelShape, device: torch.device
) -> Autoencoder:
    """Reads and checks all layers; ConfigurationError naming `key` for everything wrong."""
    files = sorted(path.rglob(_CONFIGURATION))
    if not files:
        raise ConfigurationError(key, f"{path} has no {_CONFIGURATION}, nor has a folder in it")
    folders: dict[int, _Folder] = {}
    for file in files:
        folder = _read_configuration(file, key, shape)
        first = next(iter(folders.values()), folder)
        if folder.location is not first.location or folder.activation is not first.activation:
            raise ConfigurationError(
                key,
                f"{folder.path} holds {folder.activation} on {folder.location.value}, "
                f"{first.path} {first.activation} on {first.location.value}; "
                "one autoencoder has one of each",
            )
        if folder.layer in folders:
            raise ConfigurationError(
                key, f"{folder.path} and {folders[folder.layer].path} are of layer {folder.layer}"
            )
        folders[folder.layer] = folder
    layers = {}
    for folder in folders.values():
        width = shape.size(folder.location.dimensions[-1], 1)
        with opened_tensors(folder.path / _WEIGHTS, key, device) as weights:
            layers[folder.layer] = _layer(weights, folder, width)
    return Autoencoder(name, first.location, first.activation, layers)


class _Configuration:
    """Values of cfg.json, those of version 6's metadata among them."""

    def __init__(self, file: Path, key: str) -> None:
        self._file = file
        self._key = key
        try:
            content = msgspec.json.decode(file.read_bytes())
        except OSError as error:
            raise self.fault(f"can't be read: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.fault(f"is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise self.fault("must hold a JSON object")
        metadata = content.get("metadata")
        self._values: Mapping[str, Any] = {
            **(metadata if isinstance(metadata, dict) else {}),
            **content,
        }

    def fault(self, message: str) -> ConfigurationError:
        return ConfigurationError(self._key, f"{self._file}: {message}")

    def get(self, *names: str) -> Any:
        """The first of several names that is set."""
        return next((v for v in map(self._values.get, names) if v is not None), None)

    def count(self, value: Any, name: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fault(f"{name} is {value!r}; a positive whole number is needed")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fault(f"{name} is {value!r}; true or false is needed")
        return value

    def only(self, name: str, *accepted: Any) -> None:
        """Refuses values that would have to be computed in another way."""
        value = self.get(name)
        if value is not None and value not in accepted:
            raise self.fault(f"{name} is {value!r}, which is not served; {accepted[0]!r} is")


def _read_configuration(file: Path, key: str, shape: ModelShape) -> _Folder:
    configuration = _Configuration(file, key)
    location, layer = _place(configuration, shape)
    width = shape.size(location.dimensions[-1], 1)
    if configuration.get("d_in") != width:
        raise configuration.fault(
            f"d_in is {configuration.get('d_in')!r}; {location.value} has {width} channels"
        )
    configuration.only("normalize_activations", "none", False)
    configuration.only("reshape_activations", "none")
    configuration.only("finetuning_scaling_factor", False)
    configuration.only("normalize_decoder", False)
    if configuration.get("hook_head_index", "hook_point_head_index") is not None:
        raise configuration.fault("it reads a single head, which is not served")
    loading = configuration.get("model_from_pretrained_kwargs")
    if (
        isinstance(loading, dict)
        and loading.get("center_writing_weights")
        and location is not ActivationLocationType.MLP_POST_ACT
    ):
        raise configuration.fault(
            "it was made for a model with center_writing_weights, whose blocks write other values"
        )
    activation, k = _activation(configuration)
    scales_by_decoder = configuration.flag("rescale_acts_by_decoder_norm", default=False)
    if scales_by_decoder and activation in (Activation.JUMPRELU, Activation.GATED):
        raise configuration.fault(
            "rescale_acts_by_decoder_norm is true; it is served of standard and topk alone, as "
            "nothing says what becomes of a threshold"
        )
    latents = configuration.count(configuration.get("d_sae"), "d_sae")
    if k is not None and k > latents:
        raise configuration.fault(f"k is {k}, more than the {latents} latents")
    return _Folder(
        path=file.parent,
        location=location,
        layer=layer,
        activation=activation,
        latents=latents,
        k=k,
        subtracts_output_bias=configuration.flag("apply_b_dec_to_input", default=True),
        scales_by_decoder=scales_by_decoder,
    )


def _place(configuration: _Configuration, shape: ModelShape) -> tuple[ActivationLocationType, int]:
    hook = configuration.get("hook_name", "hook_point")
    matched = _HOOK.fullmatch(hook) if isinstance(hook, str) else None
    if matched is None or matched.group(2) not in _LOCATIONS:
        raise configuration.fault(
            f"hook_name is {hook!r}; served are blocks.<layer>.{{{', '.join(_LOCATIONS)}}}"
        )
    layer = int(matched.group(1))
    stated = configuration.get("hook_layer", "hook_point_layer")
    if stated is not None and stated != layer:
        raise configuration.fault(f"hook_layer is {stated!r}, but hook_name is {hook!r}")
    if layer >= shape.layers:
        raise configuration.fault(
            f"hook_name is {hook!r}; the model has layers 0 to {shape.layers - 1}"
        )
    return _LOCATIONS[matched.group(2)], layer


def _activation(configuration: _Configuration) -> tuple[Activation, int | None]:
    """The activation, by the architecture; older versions name it beside `standard`."""
    architecture = configuration.get("architecture")
    function = configuration.get("activation_fn", "activation_fn_str")
    if architecture is None and function is None:
        raise configuration.fault("neither architecture nor activation_fn says the activation")
    named = "standard" if architecture is None else architecture
    activation = _ARCHITECTURES.get(named) if isinstance(named, str) else None
    if activation is None:
        raise configuration.fault(
            f"architecture is {architecture!r}; served are {', '.join(_ARCHITECTURES)}"
        )
    k = configuration.get("k")
    if activation is Activation.RELU and function == "topk":
        activation = Activation.TOPK
    elif function not in (None, "relu", "topk" if activation is Activation.TOPK else "relu"):
        raise configuration.fault(
            f"activation_fn is {function!r}; served are relu and topk (architecture "
            f"{architecture!r})"
        )
    if activation is not Activation.TOPK:
        return activation, None
    arguments = configuration.get("activation_fn_kwargs")
    if k is None and isinstance(arguments, dict):
        k = arguments.get("k")
    return activation, configuration.count(k, "k")


def _layer(weights: TensorFile, folder: _Folder, width: int) -> AutoencoderLayer:
    latents = folder.latents
    _check_names(weights, folder, latents)
    encoder = weights.tensor("W_enc", (width, latents)).T
    decoder = weights.tensor("W_dec", (latents, width))
    output_bias = weights.tensor("b_dec", (width,))
    threshold: Tensor | None = None
    if folder.activation is Activation.GATED:
        encoder_bias = weights.tensor("b_mag", (latents,))
        encoder, threshold = gated_as_threshold(
            encoder,
            encoder_bias,
            weights.tensor("b_gate", (latents,)),
            weights.tensor("r_mag", (latents,)),
        )
    else:
        encoder_bias = weights.tensor("b_enc", (latents,))
    if folder.activation is Activation.JUMPRELU:
        # A negative threshold closes nothing: the positive part alone is kept.
        threshold = weights.tensor("threshold", (latents,)).relu()
    if folder.scales_by_decoder:
        # Latents in units of what they write: the length of each row moves into the encoder.
        lengths = decoder.norm(dim=1)
        if bool((lengths == 0).any()):
            raise weights.fault("W_dec has rows of zeros; rescale_acts_by_decoder_norm needs none")
        encoder, encoder_bias = encoder * lengths[:, None], encoder_bias * lengths
        decoder = decoder / lengths[:, None]
    return AutoencoderLayer(
        encoder=encoder,
        encoder_bias=encoder_bias,
        decoder=decoder,
        input_bias=output_bias if folder.subtracts_output_bias else torch.zeros_like(output_bias),
        output_bias=output_bias,
        threshold=threshold,
        k=folder.k,
    )


def _check_names(weights: TensorFile, folder: _Folder, latents: int) -> None:
    """Refuses tensors that nothing here would be done with."""
    known = _COMMON | _TENSORS[folder.activation]
    for name in sorted(weights.names - known):
        # Some versions wrote a factor that they then left alone.
        if name in ("scaling_factor", "finetuning_scaling_factor"):
            if bool((weights.tensor(name, (latents,)) != 1).any()):
                raise weights.fault(f"tensor {name} scales latents, which is not served")
            continue
        raise weights.fault(f"tensor {name} is unknown for {folder.activation}")
