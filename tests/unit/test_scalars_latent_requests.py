"""Requests on latents: layers that have different numbers of them, and one latent alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.scalars.answers.results import SelectedTensors
from services.scalars.autoencoders import AutoencoderSet
from services.scalars.autoencoders.within_layer import WithinLayerLatent
from services.scalars.data_plane import DataPlane
from services.scalars.engine.worker import Engine
from services.scalars.model.locations import ActivationLocationType, Dimension, NodeType
from services.scalars.model.subject import Subject, load_subject
from services.scalars.passes.inference import InferenceSpec, PreparedInference
from services.scalars.requests.batches import BatchInference, NamedSpec
from services.scalars.requests.components import ComponentSpec, resolve_component
from services.scalars.requests.selections import (
    DimensionRange,
    Selection,
)
from shared.errors import InvalidArgument, ResourceExhausted
from tests.unit.scalars_checkpoint import LAYERS, write_checkpoint
from tests.unit.scalars_derived import LATENTS, make_autoencoder

PROMPT = "The cat sat"
LATENT = "online_autoencoder_latent"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    bare = load_subject("tiny", str(path), "cpu")
    # A latent more in each further layer.
    made = make_autoencoder(bare.model, ActivationLocationType.RESID_DELTA_ATTN)
    return replace(bare, autoencoders=AutoencoderSet([made]))


async def selected(
    subject: Subject, selection: Selection, message_bytes: int | None = 1 << 20
) -> SelectedTensors:
    inference = BatchInference(
        InferenceSpec(PROMPT),
        (NamedSpec("x", selection, "inferences[0].specs[0].selection"),),
        "inferences[0].inference",
        message_bytes,
    )
    engine = Engine(subject.model, subject.autoencoders)
    try:
        (answer,) = await DataPlane(subject, engine).derive_batch([inference])
    finally:
        engine.close()
    found = answer["x"]
    assert isinstance(found, SelectedTensors)
    return found


async def test_layers_of_different_shapes_are_no_one_tensor(subject: Subject) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await selected(subject, Selection(LATENT))
    assert caught.value.field == "inferences[0].specs[0].selection.layer_indices"
    assert "(3, 7), (3, 8), (3, 9)" in str(caught.value)
    apart = await selected(subject, Selection(LATENT), message_bytes=None)
    assert {each.shape[1] for each in apart.by_layer.values()} == {7, 8, 9}


@pytest.mark.parametrize(
    ("layers", "ranges"),
    [
        ((1,), ()),
        ((), (DimensionRange(Dimension.AUTOENCODER_LATENTS, 2, LATENTS),)),
    ],
)
async def test_one_layer_or_a_range_that_all_have(
    subject: Subject, layers: Sequence[int], ranges: Sequence[DimensionRange]
) -> None:
    selection = Selection(LATENT, layer_indices=tuple(layers), ranges=tuple(ranges))
    found = await selected(subject, selection)
    assert len(found.by_layer) == len(layers or range(LAYERS))
    assert len({each.shape for each in found.by_layer.values()}) == 1


def test_only_what_is_of_one_latent_has_it_as_a_component(subject: Subject) -> None:
    latent = WithinLayerLatent(NodeType.ATTENTION_AUTOENCODER_LATENT, 1, 3)
    prepared = PreparedInference((5, 6), (), None, None, latent)

    def resolve(name: str, index: int) -> object:
        spec = ComponentSpec(name, 1, index)
        return resolve_component(spec, subject, prepared, field="c", inference_field="inference")

    assert resolve("flattened_attn_write_to_latent_summed_over_heads", 3) == resolve(
        "flattened_attn_write_to_latent_summed_over_heads", 0
    )
    with pytest.raises(InvalidArgument) as caught:
        resolve("resid_post_mlp_norm", 3)
    assert caught.value.field == "c.component.component_index"


async def test_tensors_that_no_message_holds_are_not_derived(subject: Subject) -> None:
    selection = Selection("mlp_post_act", layer_indices=(0,))
    (tensor,) = (await selected(subject, selection)).by_layer.values()
    await selected(subject, selection, tensor.nbytes)
    with pytest.raises(ResourceExhausted) as caught:
        await selected(subject, selection, tensor.nbytes - 1)
    assert (caught.value.field, caught.value.reason) == (
        "inferences[0].specs",
        "REQUEST_TOO_LARGE",
    )
