"""Traces and edges through a real service: what is answered, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from neuropil import names
from neuropil.channel import open_channel
from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, translated
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_array
from tests.integration.scalars_deployment import scalars_service, write_deployment
from tests.unit.scalars_checkpoint import LAYERS, NEURONS

PROMPT = "The cat sat on the mat"
TYPE = names.DERIVED_SCALAR_TYPES.value
NODE = names.NODE_TYPES.value


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[scalars.DerivedScalarsStub]:
    deployment = write_deployment(tmp_path_factory.mktemp("deployment"))
    with scalars_service(deployment) as address, open_channel(address) as channel:
        yield scalars.DerivedScalarsStub(channel)


def node(kind: str, *indices: int | None, layer: int = 1) -> common.NodeIndex:
    return common.NodeIndex(
        node_type=NODE(kind),
        layer_index=layer,
        tensor_indices=[common.DimensionIndex(index=each) for each in indices],
    )


def trace(index: common.NodeIndex, **fields: Any) -> scalars.Trace:
    return scalars.Trace(node_index=index, **fields)


NEURON = node("mlp_neuron", 4, 3)
LATER = trace(node("mlp_neuron", 5, 3, layer=2))
HEAD = node("attention_head", 4, 2, 1)
POST = scalars.NONLINEARITY_SIDE_POST_ACT
LOSS = scalars.LossFunction(
    kind=names.LOSS_KINDS.value("logit_diff"), target_tokens=[" cat"], position=4
)
V = scalars.ATTENTION_TRACE_TYPE_V


def select(name: str, **fields: Any) -> scalars.ScalarSelection:
    return scalars.ScalarSelection(derived_scalar_type=TYPE(name), **fields)


def request(
    *selections: scalars.ScalarSelection, prompt: str = PROMPT, **inference: Any
) -> scalars.DeriveRequest:
    return scalars.DeriveRequest(
        inference=scalars.InferenceSpec(prompt=prompt, **inference), selections=selections
    )


Tensors = dict[tuple[int, int | None], np.ndarray[Any, Any]]


def derive(
    stub: scalars.DerivedScalarsStub, asked: scalars.DeriveRequest
) -> tuple[scalars.InferenceResult, Tensors]:
    """The run's result, and tensors by selection and layer."""
    with translated():
        first, *frames = stub.Derive(asked, timeout=60)
    rows: dict[tuple[int, int | None], list[np.ndarray[Any, Any]]] = {}
    for each in frames:
        frame = each.frame
        layer = frame.layer_index if frame.HasField("layer_index") else None
        rows.setdefault((frame.selection, layer), []).append(to_array(frame.rows))
    return first.inference, {key: np.concatenate(parts) for key, parts in rows.items()}


def test_a_trace_starts_the_backward_pass(stub: scalars.DerivedScalarsStub) -> None:
    result, tensors = derive(
        stub,
        request(
            select("mlp_post_act", layer_indices=[1]),
            select("mlp_post_act", pass_type=common.PASS_TYPE_BACKWARD, layer_indices=[0, 2]),
            select("mlp_write_to_final_residual_grad", layer_indices=[0]),
            select("mlp_write_to_final_activation_residual_grad", layer_indices=[0]),
            trace=trace(NEURON, side=POST),
        ),
    )
    assert result.traced_activation == pytest.approx(float(tensors[0, 1][4, 3]), rel=1e-5)
    assert not result.HasField("loss")
    assert tensors[1, 0].any()
    assert not tensors[1, 2].any()
    np.testing.assert_allclose(tensors[2, 0], tensors[3, 0], rtol=1e-3, atol=1e-6)


def test_a_trace_through_the_value_takes_a_loss(stub: scalars.DerivedScalarsStub) -> None:
    by_value = trace(HEAD, attention_trace_type=V)
    result, tensors = derive(
        stub,
        request(
            select("unflattened_attn_write_to_final_residual_grad", layer_indices=[0]),
            trace=trace(HEAD, attention_trace_type=V),
            loss=LOSS,
        ),
    )
    assert result.HasField("loss")
    assert result.traced_activation != 0
    assert tensors[0, 0].any()
    result, _ = derive(
        stub,
        request(
            select("logits"), trace=trace(HEAD, attention_trace_type=V, downstream=LATER), loss=None
        ),
    )
    assert result.HasField("traced_activation")
    with pytest.raises(NeuropilError) as caught:
        derive(stub, request(select("logits"), trace=by_value))
    assert caught.value.reason == "LOSS_NEEDED"


def test_edges_of_different_nodes_in_one_request(stub: scalars.DerivedScalarsStub) -> None:
    other = node("mlp_neuron", 4, 5, layer=0)
    _, tensors = derive(
        stub,
        request(
            select("mlp_in_edge_attribution", layer_indices=[2], node_index=NEURON),
            select("mlp_in_edge_attribution", layer_indices=[2], node_index=other),
            select(
                "attn_out_edge_attribution",
                layer_indices=[0],
                node_index=node("attention_head", 4, 2, 1, layer=2),
                attention_part=scalars.ATTENTION_PART_KEY,
                detach_layer_norm_scale=True,
            ),
            select("single_node_write", node_index=NEURON),
            loss=LOSS,
        ),
    )
    assert set(tensors) == {(0, 2), (1, 2), (2, 0), (3, 1)}
    assert not np.allclose(tensors[0, 2], tensors[1, 2])
    assert tensors[2, 0].any()
    assert list(np.flatnonzero(tensors[3, 1].any(axis=1))) == [4]


def test_read_direction_of_a_neuron(stub: scalars.DerivedScalarsStub) -> None:
    index = common.ActivationIndex(
        location_type=names.ACTIVATION_LOCATION_TYPES.value("mlp.post_act"),
        layer_index=1,
        tensor_indices=[common.DimensionIndex(index=each) for each in (0, 7)],
    )
    _, tensors = derive(
        stub, request(select("vocab_token_write_to_input_direction", activation_index=index))
    )
    (found,) = tensors.values()
    assert (found == found[0]).all()
    assert found.std() > 0


WRONG: dict[str, tuple[scalars.DeriveRequest, str, str]] = {
    "no such neuron": (
        request(select("logits"), trace=trace(node("mlp_neuron", 1, NEURONS))),
        "inference.trace.node_index.tensor_indices[1]",
        "INVALID_ARGUMENT",
    ),
    "no such layer": (
        request(select("logits"), trace=trace(node("mlp_neuron", 1, 2, layer=LAYERS))),
        "inference.trace.node_index.layer_index",
        "INVALID_ARGUMENT",
    ),
    "no way into the head": (
        request(select("logits"), trace=trace(HEAD)),
        "inference.trace.attention_trace_type",
        "INVALID_ARGUMENT",
    ),
    "a latent without autoencoder": (
        request(select("logits"), trace=trace(node("autoencoder_latent", 1, 2))),
        "inference.trace.node_index.node_type",
        "AUTOENCODER_NEEDED",
    ),
    "a loss beside a trace": (
        request(select("logits"), trace=trace(NEURON), loss=LOSS),
        "inference.loss",
        "INVALID_ARGUMENT",
    ),
    "no trace": (
        request(select("mlp_write_to_final_activation_residual_grad"), loss=LOSS),
        "inference.trace",
        "TRACE_NEEDED",
    ),
    "no node": (
        request(select("mlp_in_edge_activation")),
        "selections[0].node_index",
        "NODE_INDEX_NEEDED",
    ),
    "no activation": (
        request(select("vocab_token_write_to_input_direction")),
        "selections[0].activation_index",
        "ACTIVATION_INDEX_NEEDED",
    ),
    "an open node": (
        request(select("single_node_write", node_index=node("mlp_neuron", None, 2))),
        "selections[0].node_index.tensor_indices[0]",
        "INVALID_ARGUMENT",
    ),
    "no gradient for an edge": (
        request(select("mlp_in_edge_attribution", node_index=NEURON)),
        "inference.loss",
        "LOSS_NEEDED",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(stub: scalars.DerivedScalarsStub, name: str) -> None:
    asked, field, reason = WRONG[name]
    with pytest.raises(NeuropilError) as caught:
        derive(stub, asked)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.field == field
    assert caught.value.reason == reason
