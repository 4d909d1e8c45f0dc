"""Overwriting activations and gradients: checking what a request asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.scalars.autoencoders import NO_AUTOENCODERS, AutoencoderSet
from services.scalars.autoencoders.autoencoder_set import sizes_at
from services.scalars.deriving.indexing import ActivationIndex, python_index
from services.scalars.model.locations import ModelShape, PassType
from services.scalars.model.taps import Overwrite, RawTensorId
from services.scalars.passes.layers import check_layer
from shared.errors import InvalidArgument

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class AblationSpec:
    """Elements of an activation or gradient, and the value that they are set to."""

    index: ActivationIndex
    value: float


def resolve_ablations(
    specs: Sequence[AblationSpec],
    shape: ModelShape,
    n_tokens: int,
    autoencoders: AutoencoderSet = NO_AUTOENCODERS,
    *,
    backward: bool,
    field: str,
) -> tuple[Overwrite, ...]:
    """Checks ablations against the model, its autoencoders and the prompt.

    Raises InvalidArgument that names the field (`ablations[0].index.layer_index` after the prefix
    `field`) for a layer or index out of range, a wrong number of indices, a value that is not
    finite in single precision, a gradient to overwrite where there is no backward pass, or a place
    that no configured autoencoder makes.
    """
    return tuple(
        _resolve(spec, shape, n_tokens, autoencoders, backward, f"{field}[{position}]")
        for position, spec in enumerate(specs)
    )


def _resolve(
    spec: AblationSpec,
    shape: ModelShape,
    n_tokens: int,
    autoencoders: AutoencoderSet,
    backward: bool,
    field: str,
) -> Overwrite:
    index = spec.index
    location = index.activation_location_type
    if not math.isfinite(spec.value):
        raise InvalidArgument(
            f"the value {spec.value} is not a finite number", field=f"{field}.value"
        )
    if abs(spec.value) > _LARGEST:
        raise InvalidArgument(
            f"the value {spec.value} is too large; activations are finite in single precision, "
            f"up to {_LARGEST:.4g}",
            field=f"{field}.value",
        )
    check_layer(index.layer_index, location.value, location.has_layers, shape, f"{field}.index")
    autoencoder = None
    if not location.exists_by_default:
        autoencoder = autoencoders.resolve_location(location, index.layer_index, f"{field}.index")
    if index.pass_type is PassType.BACKWARD and not backward:
        raise InvalidArgument(
            "a gradient can't be overwritten without a backward pass; give a loss or a trace",
            field=f"{field}.index.pass_type",
            reason="LOSS_NEEDED",
        )
    sizes = sizes_at(location.dimensions, shape, n_tokens, autoencoder, index.layer_index)
    if len(index.tensor_indices) != len(sizes):
        raise InvalidArgument(
            f"{location.value} has {len(sizes)} dimensions "
            f"({', '.join(d.value for d in location.dimensions)}), "
            f"but {len(index.tensor_indices)} indices are given",
            field=f"{field}.index.tensor_indices",
        )
    for axis, (each, size) in enumerate(zip(index.tensor_indices, sizes, strict=True)):
        if each is not None and not 0 <= each < size:
            raise InvalidArgument(
                f"index {each} is not in {location.dimensions[axis].value}, which has {size}",
                field=f"{field}.index.tensor_indices[{axis}]",
            )
    return Overwrite(
        RawTensorId(location, index.layer_index, index.pass_type),
        python_index(index.tensor_indices),
        float(spec.value),
    )
