"""Requests that the derived-scalars service refuses, each with the field at fault."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

import neuropil
from neuropil import names
from neuropil.channel import open_channel
from neuropil.common import v1 as common
from neuropil.errors import translated
from neuropil.scalars import v1 as scalars
from tests.integration.scalars_deployment import scalars_service, write_deployment
from tests.unit.scalars_checkpoint import CONTEXT, LAYERS, NEURONS

PROMPT = "The cat sat on the mat"
TYPE = names.DERIVED_SCALAR_TYPES.value
PLACE = names.ACTIVATION_LOCATION_TYPES.value


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[scalars.DerivedScalarsStub]:
    deployment = write_deployment(tmp_path_factory.mktemp("deployment"))
    with scalars_service(deployment) as address, open_channel(address) as channel:
        yield scalars.DerivedScalarsStub(channel)


def inference(**fields: Any) -> scalars.InferenceSpec:
    return scalars.InferenceSpec(**{"prompt": PROMPT, **fields})


def selection(name: str = "mlp_post_act", **fields: Any) -> scalars.ScalarSelection:
    return scalars.ScalarSelection(derived_scalar_type=TYPE(name), **fields)


def derive(
    spec: scalars.InferenceSpec | None = None, *selections: scalars.ScalarSelection
) -> scalars.DeriveRequest:
    return scalars.DeriveRequest(
        inference=spec or inference(), selections=selections or [selection()]
    )


def ablated(place: str = "mlp.post_act", value: float = 1.0, **fields: Any) -> Any:
    index: dict[str, Any] = {"layer_index": 0, "tensor_indices": indices(0, 0), **fields}
    if index["layer_index"] is None:
        del index["layer_index"]
    return derive(
        inference(
            ablations=[
                scalars.Ablation(
                    index=common.ActivationIndex(location_type=PLACE(place), **index), value=value
                )
            ]
        )
    )


def indices(*given: int | None) -> list[common.DimensionIndex]:
    return [common.DimensionIndex(index=each) for each in given]


def loss(
    kind: str = "logit_diff", targets: Any = (" cat",), distractors: Any = (), **fields: Any
) -> scalars.DeriveRequest:
    return derive(
        inference(
            loss=scalars.LossFunction(
                kind=names.LOSS_KINDS.value(kind),
                target_tokens=targets,
                distractor_tokens=distractors,
                **fields,
            )
        ),
        selection("mlp_act_times_grad"),
    )


BACKWARD = common.PASS_TYPE_BACKWARD
INVALID = "INVALID_ARGUMENT"

WRONG: dict[str, tuple[Any, str, str, str]] = {
    "empty prompt": (derive(inference(prompt="")), INVALID, "inference.prompt", ""),
    "prompt longer than the context": (
        derive(inference(prompt=" cat" * (CONTEXT + 1))),
        INVALID,
        "inference.prompt",
        f"context is {CONTEXT}",
    ),
    "huge prompt": (
        derive(inference(prompt="naïve 東京 " * 65536)),
        INVALID,
        "inference.prompt",
        "context",
    ),
    "no inference": (scalars.DeriveRequest(selections=[selection()]), INVALID, "inference", ""),
    "no selection": (scalars.DeriveRequest(inference=inference()), INVALID, "selections", ""),
    "layer out of range": (
        derive(None, selection(layer_indices=[LAYERS])),
        INVALID,
        "selections[0].layer_indices[0]",
        "0 to 2",
    ),
    "negative layer": (
        derive(None, selection(layer_indices=[-1])),
        INVALID,
        "selections[0].layer_indices[0]",
        "",
    ),
    "layer of what has none": (
        derive(None, selection("logits", layer_indices=[0])),
        INVALID,
        "selections[0].layer_indices",
        "no layers",
    ),
    "unset type": (
        derive(None, scalars.ScalarSelection()),
        INVALID,
        "selections[0].derived_scalar_type",
        "must be set",
    ),
    "unknown type": (
        derive(None, scalars.ScalarSelection(derived_scalar_type=999)),  # type: ignore[arg-type]
        INVALID,
        "selections[0].derived_scalar_type",
        "",
    ),
    "type of an autoencoder that is not there": (
        derive(None, selection("online_autoencoder_latent")),
        INVALID,
        "selections[0].derived_scalar_type",
        "online_autoencoder_latent",
    ),
    "backward without a loss": (
        derive(None, selection(pass_type=BACKWARD)),
        INVALID,
        "inference.loss",
        "give a loss",
    ),
    "gradient without a loss": (
        derive(None, selection("mlp_act_times_grad")),
        INVALID,
        "inference.loss",
        "mlp_act_times_grad",
    ),
    "no backward pass": (
        derive(None, selection("always_one", pass_type=BACKWARD)),
        INVALID,
        "selections[0].pass_type",
        "previous_layer_resid_post_mlp",
    ),
    "range of another dimension": (
        derive(
            None,
            selection(
                ranges=[scalars.DimensionRange(dimension=names.DIMENSIONS.value("attn_heads"))]
            ),
        ),
        INVALID,
        "selections[0].ranges[0].dimension",
        "mlp_acts",
    ),
    "empty range": (
        derive(
            None,
            selection(
                ranges=[
                    scalars.DimensionRange(
                        dimension=names.DIMENSIONS.value("mlp_acts"), start=3, stop=3
                    )
                ]
            ),
        ),
        INVALID,
        "selections[0].ranges[0].stop",
        "3 to 3",
    ),
    "rank of an ablation": (
        ablated(tensor_indices=indices(0)),
        INVALID,
        "inference.ablations[0].index.tensor_indices",
        "2 dimensions",
    ),
    "index of an ablation": (
        ablated(tensor_indices=indices(0, NEURONS)),
        INVALID,
        "inference.ablations[0].index.tensor_indices[1]",
        f"has {NEURONS}",
    ),
    "negative index of an ablation": (
        ablated(tensor_indices=indices(-1, 0)),
        INVALID,
        "inference.ablations[0].index.tensor_indices[0].index",
        "",
    ),
    "layer of an ablation": (
        ablated(layer_index=99),
        INVALID,
        "inference.ablations[0].index.layer_index",
        "layer 99",
    ),
    "missing layer of an ablation": (
        ablated(layer_index=None),
        INVALID,
        "inference.ablations[0].index.layer_index",
        "needs a layer",
    ),
    "ablation that is not a number": (
        ablated(value=math.nan),
        INVALID,
        "inference.ablations[0].value",
        "",
    ),
    "ablation that is infinite": (
        ablated(value=math.inf),
        INVALID,
        "inference.ablations[0].value",
        "",
    ),
    "ablation that is infinite in single precision": (
        ablated(value=-1e39),
        INVALID,
        "inference.ablations[0].value",
        "single precision",
    ),
    "backward ablation without a loss": (
        ablated(pass_type=BACKWARD),
        INVALID,
        "inference.ablations[0].index.pass_type",
        "give a loss",
    ),
    "ablated latent": (
        ablated("online_mlp_autoencoder_latent"),
        INVALID,
        "inference.ablations[0].index.location_type",
        "no autoencoder is configured",
    ),
    "ablation without a place": (
        derive(inference(ablations=[scalars.Ablation(value=1)])),
        INVALID,
        "inference.ablations[0].index",
        "",
    ),
    "target of several tokens": (
        loss(targets=(" cat", "two tokens here")),
        INVALID,
        "inference.loss.target_tokens[1]",
        "exactly 1 token is needed",
    ),
    "no target": (loss(targets=()), INVALID, "inference.loss.target_tokens", "at least 1"),
    "distractors that make no sense": (
        loss("probs", distractors=(" dog",)),
        INVALID,
        "inference.loss.distractor_tokens",
        "logit_diff",
    ),
    "unset loss": (
        derive(inference(loss=scalars.LossFunction())),
        INVALID,
        "inference.loss.kind",
        "",
    ),
    "position of the loss": (loss(position=999), INVALID, "inference.loss.position", "999"),
    "beginning token": (
        derive(inference(prepend_beginning_token=True)),
        INVALID,
        "inference.prepend_beginning_token",
        "beginning token",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(stub: scalars.DerivedScalarsStub, name: str) -> None:
    request, code, field, words = WRONG[name]
    with pytest.raises(neuropil.NeuropilError) as caught, translated():
        list(stub.Derive(request, timeout=60))
    assert caught.value.code == code
    assert caught.value.field == field
    assert words in caught.value.message
    assert "Traceback" not in caught.value.message


def component(name: str = "mlp_post_act", **fields: Any) -> scalars.DeriveComponentRequest:
    top_token_count = fields.pop("top_token_count", 0)
    return scalars.DeriveComponentRequest(
        inference=inference(),
        spec=scalars.ComponentSpec(
            component=common.ComponentId(derived_scalar_type=TYPE(name), **fields),
            top_token_count=top_token_count,
        ),
    )


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (component(layer_index=LAYERS), "spec.component.layer_index"),
        (component(), "spec.component.layer_index"),
        (component("logits", layer_index=0), "spec.component.layer_index"),
        (component(layer_index=0, component_index=NEURONS), "spec.component.component_index"),
        (component(layer_index=0, component_index=-1), "spec.component.component_index"),
        (component("attn_qk_probs", layer_index=0), "spec.component.derived_scalar_type"),
        (component("resid_post_mlp", layer_index=0, top_token_count=3), "spec.top_token_count"),
        (component(layer_index=0, top_token_count=-1), "spec.top_token_count"),
    ],
)
def test_a_wrong_component_is_told(
    stub: scalars.DerivedScalarsStub, request_: scalars.DeriveComponentRequest, field: str
) -> None:
    with pytest.raises(neuropil.NeuropilError) as caught, translated():
        stub.DeriveComponent(request_, timeout=30)
    assert (caught.value.code, caught.value.field) == (INVALID, field)
