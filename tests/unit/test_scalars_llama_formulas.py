"""Every scalar of the model alone, on the Llama family, against its definition in float64."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.catalogue import CATALOGUE, Requirement
from services.scalars.data_plane import DataPlane
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.engine.worker import Engine
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.subject import load_subject
from services.scalars.passes.ablations import AblationSpec
from services.scalars.passes.inference import InferenceSpec
from services.scalars.passes.losses import LossKind, LossSpec
from services.scalars.requests.selections import Selection
from tests.unit.scalars_float64 import Scalars, derived, flat
from tests.unit.scalars_float64_llama import Float64Llama
from tests.unit.scalars_llama_checkpoint import (
    LAYERS,
    VARIANTS,
    make_weights,
    write_llama_checkpoint,
)

PROMPT = "The cat sat on the mat, and the dog"
LOSS = LossSpec(LossKind.LOGIT_DIFF, (" cat", " dog"), (" the",))
SERVED = [
    each for each in CATALOGUE if each.requirements <= {Requirement.GRADIENT, Requirement.NO_LAYER}
]
FORWARD, BACKWARD = PassType.FORWARD, PassType.BACKWARD

Derived = dict[tuple[str, PassType], dict[int | None, NDArray[np.float32]]]


@pytest.fixture(scope="module", params=VARIANTS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DataPlane, Float64Llama]]:
    path: Path = write_llama_checkpoint(tmp_path_factory.mktemp("model"), request.param)
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    subject = load_subject("tiny", str(path), "cpu")
    engine = Engine(subject.model)
    yield DataPlane(subject, engine), Float64Llama(make_weights(config), config)
    engine.close()


def derive_all(plane: DataPlane, ablations: tuple[AblationSpec, ...] = ()) -> Derived:
    wanted = [(each.dst.name, pass_type) for each in SERVED for pass_type in each.pass_types]
    spec = InferenceSpec(PROMPT, ablations, LOSS)
    _, tensors = asyncio.run(plane.derive(spec, [Selection(*each) for each in wanted]))
    return dict(zip(wanted, tensors, strict=True))


def loss_of(plane: DataPlane, logits: Tensor) -> Tensor:
    targets, distractors = (
        [plane.subject.tokenizer.single_token(text, "") for text in texts]
        for texts in (LOSS.target_tokens, LOSS.distractor_tokens)
    )
    return logits[-1][targets].mean() - logits[-1][distractors].mean()


def by_definition(
    plane: DataPlane, model: Float64Llama
) -> dict[tuple[str, PassType], dict[int | None, Tensor]]:
    """All scalars and gradients in float64."""
    tokens = plane.subject.tokenizer.encode(PROMPT)
    raw = model.forward(tokens, lambda name, layer, x: x if x.requires_grad else x.requires_grad_())
    places = [(name, layer) for name, by_layer in raw.items() for layer in by_layer]
    gradients = torch.autograd.grad(
        loss_of(plane, raw["logits"][None]),
        [raw[name][layer] for name, layer in places],
        materialize_grads=True,
    )
    grad: Scalars = {}
    for (name, layer), gradient in zip(places, gradients, strict=True):
        grad.setdefault(name, {})[layer] = gradient
    scalars = derived(model, raw, grad)
    found = {(name, FORWARD): by_layer for name, by_layer in {**raw, **scalars}.items()}
    found |= {(name, BACKWARD): by_layer for name, by_layer in grad.items()}
    probs = grad["attn_qk_probs"]
    lengths = {
        layer: torch.einsum(
            "she,hed->shd", raw["attn_value"][layer], model.head_matrices(layer)
        ).norm(dim=2)
        for layer in range(LAYERS)
    }
    by_pair: dict[int | None, Tensor] = {
        layer: probs[layer] / lengths[layer][None] for layer in lengths
    }
    found["unflattened_attn_write_norm", BACKWARD] = by_pair
    found["attn_write_norm", BACKWARD] = {layer: flat(x) for layer, x in by_pair.items()}
    found["flattened_attn_post_softmax", BACKWARD] = {layer: flat(x) for layer, x in probs.items()}
    found["previous_layer_resid_post_mlp", BACKWARD] = {
        layer: grad["resid_post_mlp"][layer - 1] if layer else grad["resid_post_embedding"][None]
        for layer in range(LAYERS)
    }
    return {key: {n: x.detach() for n, x in by_layer.items()} for key, by_layer in found.items()}


def test_agrees_with_its_definition(case: tuple[DataPlane, Float64Llama]) -> None:
    plane, model = case
    here, expected = derive_all(plane), by_definition(plane, model)
    assert len(here) >= 17 * 2 + 30
    for key, by_layer in here.items():
        assert set(by_layer) == set(expected[key]), key
        for layer, got in by_layer.items():
            wanted = expected[key][layer].numpy()
            assert got.shape == wanted.shape, key
            finite = np.isfinite(wanted)
            assert np.array_equal(np.isneginf(got), np.isneginf(wanted)), key
            scale = np.abs(wanted[finite]).max(initial=0.0)
            error = np.abs(got[finite] - wanted[finite]).max(initial=0.0)
            assert error <= max(3e-5 * scale, 1e-6), (key, layer, error, scale)


def test_gradients_are_those_of_finite_differences(case: tuple[DataPlane, Float64Llama]) -> None:
    plane, model = case
    tokens = plane.subject.tokenizer.encode(PROMPT)
    here = derive_all(plane)
    step = 1e-5
    # A key or a value of one head alone, though it shares them with others.
    places: list[tuple[str, int | None, tuple[int, ...]]] = [
        ("attn_key", 1, (0, 1, 4)),
        ("attn_value", 0, (1, 2, 3)),
        ("attn_query", 2, (7, 0, 1)),
        ("attn_qk_probs", 1, (5, 2, 1)),
        ("attn_qk_logits", 2, (6, 0, 2)),
        ("attn_weighted_sum_of_values", 0, (3, 1, 2)),
        ("attn_input_layer_norm_scale", 1, (3, 0)),
        ("mlp_input_layer_norm_scale", 2, (8, 0)),
        ("resid_final_layer_norm_scale", None, (-1, 0)),
        ("mlp_pre_act", 0, (4, 3)),
        ("mlp_post_act", 1, (2, 7)),
        ("resid_post_attn", 1, (5, 11)),
        ("resid_delta_mlp", 0, (2, 9)),
        ("resid_post_embedding", None, (0, 5)),
    ]
    for name, layer, index in places:

        def loss_at(
            change: float,
            place: tuple[str, int | None] = (name, layer),
            at: tuple[int, ...] = index,
        ) -> float:
            def nudge(here: str, at_layer: int | None, x: Tensor) -> Tensor:
                if (here, at_layer) != place:
                    return x
                x = x.clone()
                x[at] += change
                return x

            return float(loss_of(plane, model.forward(tokens, nudge)["logits"][None]))

        slope = (loss_at(step) - loss_at(-step)) / (2 * step)
        gradient = here[name, BACKWARD][layer][index]
        assert gradient == pytest.approx(slope, rel=3e-3, abs=2e-5), name


def test_writes_add_up(case: tuple[DataPlane, Float64Llama]) -> None:
    plane, model = case
    constant_scale = AblationSpec(
        ActivationIndex(
            ActivationLocationType.RESID_FINAL_LAYER_NORM_SCALE, (None, None), None, BACKWARD
        ),
        0.0,
    )
    here = derive_all(plane, (constant_scale,))

    def at(name: str, layer: int | None, of: PassType = FORWARD) -> NDArray[np.float64]:
        return here[name, of][layer].astype(np.float64)

    def close(got: NDArray[np.float64], wanted: NDArray[np.float64]) -> None:
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * max(0.1, np.abs(wanted).max()))

    total = at("resid_post_embedding", None)
    effect = at("resid_post_embedding_proj_to_final_residual_grad", None)
    gradient = at("resid_post_mlp", LAYERS - 1, BACKWARD)
    for layer in range(LAYERS):
        # Probabilities times values are the weighted sum of values.
        close(
            np.einsum("tsh,she->the", at("attn_qk_probs", layer), at("attn_value", layer)),
            at("attn_weighted_sum_of_values", layer),
        )
        # What is written is what the residual stream gains.
        total = total + at("resid_delta_attn", layer)
        close(total, at("resid_post_attn", layer))
        total = total + at("resid_delta_mlp", layer)
        close(total, at("resid_post_mlp", layer))
        # Direct effects of all nodes and biases are the projection of the whole stream.
        effect = (
            effect
            + at("mlp_write_to_final_residual_grad", layer).sum(axis=1, keepdims=True)
            + at("unflattened_attn_write_to_final_residual_grad", layer).sum(axis=(1, 2))[:, None]
            + (gradient @ model.biases(layer).numpy())[:, None]
        )
        # Heads that share a value read the same.
        value = at("attn_value", layer)
        shared = model.heads // model.groups
        for head in range(model.heads):
            np.testing.assert_array_equal(value[:, head], value[:, head // shared * shared])
    close(effect, (total * gradient).sum(axis=1, keepdims=True))
    # With the last norm's scale constant the loss is linear in the stream, and has no bias.
    loss = loss_of(plane, torch.from_numpy(at("logits", None)))
    assert effect.sum() == pytest.approx(float(loss), rel=1e-4, abs=1e-5)


def test_a_shared_key_or_value_is_overwritten_for_one_head_alone(
    case: tuple[DataPlane, Float64Llama],
) -> None:
    plane = case[0]
    before = derive_all(plane)
    for location, changed in (
        (ActivationLocationType.ATTN_KEY, "attn_qk_logits"),
        (ActivationLocationType.ATTN_VALUE, "attn_weighted_sum_of_values"),
    ):
        index = ActivationIndex(location, (2, 1, None), 1)
        after = derive_all(plane, (AblationSpec(index, 0.5),))
        # Heads first.
        axis = 2 if changed == "attn_qk_logits" else 1
        old, new = (np.moveaxis(each[changed, FORWARD][1], axis, 0) for each in (before, after))
        np.testing.assert_array_equal(old[[0, 2, 3]], new[[0, 2, 3]])
        finite = np.isfinite(old[1])
        assert np.abs(old[1][finite] - new[1][finite]).max() > 1e-3
