"""The derived-scalars service with autoencoders, through the public client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from neuropil import names
from neuropil.channel import open_channel
from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, translated
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_array
from tests.integration.scalars_deployment import scalars_service
from tests.load.processes import REPOSITORY
from tests.unit.scalars_autoencoders import (
    random_tensors,
    saelens_tensors,
    write_own_layout,
    write_saelens,
)
from tests.unit.scalars_checkpoint import LAYERS, NEURONS, WIDTH, write_checkpoint

PROMPT = "The cat sat on the mat"
TYPE = names.DERIVED_SCALAR_TYPES.value
PLACE = names.ACTIVATION_LOCATION_TYPES.value
Stub = scalars.DerivedScalarsStub
Serve = Callable[..., Stub]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and autoencoders of three places that not every layer has."""
    folder = tmp_path_factory.mktemp("deployment")
    write_checkpoint(folder / "model")
    neurons = {0: random_tensors(NEURONS, 9), 2: random_tensors(NEURONS, 7)}
    write_own_layout(folder / "neurons.safetensors", "mlp_post_act", neurons, "topk", k="3")
    output = {layer: random_tensors(WIDTH, 8, layer) for layer in range(LAYERS)}
    write_own_layout(folder / "output.safetensors", "resid_delta_mlp", output)
    gated = saelens_tensors(random_tensors(WIDTH, 6, 1, "gated"))
    write_saelens(folder / "heads", "blocks.1.hook_attn_out", gated, "gated")
    return folder


def configure(folder: Path, *autoencoders: str) -> Path:
    path = folder / f"{'-'.join(autoencoders) or 'none'}.yaml"
    section: dict[str, Any] = {"name": "tiny", "path": "model", "device": "cpu"}
    section["autoencoders"] = [{"name": Path(each).stem, "path": each} for each in autoencoders]
    path.write_text(yaml.safe_dump({"model": section}))
    return path


@pytest.fixture(scope="module")
def serve(folder: Path) -> Iterator[Serve]:
    """Gives a stub on a server with some autoencoders; each is started once."""
    with ExitStack() as stack:
        stubs: dict[tuple[str, ...], Stub] = {}

        def stub(*autoencoders: str) -> Stub:
            if autoencoders not in stubs:
                address = stack.enter_context(scalars_service(configure(folder, *autoencoders)))
                stubs[autoencoders] = Stub(stack.enter_context(open_channel(address)))
            return stubs[autoencoders]

        yield stub


NEURONS_FILE, OUTPUT_FILE, HEADS_FOLDER = "neurons.safetensors", "output.safetensors", "heads"


def test_the_model_lists_its_autoencoders(serve: Serve) -> None:
    info = serve(NEURONS_FILE, HEADS_FOLDER).GetModelInfo(scalars.GetModelInfoRequest(), timeout=30)
    neurons, heads = info.autoencoders
    assert (neurons.name, neurons.activation_function) == ("neurons", "topk")
    assert neurons.node_type == common.NODE_TYPE_MLP_AUTOENCODER_LATENT
    assert neurons.input == TYPE("mlp_post_act")
    assert list(neurons.latent_counts) == [9, 0, 7]
    assert (heads.name, heads.activation_function) == ("heads", "gated")
    assert heads.node_type == common.NODE_TYPE_ATTENTION_AUTOENCODER_LATENT
    assert heads.input == TYPE("resid_delta_attn")
    assert list(heads.latent_counts) == [0, 6, 0]


def catalogue(stub: Stub) -> dict[str, scalars.ScalarType]:
    listed = stub.ListScalarTypes(scalars.ListScalarTypesRequest(), timeout=30)
    return {each.name: each for each in listed.scalar_types}


GENERIC, MLP, HEADS = (
    "online_autoencoder_latent",
    "online_mlp_autoencoder_latent",
    "online_attention_autoencoder_latent",
)
NEURON_ERROR, OUTPUT_ERROR, HEADS_ERROR = (
    "online_mlp_autoencoder_error_write_norm",
    "online_residual_mlp_autoencoder_error",
    "online_residual_attention_autoencoder_error",
)
OF_NEURONS = "autoencoder_latent_grad_wrt_mlp_post_act_input"
OF_OUTPUT = "autoencoder_latent_grad_wrt_residual_input"
TO_LATENT = "attn_write_to_latent"
EVERY = {
    GENERIC, MLP, HEADS, NEURON_ERROR, OUTPUT_ERROR, HEADS_ERROR, OF_NEURONS, OF_OUTPUT, TO_LATENT
}  # fmt: skip


@pytest.mark.parametrize(
    ("autoencoders", "available"),
    [
        ((NEURONS_FILE, HEADS_FOLDER), EVERY - {GENERIC, OUTPUT_ERROR}),
        ((NEURONS_FILE,), {GENERIC, MLP, NEURON_ERROR, OF_NEURONS}),
        ((OUTPUT_FILE,), {GENERIC, MLP, OUTPUT_ERROR, OF_OUTPUT}),
        ((HEADS_FOLDER,), {GENERIC, HEADS, HEADS_ERROR, OF_OUTPUT, TO_LATENT}),
        ((), set()),
    ],
)
def test_the_catalogue_says_what_a_deployment_can_derive(
    serve: Serve, autoencoders: tuple[str, ...], available: set[str]
) -> None:
    listed = catalogue(serve(*autoencoders))
    assert {name for name in EVERY if listed[name].available} == available
    for name in EVERY - available:
        reason = listed[name].unavailable_reason
        assert "it needs" in reason
        for each in autoencoders or ("none",):
            assert Path(each).stem in reason
    assert listed["mlp_write_norm"].available
    assert scalars.SCALAR_REQUIREMENT_WITHIN_LAYER_GRADIENT_INDEX in listed[TO_LATENT].requirements


def selection(name: str, **fields: Any) -> scalars.ScalarSelection:
    return scalars.ScalarSelection(derived_scalar_type=TYPE(name), **fields)


def latent(place: str, layer: int, *indices: int | None) -> common.ActivationIndex:
    return common.ActivationIndex(
        location_type=PLACE(place),
        layer_index=layer,
        tensor_indices=[common.DimensionIndex(index=each) for each in indices],
    )


def derive(
    stub: Stub, *selections: scalars.ScalarSelection, **inference: Any
) -> dict[tuple[int, int | None], np.ndarray[Any, Any]]:
    """Tensors by selection and layer."""
    request = scalars.DeriveRequest(
        inference=scalars.InferenceSpec(prompt=PROMPT, **inference), selections=selections
    )
    with translated():
        answers = list(stub.Derive(request, timeout=60))
    return {
        (each.frame.selection, each.frame.layer_index): to_array(each.frame.rows)
        for each in answers
        if each.HasField("frame")
    }


def test_latents_come_for_the_layers_that_have_some(serve: Serve) -> None:
    stub = serve(NEURONS_FILE, HEADS_FOLDER)
    found = derive(stub, selection(MLP), selection(HEADS))
    shapes = {key: tensor.shape[1] for key, tensor in found.items()}
    assert shapes == {(0, 0): 9, (0, 2): 7, (1, 1): 6}
    assert (np.count_nonzero(found[0, 0], axis=1) <= 3).all()
    cut = scalars.ScalarSelection(
        derived_scalar_type=TYPE(MLP),
        ranges=[
            scalars.DimensionRange(dimension=names.DIMENSIONS.value("autoencoder_latents"), start=2)
        ],
    )
    for (_, layer), tensor in derive(stub, cut).items():
        np.testing.assert_array_equal(tensor, found[0, layer][:, 2:])


def test_attribution_to_one_latent_and_to_all_agree(serve: Serve) -> None:
    stub = serve(HEADS_FOLDER)
    every = derive(stub, selection("attn_write_to_latent_per_sequence_token_batched"))[0, 1]
    for place in (GENERIC, HEADS):
        one = derive(
            stub,
            selection("attn_write_to_latent_per_sequence_token"),
            within_layer_gradient_index=latent(place, 1, None, 4),
        )
        np.testing.assert_allclose(one[0, 1], every[:, :, 4], atol=1e-5)


def test_a_component_is_a_latent(serve: Serve) -> None:
    stub = serve(OUTPUT_FILE)
    whole = derive(stub, selection(GENERIC))[0, 1]
    component = common.ComponentId(
        derived_scalar_type=TYPE(GENERIC), layer_index=1, component_index=5
    )
    answer = stub.DeriveComponent(
        scalars.DeriveComponentRequest(
            inference=scalars.InferenceSpec(prompt=PROMPT),
            spec=scalars.ComponentSpec(component=component),
        ),
        timeout=60,
    )
    np.testing.assert_allclose(to_array(answer.scalars.activations), whole[:, 5], atol=1e-6)
    assert set(answer.scalars.nodes.node_types) == {common.NODE_TYPE_AUTOENCODER_LATENT}


def ablated(place: str, layer: int, *indices: int | None) -> list[scalars.Ablation]:
    return [scalars.Ablation(index=latent(place, layer, *indices), value=1.0)]


WITHIN, ABLATION = "inference.within_layer_gradient_index", "inference.ablations[0].index"
WRONG: dict[str, tuple[tuple[str, ...], dict[str, Any], str, str]] = {
    "no autoencoder": (
        (),
        {"selections": [selection(GENERIC)]},
        "selections[0].derived_scalar_type",
        "AUTOENCODER_NEEDED",
    ),
    "a generic name where there are two": (
        (NEURONS_FILE, HEADS_FOLDER),
        {"selections": [selection(GENERIC)]},
        "selections[0].derived_scalar_type",
        "AUTOENCODER_NEEDED",
    ),
    "a layer without latents": (
        (NEURONS_FILE, HEADS_FOLDER),
        {"selections": [selection(MLP, layer_indices=[1])]},
        "selections[0].layer_indices[0]",
        "NO_LATENTS_AT_LAYER",
    ),
    "no latent": (
        (HEADS_FOLDER,),
        {"selections": [selection(TO_LATENT)]},
        WITHIN,
        "WITHIN_LAYER_GRADIENT_INDEX_NEEDED",
    ),
    "a latent that does not exist": (
        (HEADS_FOLDER,),
        {
            "selections": [selection(TO_LATENT)],
            "within_layer_gradient_index": latent(GENERIC, 1, None, 6),
        },
        f"{WITHIN}.tensor_indices[1]",
        "INVALID_ARGUMENT",
    ),
    "a latent of another autoencoder": (
        (NEURONS_FILE, HEADS_FOLDER),
        {
            "selections": [selection(TO_LATENT)],
            "within_layer_gradient_index": latent(MLP, 0, None, 1),
        },
        WITHIN,
        "INVALID_ARGUMENT",
    ),
    "an ablation without its autoencoder": (
        (NEURONS_FILE,),
        {"selections": [selection(MLP)], "ablations": ablated(HEADS, 1, 0, 0)},
        f"{ABLATION}.location_type",
        "AUTOENCODER_NEEDED",
    ),
    "an ablation at a layer without latents": (
        (NEURONS_FILE,),
        {"selections": [selection(MLP)], "ablations": ablated(GENERIC, 1, 0, 0)},
        f"{ABLATION}.layer_index",
        "NO_LATENTS_AT_LAYER",
    ),
    "an ablation of a latent that does not exist": (
        (NEURONS_FILE,),
        {"selections": [selection(MLP)], "ablations": ablated(GENERIC, 2, 0, 7)},
        f"{ABLATION}.tensor_indices[1]",
        "INVALID_ARGUMENT",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_deployment_lacks_is_refused(serve: Serve, name: str) -> None:
    autoencoders, request, field, reason = WRONG[name]
    with pytest.raises(NeuropilError) as caught:
        derive(serve(*autoencoders), *request.pop("selections"), **request)
    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", field)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("autoencoders", "position", "words"),
    [
        (("nowhere.safetensors",), 0, "does not exist"),
        ((NEURONS_FILE, OUTPUT_FILE), 1, "second autoencoder"),
        (("model",), 0, "cfg.json"),
    ],
)
def test_a_service_with_bad_autoencoders_ends_with_a_line(
    folder: Path, autoencoders: tuple[str, ...], position: int, words: str
) -> None:
    arguments = ("--config", str(configure(folder, *autoencoders)), "--port", "0")
    ended = subprocess.run(
        [sys.executable, "-m", "services.scalars", *arguments, "--metrics-port", "0"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert f"model.autoencoders[{position}].path" in ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
