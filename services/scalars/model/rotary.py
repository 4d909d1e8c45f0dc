"""Rotary positions: pairs of channels of a query or key turned by an angle of their position.

Reads both forms of a Hugging Face configuration, `rope_parameters` and the older `rope_theta` with
`rope_scaling`. Frequencies: Su et al. 2021 (default), positions divided by a factor (linear), and
low frequencies alone divided by it (Llama 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.scalars.model.checkpoint import MODEL_KEY, Checkpoint
from shared.errors import ConfigurationError

_DEFAULT_BASE = 10_000.0
_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rotation:
    """The turn of a sequence of positions; `cos` and `sin` have shape (T, 1, dh)."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Queries or keys (T, heads, dh), turned, and scaled as the rotation was made."""
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * self.cos + turned * self.sin


class RotaryPositions:
    """The angles of a model: position times frequency, a frequency for every pair of channels.

    `frequencies` has shape (dh / 2,); channel i is paired with channel i + dh / 2.
    """

    def __init__(self, frequencies: Tensor) -> None:
        self.frequencies = frequencies

    def at(self, positions: Tensor, scale: float) -> Rotation:
        """The turn at integer positions (T,), times a factor that both sides of a product share."""
        angles = positions.to(torch.float32)[:, None] * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return Rotation(angles.cos() * scale, angles.sin() * scale)


def read_rotary(checkpoint: Checkpoint, channels: int, device: torch.device) -> RotaryPositions:
    """The rotary positions of a checkpoint's configuration.

    Raises ConfigurationError naming the key of config.json for a type other than default, linear
    or llama3, for one that differs between layers or turns part of a head, and for numbers that
    are missing or make no sense.
    """
    if channels % 2:
        raise _fault(f"head_dim is {channels}; rotary positions need an even number of channels")
    key, parameters = _parameters(checkpoint.config)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in _TYPES:
        raise _fault(f"{key}.rope_type is {kind!r}; these are served: {', '.join(_TYPES)}")
    for source, name in ((parameters, f"{key}."), (checkpoint.config, "")):
        part = source.get("partial_rotary_factor")
        if part is not None and part != 1:
            raise _fault(
                f"{name}partial_rotary_factor is {part!r}; heads are turned whole or not served"
            )
    base = parameters.get("rope_theta", checkpoint.config.get("rope_theta"))
    base = _DEFAULT_BASE if base is None else _number(base, f"{key}.rope_theta", above=1.0)
    exponents = torch.arange(0, channels, 2, dtype=torch.float32) / channels
    frequencies = 1.0 / base**exponents

    def number(name: str, above: float = 0.0) -> float:
        return _number(parameters.get(name), f"{key}.{name}", above=above)

    if kind == "linear":
        frequencies = frequencies / number("factor")
    if kind == "llama3":
        # A length beside the parameters is the stronger one, as the library has it.
        length = next(
            (
                source[name]
                for source, name in (
                    (checkpoint.config, "original_max_position_embeddings"),
                    (parameters, "original_max_position_embeddings"),
                    (checkpoint.config, "max_position_embeddings"),
                )
                if source.get(name) is not None
            ),
            None,
        )
        low = number("low_freq_factor")
        frequencies = _llama3(
            frequencies,
            factor=number("factor"),
            low=low,
            high=number("high_freq_factor", above=low),
            length=_number(length, f"{key}.original_max_position_embeddings"),
        )
    return RotaryPositions(frequencies.to(device))


def _llama3(
    frequencies: Tensor, *, factor: float, low: float, high: float, length: float
) -> Tensor:
    """Turns in `length` positions below `low`: divided; above `high`: kept; between: mixed."""
    turns = length * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def _parameters(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The parameters and the key that holds them; of both forms the older one is the stronger."""
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if not value:
            continue
        if not isinstance(value, dict):
            raise _fault(f"{key} is {value!r}; an object is needed")
        nested = [name for name, inner in value.items() if isinstance(inner, dict)]
        if nested:
            raise _fault(f"{key} differs between layers ({', '.join(nested)}), which isn't served")
        return key, value
    return "rope_parameters", {}


def _number(value: object, name: str, above: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _fault(f"{name} is {value!r}; a number above {above:g} is needed")
    if not (math.isfinite(value) and value > above):
        raise _fault(f"{name} is {value!r}; a number above {above:g} is needed")
    return float(value)


def _fault(message: str) -> ConfigurationError:
    return ConfigurationError(MODEL_KEY, f"config.json: {message}")
