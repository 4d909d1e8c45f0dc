"""Scalars of every kind of autoencoder against their definition in float64, and identities."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.answers.ranking import NodeScalars
from services.scalars.autoencoders.loading import load_autoencoders
from services.scalars.data_plane import DataPlane
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.engine.worker import Engine
from services.scalars.model.locations import ActivationLocationType, Dimension
from services.scalars.model.subject import load_subject
from services.scalars.passes.inference import InferenceSpec
from services.scalars.passes.losses import LossKind, LossSpec
from services.scalars.requests.selections import Selection
from services.scalars.requests.top_nodes import ScalarGroup, TopNodesSpec
from shared.errors import InvalidArgument
from shared.settings import Autoencoder
from tests.unit.scalars_autoencoders import (
    Tensors,
    latents_by_definition,
    random_tensors,
    saelens_tensors,
    write_own_layout,
    write_saelens,
)
from tests.unit.scalars_checkpoint import (
    HEADS,
    LAYERS,
    NEURONS,
    WIDTH,
    make_weights,
    write_checkpoint,
)
from tests.unit.scalars_float64 import Float64Model, Scalars, flat

PROMPT = "The cat sat on the mat, and the dog"
LOSS = LossSpec(LossKind.LOGIT_DIFF, (" cat", " dog"), (" the",))
LAYERS_WITH_LATENTS = {"mlp": (0, 2), "attention": (1, 2)}
Array = NDArray[np.float32]
Derived = dict[str, dict[int | None, Array]]


def tensors_at(kind: str, layer: int, activation: str, dst: str) -> Tensors:
    width = NEURONS if dst == "mlp_post_act" else WIDTH
    tensors = random_tensors(width, 9 + layer, layer, activation, scale=0.3)
    if kind == "attention" and activation == "jumprelu":
        tensors["threshold"] = torch.full((9 + layer,), 0.1)
    return tensors


class Equipped:
    """A data plane with an autoencoder of each kind, and the weights of both."""

    def __init__(self, path: Path, activation: str, mlp_dst: str) -> None:
        self.activation, self.mlp_dst = activation, mlp_dst
        self.tensors = {
            kind: {
                layer: tensors_at(kind, layer, activation, dst)
                for layer in LAYERS_WITH_LATENTS[kind]
            }
            for kind, dst in (("mlp", mlp_dst), ("attention", "resid_delta_attn"))
        }
        subject = load_subject("tiny", str(write_checkpoint(path / "model")), "cpu")
        subject = replace(
            subject,
            autoencoders=load_autoencoders(
                [self._mlp(path), self._attention(path)], subject.model, subject.tokenizer
            ),
        )
        self.engine = Engine(subject.model, subject.autoencoders)
        self.plane = DataPlane(subject, self.engine)
        self.model = Float64Model(make_weights(subject.model.shape.vocab_size, ""), HEADS)

    def _mlp(self, path: Path) -> Autoencoder:
        parameters = {"topk": {"k": "4"}, "jumprelu": {"threshold": "0.1"}}
        return write_own_layout(
            path / "mlp.safetensors",
            self.mlp_dst,
            self.tensors["mlp"],
            self.activation,
            **parameters.get(self.activation, {}),
        )

    def _attention(self, path: Path) -> Autoencoder:
        for layer, tensors in self.tensors["attention"].items():
            write_saelens(
                path / "attention" / str(layer),
                f"blocks.{layer}.hook_attn_out",
                saelens_tensors(tensors),
                "standard" if self.activation == "relu" else self.activation,
                k=4 if self.activation == "topk" else None,
            )
        return Autoencoder(name="attention", path=str(path / "attention"))

    def derive(self, names: Sequence[str], spec: InferenceSpec | None = None) -> Derived:
        wanted = spec or InferenceSpec(PROMPT, loss=LOSS)
        _, tensors = asyncio.run(self.plane.derive(wanted, [Selection(each) for each in names]))
        return dict(zip(names, tensors, strict=True))

    def place(self, kind: str) -> str:
        return self.mlp_dst if kind == "mlp" else "resid_delta_attn"

    def latents(self, kind: str, layer: int, x: Tensor) -> Tensor:
        return latents_by_definition(
            x, self.tensors[kind][layer], self.activation, k=4, threshold=0.1
        )

    def decoder(self, kind: str, layer: int) -> Tensor:
        """Write directions at the place that is read, (A, I)."""
        return self.tensors[kind][layer]["decoder.weight"].double().T

    def writes(self, kind: str, layer: int) -> Tensor:
        """Write vectors in the residual stream, (A, D)."""
        decoder = self.decoder(kind, layer)
        return decoder @ self.model.mlp_rows(layer) if decoder.shape[1] == NEURONS else decoder

    def exactly(self) -> tuple[Scalars, Scalars]:
        """Raw activations and gradients of the loss in float64."""
        tokenizer = self.plane.subject.tokenizer

        def attached(name: str, layer: int | None, x: Tensor) -> Tensor:
            return x if x.requires_grad else x.requires_grad_()

        raw = self.model.forward(tokenizer.encode(PROMPT), attached)
        targets, (other,) = (
            [tokenizer.single_token(text, "") for text in texts]
            for texts in (LOSS.target_tokens, LOSS.distractor_tokens)
        )
        logits = raw["logits"][None][-1]
        places = [(name, layer) for name, by_layer in raw.items() for layer in by_layer]
        gradients = torch.autograd.grad(
            logits[targets].mean() - logits[other],
            [raw[name][layer] for name, layer in places],
            allow_unused=True,
            materialize_grads=True,
        )
        grad: Scalars = {}
        for (name, layer), gradient in zip(places, gradients, strict=True):
            grad.setdefault(name, {})[layer] = gradient
        detached = {n: {at: x.detach() for at, x in by.items()} for n, by in raw.items()}
        return detached, grad


CASES = [
    ("relu", "mlp_post_act"),
    ("topk", "resid_delta_mlp"),
    ("jumprelu", "mlp_post_act"),
    ("gated", "resid_delta_mlp"),
    ("gated", "mlp_post_act"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def equipped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Equipped]:
    made = Equipped(tmp_path_factory.mktemp("equipped"), *request.param)
    yield made
    made.engine.close()


def assert_close(found: Array, expected: Tensor) -> None:
    values = expected.numpy()
    assert found.shape == values.shape
    np.testing.assert_allclose(found, values, rtol=1e-3, atol=2e-5 * max(1, np.abs(values).max()))


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_scalars_of_latents_are_those_of_their_definition(equipped: Equipped, kind: str) -> None:
    online, offline = f"online_{kind}_autoencoder", f"{kind}_autoencoder"
    raw, grad = equipped.exactly()
    names = [
        f"{online}_latent",
        f"{offline}_latent",
        f"{online}_write",
        f"{online}_write_norm",
        f"{offline}_write_norm",
        f"{online}_act_times_grad",
        f"{online}_write_to_final_residual_grad",
    ]
    derived = equipped.derive(names)
    g = grad["resid_post_mlp"][LAYERS - 1]
    for name in names:
        assert tuple(derived[name]) == LAYERS_WITH_LATENTS[kind]
    for layer in LAYERS_WITH_LATENTS[kind]:
        place, writes = equipped.place(kind), equipped.writes(kind, layer)
        z = equipped.latents(kind, layer, raw[place][layer])
        assert 0 < int((z > 0).sum()) < z.numel()
        vectors = z[..., None] * writes
        dz = grad[place][layer] @ equipped.decoder(kind, layer).T
        expected = [z, z, vectors, vectors.norm(dim=2), vectors.norm(dim=2), z * dz]
        expected.append((vectors * g[:, None]).sum(dim=2))
        for name, values in zip(names, expected, strict=True):
            assert_close(derived[name][layer], values)


def test_errors_are_what_latents_leave(equipped: Equipped) -> None:
    raw, grad = equipped.exactly()
    neurons = equipped.mlp_dst == "mlp_post_act"
    names = {
        "mlp": "online_mlp_autoencoder_error"
        if neurons
        else "online_residual_mlp_autoencoder_error",
        "attention": "online_residual_attention_autoencoder_error",
    }
    parts = ["_act_times_grad", "_write_norm", "_write_to_final_residual_grad"] if neurons else []
    derived = equipped.derive([*names.values(), *(names["mlp"] + part for part in parts)])
    for kind, name in names.items():
        for layer in LAYERS_WITH_LATENTS[kind]:
            place = equipped.place(kind)
            x = raw[place][layer]
            decoded = equipped.latents(kind, layer, x) @ equipped.decoder(kind, layer)
            error = x - decoded - equipped.tensors[kind][layer]["pre_bias"].double()
            assert_close(derived[name][layer], error)
            if kind == "mlp" and neurons:
                vectors = error[..., None] * equipped.model.mlp_rows(layer)
                g = grad["resid_post_mlp"][LAYERS - 1]
                for part, values in zip(
                    parts,
                    (
                        error * grad[place][layer],
                        error.sign() * vectors.norm(dim=2),
                        (vectors * g[:, None]).sum(dim=2),
                    ),
                    strict=True,
                ):
                    assert_close(derived[name + part][layer], values)


def test_latents_errors_and_biases_add_up_to_what_the_layer_writes(equipped: Equipped) -> None:
    neurons = equipped.mlp_dst == "mlp_post_act"
    error_name = f"online_{'' if neurons else 'residual_'}mlp_autoencoder_error"
    derived = equipped.derive(["online_mlp_autoencoder_write", error_name, "resid_delta_mlp"])
    for layer in LAYERS_WITH_LATENTS["mlp"]:
        rest = derived[error_name][layer] + equipped.tensors["mlp"][layer]["pre_bias"].numpy()
        if neurons:
            rest = rest @ equipped.model.mlp_rows(layer).numpy()
            rest = rest + equipped.model.weights[f"h.{layer}.mlp.c_proj.bias"].numpy()
        total = derived["online_mlp_autoencoder_write"][layer].sum(axis=1) + rest
        np.testing.assert_allclose(total, derived["resid_delta_mlp"][layer], atol=2e-5)


def within(location: ActivationLocationType, layer: int, latent: int) -> InferenceSpec:
    return InferenceSpec(
        PROMPT, within_layer_gradient_index=ActivationIndex(location, (None, latent), layer)
    )


ATTENTION_LATENT = ActivationLocationType.ONLINE_ATTENTION_AUTOENCODER_LATENT
MLP_LATENT = ActivationLocationType.ONLINE_MLP_AUTOENCODER_LATENT


def test_attribution_to_heads(equipped: Equipped) -> None:
    raw, _ = equipped.exactly()
    every = equipped.derive(
        [
            "flattened_attn_write_to_latent_summed_over_heads_batched",
            "attn_write_to_latent_per_sequence_token_batched",
        ]
    )
    pairs, tokens = every.values()
    for layer, latent in ((1, 0), (1, 9), (2, 3), (2, 10)):
        tensors = equipped.tensors["attention"][layer]
        z = equipped.latents("attention", layer, raw["resid_delta_attn"][layer])
        slope = tensors["encoder.weight"][latent].double()
        if equipped.activation == "gated":
            slope = slope * tensors["magnitude_scale"][latent].double().exp()
        gradient = (z[:, latent] > 0).double()[:, None] * slope
        weighted = raw["attn_qk_probs"][layer][..., None] * raw["attn_value"][layer]
        writes = torch.einsum("tshe,hed->tshd", weighted, equipped.model.head_matrices(layer))
        by_head = (writes * gradient[:, None, None]).sum(dim=3)
        summed = by_head.sum(dim=2, keepdim=True)
        names = [
            "autoencoder_latent_grad_wrt_residual_input",
            "attn_write_to_latent",
            "attn_write_to_latent_summed_over_heads",
            "flattened_attn_write_to_latent_summed_over_heads",
            "attn_write_to_latent_per_sequence_token",
        ]
        derived = equipped.derive(names, within(ATTENTION_LATENT, layer, latent))
        expected = (gradient, by_head, summed, flat(summed), by_head.sum(dim=1))
        for name, values in zip(names, expected, strict=True):
            assert tuple(derived[name]) == (layer,)
            assert_close(derived[name][layer], values)
        assert_close(pairs[layer][:, latent : latent + 1], flat(summed))
        assert_close(tokens[layer][:, :, latent], by_head.sum(dim=1))


def test_the_gradient_of_a_latent_of_the_mlp(equipped: Equipped) -> None:
    raw, _ = equipped.exactly()
    tensors = equipped.tensors["mlp"][2]
    neurons = equipped.mlp_dst == "mlp_post_act"
    name = "mlp_post_act" if neurons else "residual"
    for latent in range(4):
        z = equipped.latents("mlp", 2, raw[equipped.mlp_dst][2])[:, latent]
        slope = tensors["encoder.weight"][latent].double()
        if equipped.activation == "gated":
            slope = slope * tensors["magnitude_scale"][latent].double().exp()
        derived = equipped.derive(
            [f"autoencoder_latent_grad_wrt_{name}_input"], within(MLP_LATENT, 2, latent)
        )
        (by_layer,) = derived.values()
        assert_close(by_layer[2], (z > 0).double()[:, None] * slope)


def test_layers_of_different_sizes_are_ranked_together_and_summed_where_they_can_be(
    equipped: Equipped,
) -> None:
    name = "online_mlp_autoencoder_write_norm"
    spec = InferenceSpec(PROMPT)

    def ranked(*dimensions: Dimension) -> NodeScalars:
        top_nodes = TopNodesSpec(
            (ScalarGroup("write_norm", (name,)),), count=1, sum_dimensions=dimensions
        )
        return asyncio.run(equipped.plane.list_top_nodes(spec, top_nodes))[1]

    tensors = equipped.derive([name], spec)[name]
    found = ranked(Dimension.SEQUENCE_TOKENS)
    best = max(float(tensor.max()) for tensor in tensors.values())
    assert found.values["write_norm"][0] == pytest.approx(best)
    total = sum(tensor.sum(axis=1) for tensor in tensors.values())
    np.testing.assert_allclose(found.sums["write_norm", name], total, rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidArgument, match=r"\(9, 11\), which can't be summed") as caught:
        ranked(Dimension.SEQUENCE_TOKENS, Dimension.AUTOENCODER_LATENTS)
    assert caught.value.field == "spec.sum_dimensions.dimensions[1]"


def refused(
    equipped: Equipped, field: str, words: str, selection: Selection, spec: InferenceSpec
) -> str:
    with pytest.raises(InvalidArgument, match=words) as caught:
        asyncio.run(equipped.plane.derive(spec, [selection]))
    assert caught.value.field == field
    return caught.value.reason


def test_what_is_not_there_is_refused(equipped: Equipped) -> None:
    plain = InferenceSpec(PROMPT, loss=LOSS)
    typed = Selection("online_mlp_autoencoder_latent", layer_indices=(0, 1))
    at = "selections[0]"
    reason = refused(equipped, f"{at}.layer_indices[1]", "layers 0, 2", typed, plain)
    assert reason == "NO_LATENTS_AT_LAYER"
    generic = Selection("online_autoencoder_latent")
    reason = refused(equipped, f"{at}.derived_scalar_type", "exactly one", generic, plain)
    assert reason == "AUTOENCODER_NEEDED"
    other = "online_residual_mlp_autoencoder_error"
    if equipped.mlp_dst == "resid_delta_mlp":
        other = "online_mlp_autoencoder_error_write_norm"
    refused(equipped, f"{at}.derived_scalar_type", "needs an autoencoder", Selection(other), plain)
    index = "inference.within_layer_gradient_index"
    lone = Selection("attn_write_to_latent")
    assert refused(equipped, index, "one latent", lone, plain) == (
        "WITHIN_LAYER_GRADIENT_INDEX_NEEDED"
    )
    refused(equipped, index, "not of mlp", lone, within(MLP_LATENT, 0, 1))
    elsewhere = replace(lone, layer_indices=(2,))
    spec = within(ATTENTION_LATENT, 1, 1)
    refused(equipped, f"{at}.layer_indices[0]", "layer 1", elsewhere, spec)
    refused(equipped, f"{index}.tensor_indices[1]", "has 10", lone, within(ATTENTION_LATENT, 1, 10))
