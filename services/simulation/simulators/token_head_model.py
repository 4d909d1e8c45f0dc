"""A token classifier with 11 labels, from a local Hugging Face folder.

torch and transformers are imported when a model is loaded, not before. Weights are read from
safetensors alone, and code that a folder brings is never run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.simulation.model_loading import loading_alone
from services.simulation.model_positions import max_positions
from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.piece_alignment import PairTokenizer

FloatArray = NDArray[np.float64]

MOST_PIECES = 4096
"""Of one row, whatever the model's configuration says."""
_FINGERPRINTED_BYTES = 1 << 20


class BrokenFolder(Exception):
    """A folder that holds no usable model; the message names the file and what would be right."""


@dataclass(frozen=True)
class TokenClassifier:
    """The model, its tokenizer, and which output is which value."""

    model: Any
    tokenizer: PairTokenizer
    device: str
    max_pieces: int
    columns: tuple[int, ...]
    """The label of each value from 0 to 10."""
    has_types: bool
    pad_id: int

    @classmethod
    @loading_alone
    def load(cls, folder: Path, device: str) -> TokenClassifier:
        """Load it; seconds, and as much memory as its weights in single precision.

        Raises:
            BrokenFolder: a file is missing or broken, there aren't 11 labels named 0 to 10, a
                weight is missing or isn't finite, or the tokenizer has more pieces than the model.
            ImportError: torch or transformers isn't installed.
        """
        columns = label_columns(folder)
        tokenizer = _tokenizer(folder)
        if not any(folder.glob("*.safetensors")):
            raise BrokenFolder(f"{folder} has no weights: a model.safetensors is needed")
        import torch
        from transformers import AutoModelForTokenClassification
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model, report = AutoModelForTokenClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:
            # Whatever a broken folder makes transformers raise, it is the folder.
            raise BrokenFolder(f"{folder} holds no token classifier: {_short(error)}") from error
        absent = sorted(report["missing_keys"]) or [
            str(each[0]) if isinstance(each, tuple) else str(each)
            for each in report["mismatched_keys"]
        ]
        if absent:
            raise BrokenFolder(
                f"{folder} lacks weights, {absent[0]} first ({len(absent)} in all); a model that "
                "was trained and saved as a token classifier is needed"
            )
        for name, weights in model.named_parameters():
            if not bool(torch.isfinite(weights).all()):
                raise BrokenFolder(f"{folder}: {name} has weights that are no finite numbers")
        rows = model.get_input_embeddings().num_embeddings
        if tokenizer.vocabulary_size > rows:
            raise BrokenFolder(
                f"{folder}: its tokenizer has {tokenizer.vocabulary_size} pieces, and the model "
                f"vectors for {rows} alone"
            )
        model = model.eval().to(chosen)
        config = model.config
        return cls(
            model=model,
            tokenizer=tokenizer,
            device=chosen,
            max_pieces=min(MOST_PIECES, max_positions(model) or MOST_PIECES),
            columns=columns,
            has_types=(getattr(config, "type_vocab_size", 0) or 0) > 1,
            pad_id=getattr(config, "pad_token_id", None) or 0,
        )

    def distributions(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[FloatArray]:
        """Probabilities [pieces, 11] of the values 0 to 10, a row (ids, type ids) each.

        Where the model's numbers aren't finite, a piece's probabilities are NaN.
        """
        import torch

        length = max(len(ids) for ids, _ in rows)
        ids = np.full((len(rows), length), self.pad_id, dtype=np.int64)
        types = np.zeros_like(ids)
        mask = np.zeros_like(ids)
        for number, (own_ids, own_types) in enumerate(rows):
            ids[number, : len(own_ids)] = own_ids
            types[number, : len(own_ids)] = own_types
            mask[number, : len(own_ids)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.has_types:
            inputs["token_type_ids"] = types
        with torch.inference_mode():
            logits = self.model(
                **{name: torch.from_numpy(value).to(self.device) for name, value in inputs.items()}
            ).logits
            chosen = logits[..., list(self.columns)].double()
            probabilities = torch.softmax(chosen, dim=-1).cpu().numpy()
        return [probabilities[number, : len(own)] for number, (own, _) in enumerate(rows)]


def label_columns(folder: Path) -> tuple[int, ...]:
    """Which output is which value, from `config.json`'s `id2label`.

    Raises:
        BrokenFolder: there is no such file, or its labels aren't 0 to 10.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BrokenFolder(f"{path} doesn't exist: a Hugging Face folder is needed") from error
    except (OSError, ValueError) as error:
        raise BrokenFolder(f"{path} can't be read: {_short(error)}") from error
    labels = config.get("id2label") if isinstance(config, dict) else None
    wanted = [str(value) for value in range(NUM_VALUES)]
    if not isinstance(labels, dict) or sorted(map(str, labels.values())) != sorted(wanted):
        given = len(labels) if isinstance(labels, dict) else "no"
        raise BrokenFolder(
            f'{path}: id2label has {given} labels; it must name {NUM_VALUES}, "0" to "10"'
        )
    by_label = {str(label): number for number, label in labels.items()}
    try:
        columns = tuple(int(by_label[label]) for label in wanted)
    except ValueError as error:
        raise BrokenFolder(f"{path}: id2label has keys that are no numbers") from error
    if sorted(columns) != list(range(NUM_VALUES)):
        raise BrokenFolder(f"{path}: id2label must number its labels 0 to {NUM_VALUES - 1}")
    return columns


def fingerprint(folder: Path) -> str:
    """Short hash that changes with the model: of its configuration, tokenizer and weights.

    Of weights over a megabyte, the size, the beginning and the end are read. Empty where there is
    nothing to read.
    """
    digest = hashlib.sha256()
    found = False
    for path in sorted(folder.glob("*")):
        if path.name not in ("config.json", "tokenizer.json") and path.suffix != ".safetensors":
            continue
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                digest.update(f"{path.name}\0{size}\0".encode())
                digest.update(file.read(_FINGERPRINTED_BYTES))
                file.seek(max(_FINGERPRINTED_BYTES, size - _FINGERPRINTED_BYTES))
                digest.update(file.read(_FINGERPRINTED_BYTES))
                found = True
        except OSError:
            continue
    return digest.hexdigest()[:12] if found else ""


def _tokenizer(folder: Path) -> PairTokenizer:
    path = folder / "tokenizer.json"
    try:
        return PairTokenizer(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BrokenFolder(f"{path} doesn't exist: a fast tokenizer is needed") from error
    except Exception as error:
        # The library raises plain Exceptions for a definition that it can't read.
        raise BrokenFolder(f"{path} holds no tokenizer: {_short(error)}") from error


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"
