"""Every derived scalar that this release serves, against the reference's tensors, in process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.scalars.ablations import AblationSpec
from services.scalars.catalogue import CATALOGUE
from services.scalars.data_plane import DataPlane
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.engine import Engine
from services.scalars.inference import InferenceSpec
from services.scalars.losses import LossKind, LossSpec
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.subject import load_subject
from services.scalars.selections import Selection

pytestmark = pytest.mark.golden


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


def inference_of(config: dict[str, Any], prompt: str) -> InferenceSpec:
    """What a golden configuration ran on a prompt."""
    loss = config["loss_fn"]
    return InferenceSpec(
        prompt=prompt,
        ablations=tuple(
            AblationSpec(
                ActivationIndex(
                    ActivationLocationType(spec["index"]["activation_location_type"]),
                    tuple(
                        None if index == "All" else index
                        for index in spec["index"]["tensor_indices"]
                    ),
                    spec["index"]["layer_index"],
                    PassType(spec["index"]["pass_type"]),
                ),
                spec["value"],
            )
            for spec in config["ablation_specs"]
        ),
        loss=None
        if loss is None
        else LossSpec(
            LossKind(loss["name"]),
            tuple(loss["target_tokens"] or ()),
            tuple(loss["distractor_tokens"] or ()),
        ),
    )


def runs(manifest: dict[str, Any]) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """Entries that this release serves, by configuration and prompt.

    Left out are what a trace or an autoencoder is needed for, and what is wrong in the reference.
    """
    by_run: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for entry in manifest["entries"]:
        config = manifest["configs"][entry["config"]]
        declaration = CATALOGUE[entry["dst"]]
        if (
            config["trace_config"] is None
            and declaration.make is not None
            and "peer_bug" not in entry
        ):
            by_run.setdefault((entry["config"], entry["prompt"]), []).append(entry)
    for (config_name, prompt), entries in by_run.items():
        yield config_name, prompt, entries


@pytest.fixture(scope="module")
def manifest(golden: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((golden / "derived_scalars/manifest.json").read_text())
    return content


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, NDArray[Any]]:
    with np.load(golden / "derived_scalars/golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def data_plane(golden: Path) -> Iterator[DataPlane]:
    subject = load_subject("golden", str(golden / "model"), "cpu")
    engine = Engine(subject.model)
    yield DataPlane(subject, engine)
    engine.close()


def test_every_golden_tensor_of_what_is_served(
    manifest: dict[str, Any], stored: dict[str, NDArray[Any]], data_plane: DataPlane
) -> None:
    compared, wrong = 0, []
    for config_name, prompt, entries in runs(manifest):
        config = manifest["configs"][config_name]
        wanted = sorted({(entry["dst"], entry["pass_type"]) for entry in entries})
        _, tensors = asyncio.run(
            data_plane.derive(
                inference_of(config, manifest["prompts"][prompt]["prompt"]),
                [Selection(dst, PassType(pass_type)) for dst, pass_type in wanted],
            )
        )
        derived = dict(zip(wanted, tensors, strict=True))
        for entry in entries:
            full = derived[entry["dst"], entry["pass_type"]][entry["layer"]]
            reason = disagreement(entry, stored[entry["key"]], full)
            compared += 1
            if reason:
                wrong.append(f"{entry['key']}: {reason}")
    assert not wrong, f"{len(wrong)} of {compared} disagree:\n" + "\n".join(wrong[:20])
    assert compared > 800
