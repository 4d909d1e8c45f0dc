"""Every derived scalar of the model alone, against the reference's tensors, in process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from services.scalars.data_plane import DataPlane
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.engine.worker import Engine
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.subject import load_subject
from services.scalars.passes.ablations import AblationSpec
from services.scalars.passes.inference import InferenceSpec
from services.scalars.passes.losses import LossKind, LossSpec
from services.scalars.requests.selections import Selection
from tests.golden.scalars_manifest import (
    disagreement,
    runs_of_the_model_alone,
)

pytestmark = pytest.mark.golden


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


@pytest.fixture(scope="module")
def data_plane(golden: Path) -> Iterator[DataPlane]:
    subject = load_subject("golden", str(golden / "model"), "cpu")
    engine = Engine(subject.model)
    yield DataPlane(subject, engine)
    engine.close()


def test_every_golden_tensor_of_the_model_alone(
    manifest: dict[str, Any], stored: dict[str, NDArray[Any]], data_plane: DataPlane
) -> None:
    compared, wrong = 0, []
    for config_name, prompt, entries in runs_of_the_model_alone(manifest):
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
    assert compared == 820
