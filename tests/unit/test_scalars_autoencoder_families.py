"""Autoencoders in both model families: identities, and gradients by finite differences."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from services.scalars.autoencoders.loading import load_autoencoders
from services.scalars.data_plane import DataPlane
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.engine.worker import Engine
from services.scalars.model.locations import ActivationLocationType
from services.scalars.model.subject import load_subject
from services.scalars.passes.ablations import AblationSpec
from services.scalars.passes.inference import InferenceSpec
from services.scalars.passes.losses import LossKind, LossSpec
from services.scalars.requests.selections import Selection
from tests.unit.scalars_autoencoders import (
    random_tensors,
    saelens_tensors,
    write_own_layout,
    write_saelens,
)
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_llama_checkpoint import write_llama_checkpoint

PROMPT = "The cat sat on the mat"
LOSS = LossSpec(LossKind.LOGIT_DIFF, (" cat",), (" the",))
LATENT = ActivationLocationType.ONLINE_MLP_AUTOENCODER_LATENT
ERROR = ActivationLocationType.ONLINE_MLP_AUTOENCODER_ERROR
HEADS_LATENT = ActivationLocationType.ONLINE_ATTENTION_AUTOENCODER_LATENT
LAYERS = (0, 1)
WRITERS = {"gpt2": write_checkpoint, "llama": write_llama_checkpoint}
Array = NDArray[np.float32]


@pytest.fixture(
    scope="module",
    params=[
        (family, activation)
        for family in WRITERS
        for activation in ("relu", "topk", "jumprelu", "gated")
    ],
    ids="-".join,
)
def plane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DataPlane]:
    family, activation = request.param
    path: Path = tmp_path_factory.mktemp(family)
    subject = load_subject("tiny", str(WRITERS[family](path / "model")), "cpu")
    shape = subject.model.shape
    parameters = {"topk": {"k": "4"}, "jumprelu": {"threshold": "0.2"}}
    neurons = write_own_layout(
        path / "neurons.safetensors",
        "mlp_post_act",
        {layer: random_tensors(shape.mlp_acts, 10, layer, activation) for layer in LAYERS},
        activation,
        **parameters.get(activation, {}),
    )
    for layer in LAYERS:
        heads = saelens_tensors(random_tensors(shape.residual_stream_channels, 8, layer))
        write_saelens(path / "heads" / str(layer), f"blocks.{layer}.hook_attn_out", heads)
    with structlog.testing.capture_logs() as logs:
        autoencoders = load_autoencoders(
            [neurons, neurons.model_copy(update={"name": "heads", "path": str(path / "heads")})],
            subject.model,
            subject.tokenizer,
        )
    assert [(each["event"], each["autoencoder"]) for each in logs] == [
        ("autoencoder_reconstruction", "neurons"),
        ("autoencoder_reconstruction", "heads"),
    ]
    # Random weights reconstruct nothing, and the log says so.
    assert {each["log_level"] for each in logs} == {"warning"}
    assert all(each["no_better_than_nothing_at_layers"] for each in logs)
    engine = Engine(subject.model, autoencoders)
    yield DataPlane(replace(subject, autoencoders=autoencoders), engine)
    engine.close()


def ablation(
    location: ActivationLocationType, layer: int, token: int, index: int, value: float
) -> AblationSpec:
    return AblationSpec(ActivationIndex(location, (token, index), layer), value)


def run(
    plane: DataPlane, names: tuple[str, ...], *ablations: AblationSpec
) -> tuple[float, dict[str, dict[int | None, Array]]]:
    spec = InferenceSpec(PROMPT, loss=LOSS, ablations=ablations)
    result, tensors = asyncio.run(plane.derive(spec, [Selection(each) for each in names]))
    assert result.loss is not None
    return result.loss, dict(zip(names, tensors, strict=True))


@pytest.mark.parametrize("ablated", [False, True])
def test_latents_errors_and_biases_add_up_to_the_layer(plane: DataPlane, ablated: bool) -> None:
    names = ("online_mlp_autoencoder_write", ERROR.value, "resid_delta_mlp")
    changes = [ablation(LATENT, 0, 2, 3, 1.5), ablation(ERROR, 1, 4, 5, -0.5)] if ablated else []
    _, derived = run(plane, names, *changes)
    autoencoder, write = plane.subject.autoencoders.mlp, plane.subject.model.write
    assert autoencoder is not None
    for layer in LAYERS:
        bias = autoencoder.layer(layer).output_bias.numpy()
        rest = (derived[ERROR.value][layer] + bias) @ write.mlp[layer].numpy()
        output_bias = write.mlp_bias[layer]
        if output_bias is not None:
            rest = rest + output_bias.numpy()
        total = derived["online_mlp_autoencoder_write"][layer].sum(axis=1) + rest
        np.testing.assert_allclose(total, derived["resid_delta_mlp"][layer], atol=5e-5)


@pytest.mark.parametrize("location", [LATENT, ERROR, HEADS_LATENT])
def test_act_times_grad_is_that_of_finite_differences(
    plane: DataPlane, location: ActivationLocationType
) -> None:
    if location is ERROR:
        names = (ERROR.value, f"{ERROR.value}_act_times_grad")
    else:
        names = (location.value, location.value.replace("_latent", "_act_times_grad"))
    _, derived = run(plane, names)
    for layer in LAYERS:
        values, products = (derived[name][layer] for name in names)
        scale = float(np.abs(products / np.where(values == 0, 1, values)).max())
        assert scale > 0
        active = np.argwhere(values != 0)
        for token, index in active[:: max(1, len(active) // 4)]:
            value, step = float(values[token, index]), 0.05
            ahead, behind = (
                run(plane, (), ablation(location, layer, int(token), int(index), value + change))[0]
                for change in (step, -step)
            )
            slope = (ahead - behind) / (2 * step)
            expected = float(products[token, index]) / value
            assert slope == pytest.approx(expected, rel=0.03, abs=0.01 * scale)
