"""Reading a model directory in Hugging Face layout.

`config.json`, and `model.safetensors` or shards with `model.safetensors.index.json`. Tensors are
memory-mapped; half-precision ones are upcast to float32. Whatever is missing, half written or of
the wrong shape is a `ConfigurationError` at start that names the file or the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ConfigurationError

MODEL_KEY = "model.path"
"""The configuration key that errors about the model directory name."""

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


class Checkpoint:
    """The configuration and the tensors of a model directory."""

    def __init__(self, directory: Path, config: Mapping[str, Any], tensors: dict[str, Tensor]):
        self.directory = directory
        self.config = config
        self._tensors = tensors

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors that the files hold."""
        return frozenset(self._tensors)

    def integer(self, *names: str, default: int | None = None) -> int:
        """A positive whole number from config.json, by the first of several names that is set."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise _fault(f"config.json: {name} is {value!r}; a positive whole number is needed")
            return value
        if default is None:
            raise _fault(f"config.json: {names[0]} is missing")
        return default

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor by name, its shape and values checked."""
        if name not in self._tensors:
            raise _fault(f"tensor {name} is missing from {self.directory}")
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise _fault(f"tensor {name} has shape {list(tensor.shape)}; {list(shape)} is needed")
        if not tensor.is_floating_point():
            raise _fault(f"tensor {name} is of type {tensor.dtype}; floating point is needed")
        tensor = tensor.to(torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise _fault(f"tensor {name} holds values that are not finite")
        return tensor


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a model directory.

    Raises ConfigurationError (key `model.path`) where the directory, config.json, a shard or its
    index is missing or can't be read.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise _fault(f"{directory} is not a directory with a model in Hugging Face layout")
    config = _read_object(directory / "config.json")
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(directory):
        tensors.update(_read_tensors(file))
    return Checkpoint(directory, config, tensors)


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _SINGLE_FILE).is_file():
        return [directory / _SINGLE_FILE]
    index_file = directory / _INDEX_FILE
    if not index_file.is_file():
        raise _fault(f"{directory} has neither {_SINGLE_FILE} nor {_INDEX_FILE}")
    weight_map = _read_object(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _fault(f"{_INDEX_FILE}: weight_map is missing or empty")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise _fault(f"{_INDEX_FILE}: the shard {name!r} must be a file beside it")
    return [directory / name for name in names]


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise _fault(f"{file} is missing")
    try:
        with safe_open(str(file), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _fault(f"{file} can't be read as safetensors: {error}") from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError as error:
        raise _fault(f"{file} is missing") from error
    except OSError as error:
        raise _fault(f"{file} can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _fault(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _fault(f"{file} must hold a JSON object")
    return content


def _fault(message: str) -> ConfigurationError:
    return ConfigurationError(MODEL_KEY, message)
