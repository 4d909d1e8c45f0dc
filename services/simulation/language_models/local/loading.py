"""A model and its tokenizer from a local folder, checked before anything is computed with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from services.simulation.model_loading import loading_alone
from shared.errors import ConfigurationError, Unavailable

_log = structlog.get_logger(__name__)

_SAMPLED_BLOCKS = 256
_BLOCK = 16 * 1024


@dataclass(frozen=True)
class LoadedModel:
    """A causal model of transformers in evaluation mode, and its tokenizer."""

    model: Any
    tokenizer: Any
    device: str
    fingerprint: str


def check_folder(path: str, key: str = "path") -> None:
    """Refuse a folder that can't hold a model, by its files' names alone.

    Raises:
        ConfigurationError: it is no folder, or has no configuration, weights or tokenizer; `key`
            is the configuration key that names it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigurationError(key, f"{path} is not a folder")
    if not (folder / "config.json").is_file():
        raise ConfigurationError(key, f"{path} has no config.json")
    if not _weights(folder):
        raise ConfigurationError(key, f"{path} has no weights in the safetensors format")
    if not (folder / "tokenizer.json").is_file():
        raise ConfigurationError(
            key, f"{path} has no tokenizer.json; a tokenizer in the fast format is needed"
        )


@loading_alone
def load_model(path: str, device: str = "auto", dtype: str = "float32") -> LoadedModel:
    """Load from a folder in the layout of Hugging Face, without any network; weights by mmap.

    Raises:
        Unavailable: the folder is incomplete or broken, what it holds is no causal language model,
            or there is no such device.
    """
    try:
        check_folder(path)
    except ConfigurationError as error:
        raise not_loaded(path, error.message) from error
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise not_loaded(path, f"device {device} is configured, and torch sees no GPU")
    if dtype not in ("float32", "bfloat16"):
        raise not_loaded(path, f"dtype {dtype!r} is neither float32 nor bfloat16")
    try:
        # Where it isn't refused, transformers asks at the terminal whether to run a folder's code.
        config = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            path, local_files_only=True, use_fast=True, trust_remote_code=False
        )
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            # Otherwise an error of no further word; what is found here is refused below.
            ignore_mismatched_sizes=True,
            # Scores that are capped exist in no fused kernel.
            **({"attn_implementation": "eager"} if _caps_scores(config) else {}),
        )
        model, found = loaded
        model = model.to(device).eval()
    # transformers, tokenizers, safetensors and huggingface_hub raise errors of many classes here.
    except Exception as error:
        raise not_loaded(path, _first_line(error)) from error
    _check_found(path, found)
    if not getattr(tokenizer, "is_fast", False):
        raise not_loaded(path, "the tokenizer has no fast form")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise not_loaded(
            path, f"the tokenizer has {len(tokenizer)} ids where the model has {vocabulary}"
        )
    return LoadedModel(model, tokenizer, device, fingerprint(Path(path), dtype))


def not_loaded(path: str, why: str) -> Unavailable:
    """The error of a model that can't be used."""
    return Unavailable(
        f"the model in {path} can't be loaded: {why}",
        reason="MODEL_NOT_LOADED",
        metadata={"path": path},
    )


def fingerprint(folder: Path, dtype: str) -> str:
    """What the answers depend on: configuration, tokenizer, weights and number format.

    Of each file of weights, the header and up to 256 blocks of 16 KiB spread over it are read.
    """
    digest = hashlib.blake2b(dtype.encode(), digest_size=16)
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for name in (*names, "chat_template.jinja"):
        if (folder / name).is_file():
            digest.update(name.encode() + hashlib.blake2b((folder / name).read_bytes()).digest())
    for file in _weights(folder):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
            digest.update(opened.read(min(header, size)))
            step = max(_BLOCK, (size - opened.tell()) // _SAMPLED_BLOCKS)
            for place in range(opened.tell(), size, step):
                opened.seek(place)
                digest.update(opened.read(_BLOCK))
            opened.seek(max(0, size - _BLOCK))
            digest.update(opened.read())
    return digest.hexdigest()


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _caps_scores(config: Any) -> bool:
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def _check_found(path: str, found: dict[str, Any]) -> None:
    """Weights that are missing or have another shape would be left at random."""
    for kind, word in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        names = sorted(str(n[0] if isinstance(n, tuple) else n) for n in found.get(kind, ()))
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise not_loaded(path, f"{len(names)} weights are {word}: {listed}")
    if found.get("unexpected_keys"):
        _log.warning("model_has_unused_weights", path=path, weights=len(found["unexpected_keys"]))


def _first_line(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"a file isn't JSON: {error}"
    if "custom code" in str(error):
        return "it needs code of the folder, and none is run"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no further word'}"[:500]
