"""Where the recipe reads and writes."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / "var" / "demo-data"
"""Downloads, cleaned text and checkpoints; ignored by git and safe to delete."""

DEMO = REPOSITORY / "data" / "demo"
MODEL = DEMO / "model"
RECORDS = DEMO / "records"
EXPLANATIONS = DEMO / "explanations"
CORPUS = DEMO / "corpus.jsonl.gz"
"""Held-out text that the records were collated from."""

TRAIN = "train"
VALIDATION = "validation"
HELD_OUT = "held_out"
SPLITS = (TRAIN, VALIDATION, HELD_OUT)

END_OF_TEXT = "<|endoftext|>"


def passages_path(split: str, cache: Path = CACHE) -> Path:
    """JSON lines of one split: `{"source": ..., "text": ...}`, in the order of the sources."""
    return cache / f"{split}.jsonl"
