"""The Python client's derived scalars, on a service that notes its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.testing import assert_array_equal

import neuropil
from neuropil.scalars import v1
from neuropil.tensors import to_tensor
from tests.integration.gateway_inference import Scalars
from tests.integration.gateway_running import service

HEAD = neuropil.NodeIndex("attention_head", 3, (2, None, 1))


class Tensors(Scalars):
    """Also streams a tensor a selection, in two frames, and answers selections of batches."""

    async def Derive(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        yield v1.DeriveResponse(inference=v1.InferenceResult(tokens=["a"], traced_activation=0.5))
        for position in range(len(request.selections)):
            for row in range(2):
                frame = v1.TensorFrame(
                    selection=position,
                    layer_index=4,
                    shape=[2, 3],
                    first_row=row,
                    rows=to_tensor(np.full((1, 3), row + position, dtype=np.float32)),
                )
                yield v1.DeriveResponse(frame=frame)

    async def BatchDerive(self, request: Any, context: Any) -> Any:
        if request.inferences[0].specs[0].name != "tensor":
            async for response in super().BatchDerive(request, context):
                yield response
            return
        self.requests.append(request)
        tensor = to_tensor(np.zeros((1, 2, 3), dtype=np.float32))
        yield v1.BatchDeriveResponse(results=[v1.NamedResult(name="tensor", selection=tensor)])


@pytest.fixture
def scalars() -> Tensors:
    return Tensors()


@pytest.fixture
async def client(scalars: Tensors) -> AsyncIterator[neuropil.Client]:
    async with service("scalars", scalars) as running:
        with neuropil.connect(scalars=f"127.0.0.1:{running.port}", timeout=20) as connected:
            yield connected


async def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The client blocks, and the service is on this loop."""
    return await asyncio.to_thread(function, *arguments, **named)


async def test_an_inference_says_all_that_the_contract_knows(
    client: neuropil.Client, scalars: Tensors
) -> None:
    inference = neuropil.Inference(
        "The cat",
        loss=neuropil.Loss("logit_diff", [" a"], [" b"], position=-2),
        trace=neuropil.Trace(
            HEAD,
            side="post_act",
            through="v",
            detach_layer_norm_scale=False,
            downstream=neuropil.Trace(neuropil.NodeIndex("mlp_neuron", 4, (2, 7))),
        ),
        ablations=[neuropil.Ablation("attn.qk_probs", 1, (0, None, 2), 0.5, "backward")],
        within_layer_gradient=neuropil.Activation("online_autoencoder_latent", 1, (None, 3)),
        prepend_beginning_token=True,
    )
    await call(client.scalars.component, inference, "mlp_post_act", 1, 3, top_tokens=5)
    expected = text_format.Parse(
        """
        inference {
          prompt: "The cat"
          loss {
            kind: LOSS_KIND_LOGIT_DIFF target_tokens: " a" distractor_tokens: " b" position: -2
          }
          trace {
            node_index {
              node_type: NODE_TYPE_ATTENTION_HEAD layer_index: 3 pass_type: PASS_TYPE_FORWARD
              tensor_indices { index: 2 } tensor_indices {} tensor_indices { index: 1 }
            }
            side: NONLINEARITY_SIDE_POST_ACT
            attention_trace_type: ATTENTION_TRACE_TYPE_V
            downstream {
              node_index {
                node_type: NODE_TYPE_MLP_NEURON layer_index: 4 pass_type: PASS_TYPE_FORWARD
                tensor_indices { index: 2 } tensor_indices { index: 7 }
              }
              side: NONLINEARITY_SIDE_PRE_ACT detach_layer_norm_scale: true
            }
          }
          ablations {
            index {
              location_type: ACTIVATION_LOCATION_TYPE_ATTN_QK_PROBS layer_index: 1
              tensor_indices { index: 0 } tensor_indices {} tensor_indices { index: 2 }
              pass_type: PASS_TYPE_BACKWARD
            }
            value: 0.5
          }
          within_layer_gradient_index {
            location_type: ACTIVATION_LOCATION_TYPE_ONLINE_AUTOENCODER_LATENT layer_index: 1
            tensor_indices {} tensor_indices { index: 3 } pass_type: PASS_TYPE_FORWARD
          }
          prepend_beginning_token: true
        }
        spec {
          component {
            derived_scalar_type: DERIVED_SCALAR_TYPE_MLP_POST_ACT layer_index: 1 component_index: 3
          }
          pass_type: PASS_TYPE_FORWARD top_token_count: 5
        }
        """,
        v1.DeriveComponentRequest(),
    )
    assert scalars.requests == [expected]


async def test_a_component_by_token_and_by_token_pair(client: neuropil.Client) -> None:
    by_token = await call(client.scalars.component, "The cat", "mlp_post_act", 1, 3)
    assert by_token.activations.tolist() == [-1.0, 2.0]
    assert [each.indices for each in by_token.nodes] == [(0, 3), (1, 3)]
    assert by_token.top_tokens.top == [neuropil.VocabularyScore("x", 2.0, 1.0)]
    assert by_token.top_tokens.bottom == [neuropil.VocabularyScore("y", -1.0, -0.5)]
    pairs = await call(client.scalars.token_pairs, "The cat", "unflattened_attn_write_norm", 1, 3)
    assert pairs.tokens == ["The", " cat"]
    assert_array_equal(pairs.matrix(), [[1.0, np.nan], [2.0, 3.0]])


async def test_tensors_of_edges_and_slices(client: neuropil.Client, scalars: Tensors) -> None:
    specs = [
        "mlp_write_norm",
        neuropil.TensorSpec(
            "attn_out_edge_attribution",
            layers=[0],
            ranges={"sequence_tokens": (1, None), "attn_heads": (0, 2)},
            node=HEAD,
            attention_part="key",
            detach_layer_norm_scale=True,
        ),
        neuropil.TensorSpec(
            "vocab_token_write_to_input_direction",
            activation=neuropil.Activation("mlp.post_act", 1, (0, 3), "backward"),
        ),
    ]
    derived = await call(client.scalars.derive, "a", specs, layers=[4])
    assert derived.traced_activation == 0.5
    assert_array_equal(derived["mlp_write_norm", 4], [[0, 0, 0], [1, 1, 1]])
    assert_array_equal(derived["attn_out_edge_attribution", 4], [[1, 1, 1], [2, 2, 2]])
    (request,) = scalars.requests
    plain, edges, read = request.selections
    assert list(plain.layer_indices) == [4]
    assert list(edges.layer_indices) == [0]
    assert edges == text_format.Parse(
        """
        derived_scalar_type: DERIVED_SCALAR_TYPE_ATTN_OUT_EDGE_ATTRIBUTION layer_indices: 0
        pass_type: PASS_TYPE_FORWARD
        ranges { dimension: DIMENSION_SEQUENCE_TOKENS start: 1 }
        ranges { dimension: DIMENSION_ATTN_HEADS start: 0 stop: 2 }
        node_index {
          node_type: NODE_TYPE_ATTENTION_HEAD layer_index: 3 pass_type: PASS_TYPE_FORWARD
          tensor_indices { index: 2 } tensor_indices {} tensor_indices { index: 1 }
        }
        attention_part: ATTENTION_PART_KEY detach_layer_norm_scale: true
        """,
        v1.ScalarSelection(),
    )
    assert read.activation_index.tensor_indices[1].index == 3


async def test_a_single_one_need_not_be_in_a_list(
    client: neuropil.Client, scalars: Tensors
) -> None:
    loss = neuropil.Loss("logit_diff", " the", " cat")
    derived = await call(client.scalars.derive, "a", "mlp_write_norm", layers=4, loss=loss)
    assert derived["mlp_write_norm", 4].shape == (2, 3)
    await call(client.scalars.derive, "a", neuropil.TensorSpec("logits"))
    by_name, by_spec = scalars.requests
    assert list(by_name.inference.loss.target_tokens) == [" the"]
    assert list(by_name.inference.loss.distractor_tokens) == [" cat"]
    assert list(by_name.selections[0].layer_indices) == [4]
    assert len(by_spec.selections) == 1
    top, listed = (
        neuropil.TopNodesSpec({"write_norm": types}, sum_dimensions=dimensions).message()
        for types, dimensions in (
            ("mlp_write_norm", "sequence_tokens"),
            (["mlp_write_norm"], ["sequence_tokens"]),
        )
    )
    assert top == listed


async def test_a_batch_has_specs_of_every_kind(client: neuropil.Client, scalars: Tensors) -> None:
    specs = {
        "top": neuropil.TopNodesSpec(
            {"write_norm": ["mlp_write_norm"]},
            count=2,
            token_index=-1,
            first_layer=1,
            exclude_bottom=True,
            sum_dimensions=[],
        ),
        "scored": neuropil.ScoredTokensSpec("top", "input_tokens_that_upvote_mlp", count=3),
        "pairs": neuropil.AttributionSpec("top", count=2),
        "component": neuropil.ComponentSpec("mlp_post_act", 1, 3),
        "by_pair": neuropil.TokenPairSpec("unflattened_attn_write_norm", 1, 3),
    }
    runs = await call(
        client.scalars.batch, [("The cat", specs), (neuropil.Inference("The dog"), {})]
    )
    first, second = runs
    assert first.tokens == ["The", " cat"]
    assert second.results == {}
    assert [each.indices for each in first["top"].nodes] == [(0, 3), (1, 0, 2)]
    assert [each.layer_index for each in first["top"].nodes] == [1, 0]
    assert [each and each.top[0].token for each in first["scored"]] == ["x", None]
    assert first["pairs"] == [None, neuropil.Attribution([(1, 0.5), (0, 0.25)], [])]
    assert first["component"].activations.tolist() == [-1.0, 2.0]
    assert first["by_pair"].activations.tolist() == [1.0, 2.0, 3.0]
    (request,) = scalars.requests
    top = request.inferences[0].specs[0].top_nodes
    assert top == text_format.Parse(
        """
        groups {
          group_id: GROUP_ID_WRITE_NORM derived_scalar_types: DERIVED_SCALAR_TYPE_MLP_WRITE_NORM
        }
        token_index: -1 top_and_bottom_count: 2 pass_type: PASS_TYPE_FORWARD
        sum_dimensions {} exclude_bottom: true first_layer: 1
        """,
        v1.TopNodesSpec(),
    )
    assert request.inferences[0].specs[1].scored_tokens == v1.ScoredTokensSpec(
        scoring=v1.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_MLP, token_count=3, depends_on="top"
    )
    tensor = {"tensor": neuropil.TensorSpec("mlp_write_norm", layers=[2])}
    (run,) = await call(client.scalars.batch, [("The cat", tensor)])
    assert run["tensor"].shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: neuropil.Trace(HEAD, side="before").message(), "pre_act"),
        (lambda: neuropil.Trace(HEAD, through="x").message(), "qk"),
        (lambda: neuropil.NodeIndex("nerve", 0, ()).message(), "mlp_neuron"),
        (lambda: neuropil.Activation("mlp.postact", 0, ()).message(), "mlp.post_act"),
        (lambda: neuropil.TensorSpec("mlp_post_ac").message(), "mlp_post_act"),
        (lambda: neuropil.TensorSpec("logits", attention_part="v").message(), "value"),
        (lambda: neuropil.TensorSpec("logits", ranges={"x": (0, 1)}).message(), "attn_heads"),
    ],
)
def test_names_that_are_unknown_are_told_with_those_that_are(
    make: Callable[[], Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_what_would_be_dropped_is_refused() -> None:
    with neuropil.connect() as connected:
        with pytest.raises(ValueError, match="of its own"):
            connected.scalars.top_nodes(
                neuropil.Inference("a"), {}, loss=neuropil.Loss("probs", ["a"])
            )
        with pytest.raises(ValueError, match="twice"):
            connected.scalars.derive("a", ["logits", "logits"])
