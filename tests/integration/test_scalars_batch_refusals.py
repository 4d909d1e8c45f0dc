"""Batches that are refused: the code, the field and the words of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import neuropil
from neuropil.names import component_id
from neuropil.scalars import v1
from tests.integration.scalars_batch_requests import (
    PROMPT,
    TYPE,
    attributed,
    batch,
    batch_service,
    inference,
    run,
    scored,
    top,
)
from tests.unit.scalars_checkpoint import LAYERS


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[v1.DerivedScalarsStub]:
    with batch_service(tmp_path_factory.mktemp("deployment")) as opened:
        yield opened


LISTED = top("top", "mlp_post_act")
COMPONENT = v1.NamedSpec(
    name="c", component=v1.ComponentSpec(component=component_id("mlp_post_act", 1, 3))
)
REFUSED: dict[str, tuple[list[v1.BatchInference], str, str, str]] = {
    "unknown name": (
        [batch(inference(), LISTED, scored("out", of="tip"))],
        "INVALID_ARGUMENT",
        "inferences[0].specs[1].scored_tokens.depends_on",
        "'tip'",
    ),
    "name in another inference": (
        [batch(inference(), LISTED), batch(inference(), attributed())],
        "INVALID_ARGUMENT",
        "inferences[1].specs[0].token_pair_attribution.depends_on",
        "'top'",
    ),
    "itself": (
        [batch(inference(), scored("out", of="out"))],
        "INVALID_ARGUMENT",
        "inferences[0].specs[0].scored_tokens.depends_on",
        "itself",
    ),
    "a ring": (
        [batch(inference(), scored("out", of="mlp"), scored("mlp", of="out"))],
        "INVALID_ARGUMENT",
        "inferences[0].specs[0].scored_tokens.depends_on",
        "scored tokens",
    ),
    "wrong kind": (
        [batch(inference(), COMPONENT, scored("out", of="c"))],
        "INVALID_ARGUMENT",
        "inferences[0].specs[1].scored_tokens.depends_on",
        "a component",
    ),
    "name twice": (
        [batch(inference(), LISTED, LISTED)],
        "INVALID_ARGUMENT",
        "inferences[0].specs[1].name",
        "'top'",
    ),
    "prompts of different lengths": (
        [batch(inference(), LISTED), batch(inference("The cat"), top("x", "mlp_post_act"))],
        "INVALID_ARGUMENT",
        "inferences[1].inference.prompt",
        "same length",
    ),
    "other node types under a name": (
        [batch(inference(), LISTED), batch(inference(), top("top", "attn_qk_probs"))],
        "INVALID_ARGUMENT",
        "inferences[1].specs[0].top_nodes.groups",
        "inferences[0].specs[0].top_nodes",
    ),
    "what the inference lacks": (
        [batch(v1.InferenceSpec(prompt=PROMPT), top("top", "mlp_act_times_grad"))],
        "INVALID_ARGUMENT",
        "inferences[0].inference.loss",
        "loss",
    ),
    "layer of top nodes": (
        [batch(inference(), top("top", "mlp_post_act", first_layer=LAYERS))],
        "INVALID_ARGUMENT",
        "inferences[0].specs[0].top_nodes.first_layer",
        "0 to 2",
    ),
    "top tokens of what writes nothing": (
        [
            batch(
                inference(),
                v1.NamedSpec(
                    name="c",
                    component=v1.ComponentSpec(
                        component=component_id("resid_post_mlp", 1, 3), top_token_count=3
                    ),
                ),
            )
        ],
        "INVALID_ARGUMENT",
        "inferences[0].specs[0].component.top_token_count",
        "neurons, heads, latents",
    ),
    "too many tokens": (
        [
            batch(
                inference(" cat" * 20),
                top("top", "mlp_post_act", count=3000),
                scored("out", 10_000),
            )
        ],
        "RESOURCE_EXHAUSTED",
        "inferences[0].specs[1].scored_tokens.token_count",
        "500000",
    ),
    "a message too large": (
        [
            batch(
                inference(),
                v1.NamedSpec(
                    name="huge",
                    selection=v1.ScalarSelection(derived_scalar_type=TYPE("mlp_write")),
                ),
                *(
                    v1.NamedSpec(
                        name=f"more {number}",
                        selection=v1.ScalarSelection(derived_scalar_type=TYPE("attn_write")),
                    )
                    for number in range(40)
                ),
            )
        ],
        "RESOURCE_EXHAUSTED",
        "inferences[0].specs",
        "a message holds 1048576",
    ),
    "no inference": ([], "INVALID_ARGUMENT", "inferences", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_told(stub: v1.DerivedScalarsStub, name: str) -> None:
    inferences, code, field, words = REFUSED[name]
    with pytest.raises(neuropil.NeuropilError) as caught:
        run(stub, *inferences)
    assert caught.value.code == code
    assert caught.value.field == field
    assert words in str(caught.value)
