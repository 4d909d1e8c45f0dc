"""Scalars of autoencoders against the reference's tensors, in process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.scalars.autoencoders.loading import load_autoencoders
from services.scalars.catalogue import CATALOGUE, Derivers
from services.scalars.convert import inference_spec
from services.scalars.data_plane import DataPlane
from services.scalars.deriving.activations import RawActivationStore
from services.scalars.deriving.config import DstConfig
from services.scalars.engine.worker import Engine
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.subject import Subject, load_subject
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import PreparedInference, run_inference
from services.scalars.requests.selections import Selection
from shared.settings import Autoencoder
from tests.golden.scalars_manifest import disagreement, runs
from tests.golden.scalars_requests import autoencoder_files, inference

pytestmark = pytest.mark.golden

WITHOUT_BIAS = {
    "autoencoder_latent",
    "autoencoder_write_norm",
    "mlp_autoencoder_latent",
    "mlp_autoencoder_write_norm",
}
"""What the reference computes without the MLP's output bias, where an autoencoder reads that."""


@pytest.fixture(scope="module")
def subject(golden: Path) -> Subject:
    return load_subject("golden", str(golden / "model"), "cpu")


def with_autoencoders(subject: Subject, golden: Path, files: tuple[str, ...]) -> Subject:
    """The golden model with some of its autoencoders."""
    configured = [
        Autoencoder(name=file, path=str(golden / "model" / f"{file}.safetensors")) for file in files
    ]
    loaded = load_autoencoders(configured, subject.model, subject.tokenizer)
    return replace(subject, autoencoders=loaded)


@pytest.fixture
def data_plane(request: pytest.FixtureRequest, golden: Path, subject: Subject) -> Iterator[Any]:
    """Makes a data plane with the autoencoders of some files."""
    engines: list[Engine] = []

    def make(files: tuple[str, ...]) -> DataPlane:
        equipped = with_autoencoders(subject, golden, files)
        engines.append(Engine(equipped.model, equipped.autoencoders))
        return DataPlane(equipped, engines[-1])

    yield make
    for engine in engines:
        engine.close()


def concerns_autoencoders(name: str) -> bool:
    return name.startswith(("ae_", "latent_", "trace_ae_"))


COMPARED = {
    "ae_mlp_post_act": 216,
    "ae_mlp_post_act_topk": 72,
    "ae_multi_postact_attn": 76,
    "ae_multi_resid_mlp_attn": 64,
    "ae_resid_delta_attn": 60,
    "ae_resid_delta_mlp": 60,
    "latent_batched_resid_delta_attn_L1": 2,
    "latent_grad_mlp_post_act_L1": 2,
    "latent_grad_resid_delta_attn_L0": 7,
    "latent_grad_resid_delta_attn_L1": 14,
    "latent_grad_resid_delta_mlp_L1": 4,
    "trace_ae_mlp_post_act_post": 18,
    "trace_ae_mlp_post_act_pre": 18,
    "trace_ae_multi_mlp_post": 18,
    "trace_ae_multi_mlp_pre": 18,
    "trace_ae_resid_delta_attn_post": 18,
    "trace_ae_resid_delta_attn_pre": 18,
    "trace_ae_resid_delta_mlp_post": 18,
    "trace_ae_resid_delta_mlp_pre": 18,
}


def test_every_configuration_with_autoencoders_is_compared(manifest: dict[str, Any]) -> None:
    assert set(COMPARED) == set(filter(concerns_autoencoders, manifest["configs"]))


@pytest.mark.parametrize("name", sorted(COMPARED))
def test_tensors_are_those_of_the_reference(
    name: str, manifest: dict[str, Any], stored: dict[str, NDArray[Any]], data_plane: Any
) -> None:
    config = manifest["configs"][name]
    files = autoencoder_files(config)
    plane = data_plane(files)
    compared, wrong = 0, []
    for config_name, prompt, entries in runs(manifest):
        if config_name != name:
            continue
        text = manifest["prompts"][prompt]["prompt"]
        wanted = sorted({(entry["dst"], entry["layer"]) for entry in entries}, key=str)
        selections = [
            Selection(dst, layer_indices=() if layer is None else (layer,)) for dst, layer in wanted
        ]
        spec = inference_spec(inference(config, text), "inference")
        _, tensors = asyncio.run(plane.derive(spec, selections))
        derived = dict(zip(wanted, tensors, strict=True))
        for entry in entries:
            dst, layer = entry["dst"], entry["layer"]
            full = derived[dst, layer][layer]
            if (
                dst in WITHOUT_BIAS
                and config["autoencoders"].get("mlp_autoencoder_latent") == "resid_delta_mlp"
            ):
                online = derived[f"online_{dst}", layer][layer]
                np.testing.assert_allclose(full, online, atol=1e-6 * np.abs(online).max())
                full = without_bias(plane.subject, text, dst, layer)
            reason = disagreement(entry, stored[entry["key"]], full)
            compared += 1
            if reason:
                wrong.append(f"{entry['key']}: {reason}")
    assert not wrong, f"{len(wrong)} of {compared} disagree:\n" + "\n".join(wrong[:20])
    assert compared == COMPARED[name]


def without_bias(subject: Subject, text: str, dst: str, layer: int) -> NDArray[np.float32]:
    """The same derivation from the MLP's output less its bias, as the reference has it."""
    location = ActivationLocationType.RESID_DELTA_MLP
    target = RawTensorId(location, layer, PassType.FORWARD)
    tokens = tuple(subject.tokenizer.encode(text))
    run = run_inference(subject.model, PreparedInference(tokens, (), None), [target])
    output = run.raw_store.get(location, PassType.FORWARD).activations_by_layer_index[layer]
    bias = subject.model.write.mlp_bias[layer]
    assert bias is not None
    store = RawActivationStore({target: output - bias}, subject.model.shape.layers)
    derivers = Derivers(CATALOGUE, DstConfig(subject.model, autoencoders=subject.autoencoders))
    with torch.no_grad():
        derived = derivers[dst].derive_from_raw(store, PassType.FORWARD, [layer])
    array: NDArray[np.float32] = derived.activations_by_layer_index[layer].numpy()
    return array
