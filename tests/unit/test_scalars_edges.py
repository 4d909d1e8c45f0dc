"""Edges: forward against backward mode, sums over all writes, and finite differences."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from services.scalars.autoencoders import Activation, AutoencoderSet
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.locations import (
    ActivationLocationType,
    LocationWithinLayer,
    NodeType,
    PassType,
)
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import PreparedInference
from services.scalars.passes.losses import Loss, LossKind
from services.scalars.passes.nodes import Node, NonlinearitySide, autoencoder_input
from services.scalars.passes.traces import Trace
from services.scalars.requests.selected_nodes import SelectedNode
from tests.unit.scalars_derived import Given, Wanted, derive, make_autoencoder, make_model, run

Location = ActivationLocationType
TOKENS = (5, 17, 5, 200, 31, 90, 2)
LOSS = Loss(LossKind.LOGIT_DIFF, (3, 11), (40,), 6)
BY_LOSS = PreparedInference(TOKENS, (), LOSS)
SETTINGS = {
    "gpt2, latents of neurons": ("gpt2", Location.MLP_POST_ACT, Activation.RELU),
    "gpt2, latents of attention": ("gpt2", Location.RESID_DELTA_ATTN, Activation.JUMPRELU),
    "llama, latents of the MLP's output": ("llama", Location.RESID_DELTA_MLP, Activation.TOPK),
    "qwen3, latents of attention": ("qwen3, biases", Location.RESID_DELTA_ATTN, Activation.RELU),
}
LATENT = NodeType.AUTOENCODER_LATENT


@pytest.fixture(scope="module", params=SETTINGS)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Given:
    variant, location, activation = SETTINGS[request.param]
    model = make_model(tmp_path_factory.mktemp("edges") / "model", variant)
    return Given(model, AutoencoderSet([make_autoencoder(model, location, activation)]))


def reads(given: Given) -> ActivationLocationType:
    autoencoder = given.autoencoders.single
    assert autoencoder is not None
    return autoencoder.location


def active_latent(given: Given, layer: int, token: int) -> Node:
    """A latent that is not 0 at the token."""
    location = Location.ONLINE_AUTOENCODER_LATENT
    target = RawTensorId(location, layer, PassType.FORWARD)
    store = run(given, PreparedInference(TOKENS, (), None), [target]).raw_store
    latents = store.get(location, PassType.FORWARD).activations_by_layer_index[layer][token]
    return Node(LATENT, (token, int(latents.argmax())), layer, reads(given))


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-4) -> None:
    largest = max(float(expected.abs().max()), 1e-6)
    assert float((found - expected).abs().max()) <= tolerance * largest


def downstream_nodes(given: Given) -> list[tuple[Node, AttentionPart | None, str]]:
    """Nodes of the last layer, with the in-edge scalar that has their edges."""
    latent = active_latent(given, 2, 6)
    return [
        (Node(NodeType.MLP_NEURON, (6, 7), 2), None, "mlp_in_edge_attribution"),
        (latent, None, "online_autoencoder_in_edge_attribution"),
        *(
            (
                Node(NodeType.ATTENTION_HEAD, (6, 4, 1), 2),
                part,
                f"attn_{part.name.lower()}_in_edge_attribution",
            )
            for part in AttentionPart
        ),
    ]


def upstream_nodes(given: Given) -> list[tuple[Node, str]]:
    """Nodes of earlier layers, with the out-edge scalar that has their edges."""
    return [
        (Node(NodeType.MLP_NEURON, (6, 9), 0), "mlp_out_edge_attribution"),
        (Node(NodeType.MLP_NEURON, (4, 9), 1), "mlp_out_edge_attribution"),
        (Node(NodeType.ATTENTION_HEAD, (6, 3, 0), 1), "attn_out_edge_attribution"),
        (Node(NodeType.ATTENTION_HEAD, (4, 1, 2), 0), "attn_out_edge_attribution"),
        (active_latent(given, 1, 4), "online_autoencoder_out_edge_attribution"),
        (active_latent(given, 0, 6), "online_autoencoder_out_edge_attribution"),
    ]


@pytest.mark.parametrize("detach", [False, True])
def test_an_edge_is_the_same_from_both_of_its_ends(given: Given, detach: bool) -> None:
    pairs = list(itertools.product(downstream_nodes(given), upstream_nodes(given)))
    wanted = [
        each
        for (down, part, into), (up, out_of) in pairs
        for each in (
            Wanted(into, SelectedNode(up, detach_layer_norm_scale=detach)),
            Wanted(out_of, SelectedNode(down, part, detach_layer_norm_scale=detach)),
        )
    ]
    derived = derive(given, BY_LOSS, wanted)
    seen = 0
    for position, ((down, part, _), (up, _)) in enumerate(pairs):
        found = float(derived[2 * position][down.layer][down.index])
        expected = float(derived[2 * position + 1][up.layer][up.index])
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6), (down, part, up)
        seen += int(abs(expected) > 1e-6)
    # Tokens that a node can't reach have no edge, but most pairs here do.
    assert seen >= 12


def test_edges_of_all_writes_add_up_to_the_projected_gradient(given: Given) -> None:
    write = given.model.write
    for down, part, _ in downstream_nodes(given):
        about = SelectedNode(down, part)
        heads, neurons, tokens, gradients = derive(
            given,
            BY_LOSS,
            [
                Wanted("attn_out_edge_attribution", about),
                Wanted("mlp_out_edge_attribution", about),
                Wanted("token_out_edge_attribution", about),
                Wanted("grad_of_single_subnode_attribution", about),
            ],
        )
        gradient = gradients[down.layer]
        total = tokens[None].sum()
        for layer in range(down.layer + 1):
            total = total + heads[layer].sum() + neurons[layer].sum()
            biases = [write.mlp_bias[layer]] if layer < down.layer else []
            if layer < down.layer or not down.reads_attention:
                biases.append(write.attn_bias[layer])
            for bias in biases:
                if bias is not None:
                    total = total + (gradient @ bias).sum()
        point = down.residual
        target = RawTensorId(point.location, point.layer, PassType.FORWARD)
        residual = run(given, BY_LOSS, [target]).raw_store.get(point.location, PassType.FORWARD)
        expected = (residual.activations_by_layer_index[point.layer] * gradient).sum()
        assert float(total) == pytest.approx(float(expected), rel=2e-3, abs=1e-5), (down, part)


def test_a_node_downstream_reaches_nothing_after_it(given: Given) -> None:
    neuron = SelectedNode(Node(NodeType.MLP_NEURON, (4, 7), 1))
    head = SelectedNode(Node(NodeType.ATTENTION_HEAD, (4, 2, 1), 1), AttentionPart.QUERY)
    of_neuron, of_head, mlp = derive(
        given,
        BY_LOSS,
        [
            Wanted("attn_out_edge_attribution", neuron),
            Wanted("attn_out_edge_attribution", head),
            Wanted("mlp_out_edge_attribution", neuron),
        ],
    )
    assert of_neuron[1].abs().max() > 0  # attention comes before the MLP of its layer
    assert not of_neuron[2].any()
    assert not mlp[1].any()
    assert not mlp[2].any()
    assert of_head[0].abs().max() > 0
    assert not of_head[1].any()
    assert not of_head[2].any()


def test_a_node_upstream_reaches_nothing_before_it(given: Given) -> None:
    head = SelectedNode(Node(NodeType.ATTENTION_HEAD, (4, 2, 1), 1))
    neuron = SelectedNode(Node(NodeType.MLP_NEURON, (4, 2), 1))
    names = ["mlp_in_edge_activation", "attn_query_in_edge_activation"]
    names += ["attn_key_in_edge_activation", "attn_value_in_edge_attribution"]
    of_head = derive(given, BY_LOSS, [Wanted(name, head) for name in names])
    of_neuron = derive(given, BY_LOSS, [Wanted(name, neuron) for name in names])
    assert of_head[0][1].any()
    assert not of_head[0][0].any()
    for scalars in (*of_head[1:], *of_neuron[1:]):
        assert not scalars[0].any()
        assert not scalars[1].any()
        assert scalars[2].any()
    assert not of_neuron[0][1].any()
    assert of_neuron[0][2].any()
    # One token is written to: only its own row of an MLP or a query, and its own key, can change.
    rows = of_neuron[0][2].any(dim=1).nonzero().flatten().tolist()
    queries = of_neuron[1][2].flatten(1).any(dim=1).nonzero().flatten().tolist()
    keys = of_neuron[3][2].transpose(0, 1).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert rows == queries == keys == [4]
    assert of_neuron[2][2].flatten(1).any(dim=1).nonzero().flatten().tolist() == [4, 5, 6]


def captured(
    given: Given, location: ActivationLocationType, layer: int | None, pass_type: PassType
) -> Tensor:
    store = run(given, BY_LOSS, [RawTensorId(location, layer, pass_type)]).raw_store
    return store.get(location, pass_type).activations_by_layer_index[layer].clone()


def test_attributions_are_finite_differences_times_gradients(given: Given) -> None:
    model = given.model
    up = SelectedNode(Node(NodeType.ATTENTION_HEAD, (4, 2, 1), 0))
    writes, neurons, latents, *heads = derive(
        given,
        BY_LOSS,
        [
            Wanted("single_node_write", up),
            Wanted("mlp_in_edge_attribution", up),
            Wanted("online_autoencoder_in_edge_attribution", up),
            *(
                Wanted(f"attn_{part.name.lower()}_in_edge_attribution", up)
                for part in AttentionPart
            ),
        ],
    )
    step = 2e-2 / float(writes[0].norm())
    write = writes[0] * step

    def change(function: Any, at: Tensor) -> Tensor:
        difference: Tensor = (function(at + write) - function(at - write)) / (2 * step)
        return difference

    middle = captured(given, Location.RESID_POST_ATTN, 2, PassType.FORWARD)
    entering = captured(given, Location.RESID_POST_MLP, 1, PassType.FORWARD)
    gradient = captured(given, Location.MLP_POST_ACT, 2, PassType.BACKWARD)
    moved = change(lambda at: model.mlp_neurons(2, at).post_act, middle)
    close(neurons[2], moved * gradient, 1e-2)

    autoencoder = given.autoencoders.single
    assert autoencoder is not None
    if autoencoder.activation is Activation.RELU:
        in_attention = autoencoder.location_within_layer is LocationWithinLayer.ATTN

        def encode(at: Tensor) -> Tensor:
            read = autoencoder_input(model, autoencoder.location, 2, at, detach_scale=False)
            return autoencoder.encode(2, read)

        gradient = captured(given, Location.ONLINE_AUTOENCODER_LATENT, 2, PassType.BACKWARD)
        at = entering if in_attention else middle
        smooth = (encode(at) > 0.05) | (encode(at) == 0)
        close(latents[2] * smooth, change(encode, at) * gradient * smooth, 2e-2)

    fixed = model.attention_heads(2, entering)
    gradient = captured(given, Location.ATTN_QK_PROBS, 2, PassType.BACKWARD)
    mixed = captured(given, Location.ATTN_WEIGHTED_SUM_OF_VALUES, 2, PassType.BACKWARD)

    def probs(query: Tensor, key: Tensor) -> Tensor:
        products = torch.einsum("the,she->tsh", query, key)
        future = torch.ones(products.shape[:2], dtype=torch.bool).triu(1)
        return torch.softmax(products.masked_fill(future[:, :, None], float("-inf")), dim=1)

    by_query = change(lambda at: probs(model.attention_heads(2, at).query, fixed.key), entering)
    by_key = change(lambda at: probs(fixed.query, model.attention_heads(2, at).key), entering)
    by_value = change(
        lambda at: torch.einsum(
            "tsh,she,the->tsh", fixed.probs, model.attention_heads(2, at).value, mixed
        ),
        entering,
    )
    close(heads[0][2], by_query * gradient, 1e-2)
    close(heads[1][2], by_key * gradient, 1e-2)
    close(heads[2][2], by_value, 1e-2)


def test_a_write_times_g_is_the_direct_effect(given: Given) -> None:
    up = Node(NodeType.MLP_NEURON, (6, 9), 1)
    (projected, effects) = derive(
        given,
        BY_LOSS,
        [
            Wanted("single_node_write_to_final_residual_grad", SelectedNode(up)),
            Wanted("mlp_write_to_final_residual_grad"),
        ],
    )
    effect = float(effects[1][6, 9])
    assert effect != 0
    assert float(projected[1].sum()) == pytest.approx(effect, rel=1e-4)
    trace = Trace(Node(NodeType.MLP_NEURON, (6, 3), 0), NonlinearitySide.POST_ACT, False)
    (downstream,) = derive(
        given,
        PreparedInference(TOKENS, (), None, trace),
        [Wanted("single_node_write_to_final_residual_grad", SelectedNode(up))],
    )
    assert not downstream[1].any()  # what is traced comes before the node


def test_activations_of_edges_need_no_backward_pass(given: Given) -> None:
    names = ["mlp_in_edge_activation", "online_autoencoder_in_edge_activation"]
    names += ["attn_query_in_edge_activation", "attn_key_in_edge_activation"]
    up = SelectedNode(Node(NodeType.ATTENTION_HEAD, (4, 2, 1), 0))
    wanted = [Wanted(name, up) for name in names]
    # Without one, what is captured are tensors of inference mode.
    for found, expected in zip(
        derive(given, PreparedInference(TOKENS, (), None), wanted),
        derive(given, BY_LOSS, wanted),
        strict=True,
    ):
        for layer, tensor in expected.items():
            close(found[layer], tensor, 1e-5)
        assert expected[2].any()
