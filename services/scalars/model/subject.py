"""The subject model of a deployment: weights, tokenizer and device, loaded and checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from services.scalars.autoencoders import NO_AUTOENCODERS, AutoencoderSet
from services.scalars.model.checkpoint import load_checkpoint
from services.scalars.model.family import SubjectModel, build_model
from services.scalars.model.tokenizer import TextTokenizer
from shared.errors import ConfigurationError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    """A model that is ready to run."""

    name: str
    family: str
    model: SubjectModel
    tokenizer: TextTokenizer
    autoencoders: AutoencoderSet = NO_AUTOENCODERS

    @property
    def beginning_token(self) -> str:
        """What belongs before a text, empty where the model needs nothing."""
        token = self.tokenizer.beginning_token
        return "" if token is None else self.tokenizer.decode(token)


def load_subject(name: str, path: str, device: str, dtype: str = "float32") -> Subject:
    """Loads a model directory onto a device (`auto`, `cpu`, `cuda`, `cuda:1`).

    `dtype` is that of the weights of layers, float32 or bfloat16; all else is float32.

    Raises ConfigurationError where the device is not there, or the directory is missing,
    incomplete or of no family that is served.
    """
    chosen = choose_device(device)
    # Gradients of different runs must compare: no reduced precision anywhere.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    checkpoint = load_checkpoint(path, _DTYPES[dtype])
    model = build_model(checkpoint, chosen)
    tokenizer = TextTokenizer.load(checkpoint.directory, model.shape.vocab_size, checkpoint.config)
    return Subject(name, str(checkpoint.config["model_type"]), model, tokenizer)


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first GPU, or the CPU where there is none."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if available else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if index >= available:
        raise ConfigurationError(
            "model.device", f"{name} is not there; this machine has {available} GPUs"
        )
    return torch.device("cuda", index)
