"""Every scalar that is served, against its definition in float64, and identities between them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

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
from tests.unit.scalars_checkpoint import HEADS, LAYERS, make_weights, write_checkpoint
from tests.unit.scalars_float64 import Float64Model, Scalars, derived, flat

PROMPT = "The cat sat on the mat, and the dog"
LOSS = LossSpec(LossKind.LOGIT_DIFF, (" cat", " dog"), (" the",))
SERVED = [
    each for each in CATALOGUE if each.requirements <= {Requirement.GRADIENT, Requirement.NO_LAYER}
]
"""Types of the model alone: without traces, edges and autoencoders."""

Derived = dict[tuple[str, PassType], dict[int | None, NDArray[np.float32]]]


@pytest.fixture(scope="module")
def data_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataPlane]:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    subject = load_subject("tiny", str(path), "cpu")
    engine = Engine(subject.model)
    yield DataPlane(subject, engine)
    engine.close()


@pytest.fixture(scope="module")
def model(data_plane: DataPlane) -> Float64Model:
    return Float64Model(make_weights(data_plane.subject.model.shape.vocab_size, ""), HEADS)


def derive_all(plane: DataPlane, spec: InferenceSpec) -> Derived:
    wanted = [(each.dst.name, pass_type) for each in SERVED for pass_type in each.pass_types]
    _, tensors = asyncio.run(plane.derive(spec, [Selection(*each) for each in wanted]))
    return dict(zip(wanted, tensors, strict=True))


def loss_of(plane: DataPlane, logits: Tensor, loss: LossSpec) -> Tensor:
    ids = [
        [plane.subject.tokenizer.single_token(text, "") for text in texts]
        for texts in (loss.target_tokens, loss.distractor_tokens)
    ]
    at = logits[-1 if loss.position is None else loss.position]
    match loss.kind:
        case LossKind.LOGIT_DIFF:
            return at[ids[0]].mean() - (at[ids[1]].mean() if ids[1] else 0)
        case LossKind.LOGIT_MINUS_MEAN:
            return at[ids[0]].mean() - at.mean()
        case LossKind.PROBS:
            return (at.exp() / at.exp().sum())[ids[0]].sum()
        case LossKind.ZERO:
            return 0 * logits.sum()


def by_definition(
    plane: DataPlane, model: Float64Model, loss: LossSpec
) -> dict[tuple[str, PassType], dict[int | None, Tensor]]:
    """All scalars and gradients in float64."""
    tokens = plane.subject.tokenizer.encode(PROMPT)

    def differentiable(name: str, layer: int | None, x: Tensor) -> Tensor:
        return x if x.requires_grad else x.requires_grad_()

    raw = model.forward(tokens, differentiable)
    places = [(name, layer) for name, by_layer in raw.items() for layer in by_layer]
    gradients = torch.autograd.grad(
        loss_of(plane, raw["logits"][None], loss),
        [raw[name][layer] for name, layer in places],
        allow_unused=True,
        materialize_grads=True,
    )
    grad: Scalars = {}
    for (name, layer), gradient in zip(places, gradients, strict=True):
        grad.setdefault(name, {})[layer] = gradient
    found = {
        (name, PassType.FORWARD): by_layer
        for name, by_layer in {**raw, **derived(model, raw, grad)}.items()
    }
    found |= {(name, PassType.BACKWARD): by_layer for name, by_layer in grad.items()}
    backward = PassType.BACKWARD
    lengths = {
        layer: torch.einsum(
            "she,hed->shd", raw["attn_value"][layer], model.head_matrices(layer)
        ).norm(dim=2)
        for layer in range(LAYERS)
    }
    by_pair = {n: grad["attn_qk_probs"][n] / lengths[n][None] for n in lengths}
    found["unflattened_attn_write_norm", backward] = by_pair
    found["attn_write_norm", backward] = {n: flat(x) for n, x in by_pair.items()}
    found["flattened_attn_post_softmax", backward] = {
        n: flat(x) for n, x in grad["attn_qk_probs"].items()
    }
    found["previous_layer_resid_post_mlp", backward] = {
        n: grad["resid_post_embedding"][None] if n == 0 else grad["resid_post_mlp"][n - 1]
        for n in range(LAYERS)
    }
    return {key: {n: x.detach() for n, x in by_layer.items()} for key, by_layer in found.items()}


@pytest.mark.parametrize(
    "loss",
    [
        LOSS,
        LossSpec(LossKind.LOGIT_DIFF, (" cat",)),
        LossSpec(LossKind.LOGIT_MINUS_MEAN, (" cat", " dog"), position=3),
        LossSpec(LossKind.PROBS, (" cat", " dog"), position=-2),
        LossSpec(LossKind.ZERO),
    ],
    ids=["difference", "no distractor", "minus mean", "probabilities", "zero"],
)
def test_agrees_with_its_definition(
    data_plane: DataPlane, model: Float64Model, loss: LossSpec
) -> None:
    derived_here = derive_all(data_plane, InferenceSpec(PROMPT, loss=loss))
    expected = by_definition(data_plane, model, loss)
    for each in SERVED:
        for pass_type in each.pass_types:
            key = (each.dst.name, pass_type)
            by_layer = expected[key]
            assert set(derived_here[key]) == set(by_layer), key
            for layer, wanted in by_layer.items():
                got = derived_here[key][layer]
                assert got.dtype == np.float32
                assert got.shape == tuple(wanted.shape), key
                reference = wanted.numpy()
                finite = np.isfinite(reference)
                assert np.array_equal(np.isneginf(got), np.isneginf(reference)), key
                scale = np.abs(reference[finite]).max(initial=0.0)
                error = np.abs(got[finite] - reference[finite]).max(initial=0.0)
                assert error <= max(2e-5 * scale, 1e-7), (key, layer, error, scale)


def test_gradients_are_those_of_finite_differences(
    data_plane: DataPlane, model: Float64Model
) -> None:
    tokens = data_plane.subject.tokenizer.encode(PROMPT)
    derived_here = derive_all(data_plane, InferenceSpec(PROMPT, loss=LOSS))
    step = 1e-5
    places = [
        ("mlp_post_act", 1, (2, 7)),
        ("mlp_pre_act", 0, (4, 3)),
        ("attn_qk_probs", 1, (5, 2, 1)),
        ("attn_qk_logits", 2, (6, 0, 2)),
        ("attn_value", 0, (1, 2, 3)),
        ("attn_query", 2, (7, 0, 1)),
        ("attn_key", 1, (0, 1, 4)),
        ("attn_weighted_sum_of_values", 0, (3, 1, 2)),
        ("resid_post_attn", 1, (5, 11)),
        ("resid_delta_mlp", 0, (2, 9)),
        ("resid_post_embedding", None, (0, 5)),
        ("mlp_input_layer_norm_scale", 2, (8, 0)),
        ("resid_final_layer_norm_scale", None, (-1, 0)),
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

            logits = model.forward(tokens, nudge)["logits"][None]
            return float(loss_of(data_plane, logits, LOSS))

        slope = (loss_at(step) - loss_at(-step)) / (2 * step)
        gradient = derived_here[name, PassType.BACKWARD][layer][index]
        assert gradient == pytest.approx(slope, rel=2e-3, abs=1e-5), name


def test_writes_add_up(data_plane: DataPlane, model: Float64Model) -> None:
    here = derive_all(data_plane, InferenceSpec(PROMPT, loss=LOSS))

    def at(
        name: str, layer: int | None, pass_type: PassType = PassType.FORWARD
    ) -> NDArray[np.float64]:
        return here[name, pass_type][layer].astype(np.float64)

    total = at("resid_post_embedding", None)
    effect = at("resid_post_embedding_proj_to_final_residual_grad", None)
    gradient = at("resid_post_mlp", LAYERS - 1, PassType.BACKWARD)
    for layer in range(LAYERS):
        # Probabilities times values are the weighted sum of values.
        mixed = np.einsum("tsh,she->the", at("attn_qk_probs", layer), at("attn_value", layer))
        np.testing.assert_allclose(
            mixed, at("attn_weighted_sum_of_values", layer), rtol=1e-4, atol=1e-5
        )
        # What is written is what the residual stream gains.
        total = total + at("resid_delta_attn", layer)
        np.testing.assert_allclose(total, at("resid_post_attn", layer), rtol=1e-4, atol=1e-5)
        total = total + at("resid_delta_mlp", layer)
        np.testing.assert_allclose(total, at("resid_post_mlp", layer), rtol=1e-4, atol=1e-5)
        # Direct effects of all nodes and biases are the projection of the whole stream.
        biases = (
            model.weights[f"h.{layer}.attn.c_proj.bias"]
            + model.weights[f"h.{layer}.mlp.c_proj.bias"]
        ).numpy()
        effect = (
            effect
            + at("mlp_write_to_final_residual_grad", layer).sum(axis=1, keepdims=True)
            + at("unflattened_attn_write_to_final_residual_grad", layer).sum(axis=(1, 2))[:, None]
            + (gradient @ biases)[:, None]
        )
    whole = (total * gradient).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(effect, whole, rtol=1e-4, atol=1e-5)


def test_ablation_reaches_everything_after_it_and_nothing_before(data_plane: DataPlane) -> None:
    ablation = AblationSpec(
        ActivationIndex(ActivationLocationType.ATTN_QK_PROBS, (2, None, 1), 1), 0.25
    )
    before = derive_all(data_plane, InferenceSpec(PROMPT, loss=LOSS))
    after = derive_all(data_plane, InferenceSpec(PROMPT, (ablation,), LOSS))
    forward = PassType.FORWARD
    assert (after["attn_qk_probs", forward][1][2, :, 1] == 0.25).all()
    untouched = before["attn_qk_probs", forward][1].copy()
    untouched[2, :, 1] = 0.25
    np.testing.assert_array_equal(after["attn_qk_probs", forward][1], untouched)
    np.testing.assert_array_equal(
        after["resid_post_mlp", forward][0], before["resid_post_mlp", forward][0]
    )
    assert not np.allclose(
        after["resid_post_mlp", forward][1][2], before["resid_post_mlp", forward][1][2]
    )
    np.testing.assert_array_equal(
        after["resid_post_mlp", forward][2][:2], before["resid_post_mlp", forward][2][:2]
    )


def test_every_place_can_be_overwritten_in_both_passes(data_plane: DataPlane) -> None:
    for location in ActivationLocationType:
        if not location.exists_by_default:
            continue
        layer = 1 if location.has_layers else None
        for pass_type in PassType:
            index = ActivationIndex(
                location, tuple(0 for _ in location.dimensions), layer, pass_type
            )
            spec = InferenceSpec(PROMPT, (AblationSpec(index, 0.5),), LOSS)
            result, tensors = asyncio.run(
                data_plane.derive(spec, [Selection("mlp_act_times_grad"), Selection("logits")])
            )
            assert result.loss is not None
            assert all(np.isfinite(x).all() for each in tensors for x in each.values())


def test_gradient_overwritten_with_a_zero_loss_is_a_node_s_read_direction(
    data_plane: DataPlane, model: Float64Model
) -> None:
    spec = InferenceSpec(
        PROMPT,
        (
            AblationSpec(
                ActivationIndex(ActivationLocationType.MLP_PRE_ACT, (3, 5), 1, PassType.BACKWARD),
                1.0,
            ),
        ),
        LossSpec(LossKind.ZERO),
    )
    _, tensors = asyncio.run(
        data_plane.derive(
            spec,
            [
                Selection("mlp_pre_act", PassType.BACKWARD, (1,)),
                Selection("resid_post_attn", PassType.BACKWARD, (1,)),
            ],
        )
    )
    wanted = np.zeros_like(tensors[0][1])
    wanted[3, 5] = 1
    np.testing.assert_array_equal(tensors[0][1], wanted)
    tokens = data_plane.subject.tokenizer.encode(PROMPT)
    raw = model.forward(tokens, lambda name, layer, x: x if x.requires_grad else x.requires_grad_())
    (direction,) = torch.autograd.grad(raw["mlp_pre_act"][1][3, 5], [raw["resid_post_attn"][1]])
    np.testing.assert_allclose(tensors[1][1], direction.numpy(), rtol=1e-4, atol=1e-6)


def test_logits_are_those_of_transformers(data_plane: DataPlane, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = write_checkpoint(tmp_path)
    reference = transformers.GPT2LMHeadModel.from_pretrained(path, attn_implementation="eager")
    tokens = data_plane.subject.tokenizer.encode(PROMPT)
    with torch.no_grad():
        wanted = reference(torch.tensor([tokens])).logits[0].numpy()
    _, tensors = asyncio.run(data_plane.derive(InferenceSpec(PROMPT), [Selection("logits")]))
    np.testing.assert_allclose(tensors[0][None], wanted, rtol=1e-4, atol=1e-4)


def test_nothing_is_left_behind_on_the_weights(data_plane: DataPlane) -> None:
    spec = InferenceSpec(PROMPT, loss=LOSS)
    first = derive_all(data_plane, spec)
    write = data_plane.subject.model.write
    assert all(w.grad is None and not w.requires_grad for w in (*write.mlp, *write.attn))
    again = derive_all(data_plane, spec)
    for key, by_layer in first.items():
        for layer, array in by_layer.items():
            np.testing.assert_array_equal(array, again[key][layer])
