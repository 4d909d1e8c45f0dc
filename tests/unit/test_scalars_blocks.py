"""Recomputing a block from a residual stream gives what the forward pass gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from services.scalars.model.blocks import ALL_PARTS, AttentionPart
from services.scalars.model.family import SubjectModel
from services.scalars.model.llama import Llama
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import PassType
from services.scalars.model.subject import load_subject
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import PreparedInference, run_inference
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_llama_checkpoint import VARIANTS, write_llama_checkpoint

TOKENS = (5, 17, 5, 200, 31, 90, 2)
LAYER = 1
PLACES = (
    Location.RESID_POST_ATTN,
    Location.ATTN_QUERY,
    Location.ATTN_KEY,
    Location.ATTN_VALUE,
    Location.ATTN_QK_LOGITS,
    Location.ATTN_QK_PROBS,
    Location.ATTN_WEIGHTED_SUM_OF_VALUES,
    Location.RESID_DELTA_ATTN,
    Location.MLP_PRE_ACT,
    Location.MLP_POST_ACT,
    Location.RESID_DELTA_MLP,
)


@pytest.fixture(scope="module", params=["gpt2", *VARIANTS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    path: Path = tmp_path_factory.mktemp("blocks") / "model"
    if request.param == "gpt2":
        write_checkpoint(path)
    else:
        write_llama_checkpoint(path, request.param)
    return load_subject("tiny", str(path), "cpu").model


@pytest.fixture(scope="module")
def run(model: SubjectModel) -> dict[Location, Tensor]:
    """What a forward pass has in the layer, and under RESID_POST_MLP what enters the layer."""
    captures = {RawTensorId(place, LAYER, PassType.FORWARD) for place in PLACES}
    before = RawTensorId(Location.RESID_POST_MLP, LAYER - 1, PassType.FORWARD)
    store = run_inference(model, PreparedInference(TOKENS, (), None), captures | {before}).raw_store
    found = {
        place: store.get(place, PassType.FORWARD).activations_by_layer_index[LAYER].clone()
        for place in PLACES
    }
    entering = store.get(Location.RESID_POST_MLP, PassType.FORWARD)
    found[Location.RESID_POST_MLP] = entering.activations_by_layer_index[LAYER - 1].clone()
    return found


@pytest.mark.parametrize("detach_scale", [False, True])
def test_a_block_recomputed_is_that_of_the_forward_pass(
    model: SubjectModel, run: dict[Location, Tensor], detach_scale: bool
) -> None:
    heads = model.attention_heads(LAYER, run[Location.RESID_POST_MLP], detach_scale=detach_scale)
    neurons = model.mlp_neurons(LAYER, run[Location.RESID_POST_ATTN], detach_scale=detach_scale)
    found = {
        Location.ATTN_QUERY: heads.query,
        Location.ATTN_KEY: heads.key,
        Location.ATTN_VALUE: heads.value,
        Location.ATTN_QK_LOGITS: heads.logits,
        Location.ATTN_QK_PROBS: heads.probs,
        Location.ATTN_WEIGHTED_SUM_OF_VALUES: heads.mixed,
        Location.RESID_DELTA_ATTN: model.attention_output(LAYER, heads.mixed),
        Location.MLP_PRE_ACT: neurons.pre_act,
        Location.MLP_POST_ACT: neurons.post_act,
        Location.RESID_DELTA_MLP: model.mlp_output(LAYER, neurons.post_act),
    }
    for place, tensor in found.items():
        torch.testing.assert_close(tensor, run[place], rtol=1e-5, atol=1e-6, msg=place.value)


def test_writes_and_biases_sum_to_what_a_block_gives(
    model: SubjectModel, run: dict[Location, Tensor]
) -> None:
    write = model.write
    nothing = torch.zeros(write.mlp[LAYER].shape[1])
    mlp_bias = nothing if write.mlp_bias[LAYER] is None else write.mlp_bias[LAYER]
    attn_bias = nothing if write.attn_bias[LAYER] is None else write.attn_bias[LAYER]
    assert mlp_bias is not None
    assert attn_bias is not None
    mlp = run[Location.MLP_POST_ACT] @ write.mlp[LAYER] + mlp_bias
    torch.testing.assert_close(mlp, run[Location.RESID_DELTA_MLP], rtol=1e-5, atol=1e-5)
    mixed = run[Location.ATTN_WEIGHTED_SUM_OF_VALUES]
    attn = torch.einsum("the,hed->td", mixed, write.attn[LAYER]) + attn_bias
    torch.testing.assert_close(attn, run[Location.RESID_DELTA_ATTN], rtol=1e-5, atol=1e-5)


def test_single_neurons_are_columns_of_all(
    model: SubjectModel, run: dict[Location, Tensor]
) -> None:
    residual = run[Location.RESID_POST_ATTN]
    wanted = torch.tensor([7, 0, 39])
    some, every = (
        model.mlp_neurons(LAYER, residual, neurons=wanted),
        model.mlp_neurons(LAYER, residual),
    )
    torch.testing.assert_close(some.pre_act, every.pre_act[:, wanted])
    torch.testing.assert_close(some.post_act, every.post_act[:, wanted])


def tangent(of: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> Tensor:
    """The derivative along a direction, by forward-mode differentiation."""
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(at, direction)  # type: ignore[no-untyped-call]
        found = forward_ad.unpack_dual(of(dual)).tangent  # type: ignore[no-untyped-call]
    assert isinstance(found, Tensor)
    return found


def _scalar(model: SubjectModel, residual: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """One logit by hand: the query from one residual stream, the key from another."""
    asking = model.attention_heads(LAYER, query).query[4, 2]
    asked = model.attention_heads(LAYER, key).key[1, 2]
    return (asking * asked).sum()


@pytest.mark.parametrize("part", [AttentionPart.QUERY, AttentionPart.KEY])
def test_parts_that_are_not_attached_are_constants(
    model: SubjectModel, run: dict[Location, Tensor], part: AttentionPart
) -> None:
    residual = run[Location.RESID_POST_MLP].clone().requires_grad_()
    logit = model.attention_heads(LAYER, residual, attached=frozenset({part})).logits[4, 1, 2]
    (gradient,) = torch.autograd.grad(logit, residual)
    constant = residual.detach()
    pair = (residual, constant) if part is AttentionPart.QUERY else (constant, residual)
    (wanted,) = torch.autograd.grad(_scalar(model, residual, *pair), residual)
    torch.testing.assert_close(gradient, wanted)
    assert gradient.abs().sum() > 0
    rows = gradient.abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert rows == ([4] if part is AttentionPart.QUERY else [1])


def test_both_modes_of_differentiation_agree(
    model: SubjectModel, run: dict[Location, Tensor]
) -> None:
    residual = run[Location.RESID_POST_MLP].clone()
    direction = torch.randn(residual.shape, generator=torch.Generator().manual_seed(1))
    for attached in (ALL_PARTS, *(frozenset({part}) for part in AttentionPart)):
        for detach_scale in (False, True):

            def of(
                x: Tensor,
                attached: frozenset[AttentionPart] = attached,
                detach_scale: bool = detach_scale,
            ) -> Tensor:
                heads = model.attention_heads(
                    LAYER, x, attached=attached, detach_scale=detach_scale
                )
                return heads.probs.square().sum() + heads.mixed.square().sum()

            leaf = residual.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(of(leaf), leaf)
            found = tangent(of, residual, direction)
            functional = torch.func.jvp(of, (residual,), (direction,))[1]
            wanted = (gradient * direction).sum()
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(functional, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("detach_scale", [False, True])
def test_a_detached_scale_leaves_only_the_linear_way(
    model: SubjectModel, run: dict[Location, Tensor], detach_scale: bool
) -> None:
    """Along what it divides by its scale a norm only rescales: nothing changes by it."""
    residual = run[Location.RESID_POST_ATTN].clone()
    # What a layer norm divides has no mean, what an RMS norm does is the residual stream itself.
    mean = residual.mean(dim=1, keepdim=True)
    centred = residual if isinstance(model, Llama) else residual - mean

    def of(x: Tensor) -> Tensor:
        return model.mlp_neurons(LAYER, x, detach_scale=detach_scale).pre_act

    found = tangent(of, residual, centred)
    pre = model.mlp_neurons(LAYER, residual).pre_act
    at_zero = model.mlp_neurons(LAYER, torch.zeros_like(residual)).pre_act
    wanted = pre - at_zero if detach_scale else torch.zeros_like(pre)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
