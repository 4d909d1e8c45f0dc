"""Ablations of activations, latents, errors and their gradients, against the definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.scalars.autoencoders import Activation, AutoencoderSet
from services.scalars.autoencoders.autoencoder_set import sizes_at
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import PassType
from services.scalars.model.subject import load_subject
from services.scalars.model.taps import Overwrite, RawTensorId
from services.scalars.passes.ablations import AblationSpec, resolve_ablations
from services.scalars.passes.inference import PreparedInference, run_inference
from services.scalars.passes.losses import Loss, LossKind
from shared.errors import InvalidArgument
from tests.unit.scalars_checkpoint import HEADS, make_weights, write_checkpoint
from tests.unit.scalars_float64 import Float64Model
from tests.unit.scalars_reference_pass import (
    BACKWARD,
    FORWARD,
    ORDINARY,
    ReferencePass,
    every_target,
    make_autoencoder,
)

TOKENS = (5, 17, 5, 200, 31, 90)
LOSS = Loss(LossKind.LOGIT_DIFF, (40, 7), (12,), len(TOKENS) - 1)
ON_LATENTS = (Location.ONLINE_MLP_AUTOENCODER_LATENT, Location.ONLINE_ATTENTION_AUTOENCODER_LATENT)
ON_ERRORS = (
    Location.ONLINE_MLP_AUTOENCODER_ERROR,
    Location.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR,
    Location.ONLINE_RESIDUAL_ATTENTION_AUTOENCODER_ERROR,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("ablations") / "model")
    return load_subject("tiny", str(path), "cpu").model


@pytest.fixture(scope="module")
def reference(model: SubjectModel) -> Float64Model:
    return Float64Model(make_weights(model.shape.vocab_size, ""), HEADS)


def both(*places: tuple[Location, Activation]) -> tuple[AutoencoderSet, AutoencoderSet]:
    """The same autoencoders in single and in double precision."""
    return (
        AutoencoderSet([make_autoencoder(*place) for place in places]),
        AutoencoderSet([make_autoencoder(*place, dtype=torch.float64) for place in places]),
    )


def around(location: Location) -> tuple[AutoencoderSet, AutoencoderSet]:
    """Autoencoders that make a place exist."""
    if location is Location.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR:
        on_mlp = (Location.RESID_DELTA_MLP, Activation.TOPK)
    else:
        on_mlp = (Location.MLP_POST_ACT, Activation.JUMPRELU)
    return both(on_mlp, (Location.RESID_DELTA_ATTN, Activation.RELU))


def index_of(
    location: Location, layer: int | None, model: SubjectModel, autoencoders: AutoencoderSet
) -> tuple[int | slice, ...]:
    """An element or, on one axis, all of them."""
    sizes = sizes_at(
        location.dimensions, model.shape, len(TOKENS), autoencoders.for_location(location), layer
    )
    index: list[int | slice] = [min(2, size - 1) for size in sizes]
    if len(sizes) == 3:
        index[1] = slice(None)
    return tuple(index)


def agrees(
    model: SubjectModel,
    reference: Float64Model,
    overwrites: tuple[Overwrite, ...],
    autoencoders: tuple[AutoencoderSet, AutoencoderSet],
    loss: Loss = LOSS,
) -> None:

    def of_logits(logits: Tensor) -> Tensor:
        return loss.of_logits(logits[loss.position])

    targets = every_target(autoencoders[0])
    prepared = PreparedInference(TOKENS, overwrites, loss)
    run = run_inference(model, prepared, targets, autoencoders=autoencoders[0])
    wanted = ReferencePass(reference, TOKENS, overwrites, autoencoders[1], of_logits)
    assert run.loss == pytest.approx(float(wanted.loss.detach()), rel=1e-4, abs=1e-6)
    for target in targets:
        by_definition = wanted.activations if target.pass_type is FORWARD else wanted.gradients
        expected = by_definition[target.place].float()
        found = run.raw_store.tensors[target]
        finite = expected[torch.isfinite(expected)]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        torch.testing.assert_close(
            found,
            expected,
            rtol=0,
            atol=1e-6 + 1e-4 * largest,
            msg=str(target),
        )


@pytest.mark.parametrize("pass_type", list(PassType))
@pytest.mark.parametrize("location", [*ORDINARY, *ON_LATENTS, *ON_ERRORS])
def test_an_ablation_anywhere(
    model: SubjectModel, reference: Float64Model, location: Location, pass_type: PassType
) -> None:
    autoencoders = around(location)
    layer = 1 if location.has_layers else None
    index = index_of(location, layer, model, autoencoders[0])
    overwrite = Overwrite(RawTensorId(location, layer, pass_type), index, 0.75)
    agrees(model, reference, (overwrite,), autoencoders)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize(
    "place", [Location.MLP_POST_ACT, Location.RESID_DELTA_MLP, Location.RESID_DELTA_ATTN]
)
def test_latents_and_errors_in_both_passes(
    model: SubjectModel, reference: Float64Model, place: Location, activation: Activation
) -> None:
    autoencoders = both((place, activation))
    agrees(model, reference, (), autoencoders)
    # The generic name means the latents of the only autoencoder.
    latent = RawTensorId(Location.ONLINE_AUTOENCODER_LATENT, 2, FORWARD)
    gradient = RawTensorId(autoencoders[0].all[0].latent_location, 2, BACKWARD)
    error = RawTensorId(autoencoders[0].all[0].error_location, 1, FORWARD)
    overwrites = (
        Overwrite(latent, (1, slice(None)), 0.5),
        Overwrite(latent, (1, 4), -2.0),
        Overwrite(gradient, (slice(None), 3), 1.0),
        Overwrite(error, (4, slice(None)), 0.0),
    )
    agrees(model, reference, overwrites, autoencoders)


def test_later_ablations_win_in_both_passes(model: SubjectModel, reference: Float64Model) -> None:
    target = RawTensorId(Location.MLP_POST_ACT, 1, FORWARD)
    gradient = RawTensorId(Location.MLP_POST_ACT, 1, BACKWARD)
    overwrites = (
        Overwrite(target, (2, slice(None)), 3.0),
        Overwrite(target, (2, 5), -1.0),
        Overwrite(gradient, (slice(None), 5), 2.0),
        Overwrite(gradient, (2, 5), -4.0),
    )
    agrees(model, reference, overwrites, both())


def test_a_gradient_of_one_gives_a_read_direction(
    model: SubjectModel, reference: Float64Model
) -> None:
    """With a loss of zero all gradients come from the ablated one."""
    zero = Loss(LossKind.ZERO, (), (), len(TOKENS) - 1)
    gradient = RawTensorId(Location.MLP_POST_ACT, 1, BACKWARD)
    overwrites = (Overwrite(gradient, (3, 7), 1.0),)
    agrees(model, reference, overwrites, both(), zero)


@pytest.mark.parametrize("location", [*ORDINARY, *ON_LATENTS, *ON_ERRORS])
def test_a_gradient_is_the_slope_of_the_loss(
    model: SubjectModel, reference: Float64Model, location: Location
) -> None:
    """Setting an element to a little more and to a little less tells its gradient."""
    if location in (Location.LOGITS, Location.RESID_POST_FINAL_LAYER_NORM):
        at = len(TOKENS) - 1
    else:
        at = 2
    autoencoders = around(location)
    layer = 1 if location.has_layers else None
    index = tuple(
        1 if isinstance(each, slice) else min(at, each) if axis else at
        for axis, each in enumerate(index_of(location, layer, model, autoencoders[0]))
    )
    target = RawTensorId(location, layer, FORWARD)
    gradient = RawTensorId(location, layer, BACKWARD)
    prepared = PreparedInference(TOKENS, (Overwrite(target, index, 0.75),), LOSS)
    run = run_inference(model, prepared, {gradient}, autoencoders=autoencoders[0])
    slope = float(run.raw_store.tensors[gradient][index])

    def loss(value: float) -> Tensor:
        return ReferencePass(
            reference,
            TOKENS,
            (Overwrite(target, index, value),),
            autoencoders[1],
            lambda logits: LOSS.of_logits(logits[LOSS.position]),
        ).loss.detach()

    step = 1e-6
    wanted = float(loss(0.75 + step) - loss(0.75 - step)) / (2 * step)
    assert slope == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_what_is_not_ablated_goes_on_to_the_bit(model: SubjectModel) -> None:
    """An autoencoder that is looked at changes nothing; one that is ablated, nothing before it."""
    autoencoders, _ = around(Location.ONLINE_MLP_AUTOENCODER_LATENT)
    logits = RawTensorId(Location.LOGITS, None, FORWARD)
    embedding = RawTensorId(Location.RESID_POST_EMBEDDING, None, BACKWARD)
    prepared = PreparedInference(TOKENS, (), LOSS)
    without = run_inference(model, prepared, {logits, embedding}).raw_store.tensors
    latents = {each for each in every_target(autoencoders) if not each.location.exists_by_default}
    captures = latents | {logits, embedding}
    observed = run_inference(model, prepared, captures, autoencoders=autoencoders)
    for target in (logits, embedding):
        assert torch.equal(observed.raw_store.tensors[target], without[target])
    gradient = RawTensorId(Location.ONLINE_MLP_AUTOENCODER_LATENT, 1, BACKWARD)
    changed = PreparedInference(TOKENS, (Overwrite(gradient, (0, 0), 1.0),), LOSS)
    ablated = run_inference(model, changed, {logits, embedding}, autoencoders=autoencoders)
    found = ablated.raw_store.tensors
    assert torch.equal(found[logits], without[logits])
    # Attention looks back alone: token 0 gets another gradient, no other token does.
    assert torch.equal(found[embedding][1:], without[embedding][1:])
    assert not torch.equal(found[embedding][0], without[embedding][0])


def test_resolving_places_of_autoencoders(model: SubjectModel) -> None:
    autoencoders, _ = around(Location.ONLINE_MLP_AUTOENCODER_LATENT)
    latent, generic = (
        Location.ONLINE_MLP_AUTOENCODER_LATENT,
        Location.ONLINE_AUTOENCODER_LATENT,
    )

    def resolve(index: ActivationIndex, at: AutoencoderSet = autoencoders) -> tuple[Overwrite, ...]:
        return resolve_ablations(
            [AblationSpec(index, 1.0)],
            model.shape,
            len(TOKENS),
            at,
            backward=False,
            field="ablations",
        )

    (found,) = resolve(ActivationIndex(latent, (2, None), 1))
    assert found == Overwrite(RawTensorId(latent, 1, FORWARD), (2, slice(None)), 1.0)
    resolve(ActivationIndex(generic, (2, 13), 1), AutoencoderSet(autoencoders.all[:1]))
    at = "ablations[0].index"
    for index, autoencoder_set, field, words in (
        (ActivationIndex(latent, (2, 14), 1), autoencoders, "tensor_indices[1]", "has 14"),
        (ActivationIndex(latent, (2, 3), 0), autoencoders, "layer_index", "layers 1, 2"),
        (ActivationIndex(latent, (2, 3), 9), autoencoders, "layer_index", "0 to 2"),
        (ActivationIndex(generic, (2, 3), 1), autoencoders, "location_type", "name the one"),
        (ActivationIndex(latent, (2, 3), 1), AutoencoderSet(), "location_type", "no autoencoder"),
        (ActivationIndex(ON_ERRORS[1], (2, 3), 1), autoencoders, "location_type", "takes another"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            resolve(index, autoencoder_set)
        assert caught.value.field == f"{at}.{field}"
        assert words in caught.value.message
