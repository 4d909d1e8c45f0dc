"""Reading a model directory in Hugging Face layout.

`config.json`, and `model.safetensors` or shards with `model.safetensors.index.json`. Tensors are
memory-mapped one by one: one that is converted or copied to a device lets go of its part of the
file before the next is read, so that loading takes no more than the weights and the largest of
them. Whatever is missing, half written or of the wrong shape is a `ConfigurationError` at start
that names the file or the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ConfigurationError

MODEL_KEY = "model.path"
"""The configuration key that errors about the model directory name."""

_UNEMBEDDING = "lm_head.weight"
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


class Checkpoint:
    """The configuration and the tensors of a model directory.

    `files` says which file holds a tensor. `dtype` is that of the weights of layers; everything
    else is float32.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        files: Mapping[str, Path],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.directory = directory
        self.config = config
        self.dtype = dtype
        self._files = files

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors that the files hold."""
        return frozenset(self._files)

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

    def flag(self, name: str, *, default: bool) -> bool:
        """A truth value from config.json."""
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _fault(f"config.json: {name} is {value!r}; true or false is needed")
        return value

    def fraction(self, name: str, *, default: float) -> float:
        """A number between 0 and 1 from config.json."""
        value = self.config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise _fault(f"config.json: {name} is {value!r}, not between 0 and 1")
        return float(value)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """A tensor by name in float32 or the type asked for, its shape and values checked."""
        if name not in self._files:
            raise _fault(f"tensor {name} is missing from {self.directory}")
        with _opened(self._files[name]) as opened:
            tensor: Tensor = opened.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise _fault(f"tensor {name} has shape {list(tensor.shape)}; {list(shape)} is needed")
        if not tensor.is_floating_point():
            raise _fault(f"tensor {name} is of type {tensor.dtype}; floating point is needed")
        tensor = tensor.to(dtype or torch.float32)
        # Both are NaN where anything is; no copy of a large tensor is made to find out.
        if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor)):
            raise _fault(f"tensor {name} holds values that are not finite")
        return tensor

    def unembedding(self, embedding: Tensor, *, tied: bool) -> Tensor:
        """`embedding` (V, D) itself where it is tied to the unembedding, else lm_head.weight.

        ConfigurationError also where the two are said to be tied, but the files hold another.
        """
        if tied and _UNEMBEDDING not in self._files:
            return embedding
        own = self.tensor(_UNEMBEDDING, tuple(embedding.shape)).to(embedding.device)
        if not tied:
            return own
        if not torch.equal(own, embedding):
            raise _fault(
                f"config.json: tie_word_embeddings is true, but {_UNEMBEDDING} differs from the "
                "embedding"
            )
        return embedding


def load_checkpoint(path: str | Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Opens a model directory; `dtype` is what the weights of layers will be.

    Raises ConfigurationError (key `model.path`) where the directory, config.json, a shard or its
    index is missing or can't be read.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise _fault(f"{directory} is not a directory with a model in Hugging Face layout")
    config = read_object(directory / "config.json")
    files: dict[str, Path] = {}
    for file in _weight_files(directory):
        with _opened(file) as opened:
            files.update(dict.fromkeys(opened.keys(), file))
    return Checkpoint(directory, config, files, dtype)


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _SINGLE_FILE).is_file():
        return [directory / _SINGLE_FILE]
    index_file = directory / _INDEX_FILE
    if not index_file.is_file():
        raise _fault(f"{directory} has neither {_SINGLE_FILE} nor {_INDEX_FILE}")
    weight_map = read_object(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _fault(f"{_INDEX_FILE}: weight_map is missing or empty")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise _fault(f"{_INDEX_FILE}: the shard {name!r} must be a file beside it")
    return [directory / name for name in names]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    if not file.is_file():
        raise _fault(f"{file} is missing")
    try:
        with safe_open(str(file), framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError, ValueError) as error:
        raise _fault(f"{file} can't be read as safetensors: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object from a file of the model directory; ConfigurationError where it isn't one."""
    try:
        content = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError as error:
        raise _fault(f"{file} is missing") from error
    except OSError as error:
        raise _fault(f"{file} can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _fault(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _fault(f"{file} must hold a JSON object")
    return content


def _fault(message: str) -> ConfigurationError:
    return ConfigurationError(MODEL_KEY, message)
