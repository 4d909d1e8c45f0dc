"""The reference's tensors, and when one agrees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def disagreement(entry: dict[str, Any], stored: NDArray[Any], full: NDArray[Any]) -> str | None:
    """Why a tensor disagrees with a golden one; None where it agrees."""
    if list(full.shape) != entry["shape"]:
        return f"shape {full.shape} instead of {entry['shape']}"
    sampled = full.reshape(-1)[:: entry["stride"]]
    if not np.array_equal(np.isneginf(sampled), np.isneginf(stored)):
        return "-inf stands in other places"
    finite = np.isfinite(stored)
    if not np.isfinite(sampled[finite]).all():
        return "not finite where the reference is"
    values = full[np.isfinite(full)].astype(np.float64)
    if values.size != entry["n_finite"]:
        return f"{values.size} finite elements instead of {entry['n_finite']}"
    largest, sumsq = entry["absmax"], entry["sumsq"]
    if largest == 0:
        return None if np.abs(values).max(initial=0.0) <= 1e-6 else "not all zero"
    difference = np.abs(sampled[finite].astype(np.float64) - stored[finite]).max(initial=0.0)
    if difference > 2e-4 * largest:
        return f"differs by {difference} of {largest}"
    if abs(values.sum() - entry["sum"]) > 2e-4 * (values.size * sumsq) ** 0.5:
        return f"sum {values.sum()} instead of {entry['sum']}"
    if abs((values**2).sum() - sumsq) > 4e-4 * sumsq:
        return f"sum of squares {(values**2).sum()} instead of {sumsq}"
    return None


Run = tuple[str, int, list[dict[str, Any]]]
"""Name of a configuration, number of a prompt, entries."""


def runs(manifest: dict[str, Any]) -> Iterator[Run]:
    """All entries that are right in the reference, by configuration and prompt."""
    by_run: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for entry in manifest["entries"]:
        if "peer_bug" not in entry:
            by_run.setdefault((entry["config"], entry["prompt"]), []).append(entry)
    for (config_name, prompt), entries in by_run.items():
        yield config_name, prompt, entries


def runs_of_the_model_alone(manifest: dict[str, Any]) -> Iterator[Run]:
    """Those that need no autoencoder, no trace and no node to attribute to."""
    for config_name, prompt, entries in runs(manifest):
        config = manifest["configs"][config_name]
        if not config["autoencoders"] and not any(config["dst_config"].values()):
            yield config_name, prompt, entries


def read_manifest(golden: Path) -> dict[str, Any]:
    """What was computed, and how."""
    content: dict[str, Any] = json.loads((golden / "derived_scalars/manifest.json").read_text())
    return content


def read_arrays(golden: Path) -> dict[str, NDArray[Any]]:
    """The stored elements of each tensor, by key."""
    with np.load(golden / "derived_scalars/golden.npz") as arrays:
        return dict(arrays)
