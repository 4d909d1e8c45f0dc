"""Reading the tensors of an autoencoder's file, each one checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ConfigurationError


class TensorFile:
    """An open safetensors file; every fault is a ConfigurationError that names `key`.

    `device` is where tensors go. Use it within `opened`.
    """

    def __init__(self, path: Path, key: str, device: torch.device, opened: Any) -> None:
        self.path = path
        self.key = key
        self.device = device
        self._opened = opened
        self.metadata: Mapping[str, str] = opened.metadata() or {}
        self.names = frozenset(opened.keys())

    def fault(self, message: str) -> ConfigurationError:
        """The error that says what is wrong with this file."""
        return ConfigurationError(self.key, f"{self.path}: {message}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        if name not in self.names:
            raise self.fault(f"tensor {name} is missing")
        return tuple(self._opened.get_slice(name).get_shape())

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor in float32 on the device, its shape, type and values checked."""
        found = self.shape(name)
        if found != shape:
            raise self.fault(f"tensor {name} has shape {list(found)}; {list(shape)} is needed")
        tensor: Tensor = self._opened.get_tensor(name)
        if not tensor.is_floating_point():
            raise self.fault(f"tensor {name} is of type {tensor.dtype}; floating point is needed")
        tensor = tensor.to(self.device, torch.float32)
        if tensor.numel() and not all(bool(each.isfinite()) for each in torch.aminmax(tensor)):
            raise self.fault(f"tensor {name} holds values that are not finite")
        return tensor


@contextmanager
def opened_tensors(path: Path, key: str, device: torch.device) -> Iterator[TensorFile]:
    """Opens a safetensors file; ConfigurationError where it is missing or cut short."""
    if not path.is_file():
        raise ConfigurationError(key, f"{path} is not a safetensors file")
    try:
        with safe_open(str(path), framework="pt") as opened:
            yield TensorFile(path, key, device, opened)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigurationError(key, f"{path} can't be read as safetensors: {error}") from error
