"""Traces: what they start from, which gradient flows, and what adds up to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from services.scalars.autoencoders import Activation, AutoencoderSet
from services.scalars.deriving.differentiation import gradient
from services.scalars.model.locations import ActivationLocationType, NodeType, PassType
from services.scalars.model.taps import Overwrite, RawTensorId
from services.scalars.passes.inference import PreparedInference
from services.scalars.passes.losses import Loss, LossKind
from services.scalars.passes.nodes import Node, NonlinearitySide
from services.scalars.passes.traces import AttentionTraceType, Trace
from tests.unit.scalars_derived import Given, Wanted, derive, make_autoencoder, make_model, run

Location = ActivationLocationType
TOKENS = (5, 17, 5, 200, 31, 90, 2)
LOSS = Loss(LossKind.LOGIT_DIFF, (3, 11), (40,), 6)
SETTINGS = {
    "gpt2, latents of neurons": ("gpt2", Location.MLP_POST_ACT, Activation.RELU),
    "llama, latents of the MLP's output": ("llama", Location.RESID_DELTA_MLP, Activation.GATED),
    "qwen3, latents of attention": ("qwen3", Location.RESID_DELTA_ATTN, Activation.TOPK),
}
PRE, POST = NonlinearitySide.PRE_ACT, NonlinearitySide.POST_ACT
HEAD = Node(NodeType.ATTENTION_HEAD, (6, 4, 1), 2)
NEURON = Node(NodeType.MLP_NEURON, (6, 7), 2)


@pytest.fixture(scope="module", params=SETTINGS)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Given:
    variant, location, activation = SETTINGS[request.param]
    model = make_model(tmp_path_factory.mktemp("traces") / "model", variant)
    return Given(model, AutoencoderSet([make_autoencoder(model, location, activation)]))


def by(trace: Trace, loss: Loss | None = None, *overwrites: Overwrite) -> PreparedInference:
    return PreparedInference(TOKENS, overwrites, loss, trace)


def traces(given: Given) -> list[Trace]:
    autoencoder = given.autoencoders.single
    assert autoencoder is not None
    latent = Node(NodeType.AUTOENCODER_LATENT, (6, 3), 2, autoencoder.location)
    found = [Trace(node, side, False) for node in (NEURON, latent) for side in (PRE, POST)]
    kinds = set(AttentionTraceType) - {AttentionTraceType.VALUE}
    return found + [
        Trace(HEAD, side, False, kind) for kind in sorted(kinds) for side in (PRE, POST)
    ]


def entering(given: Given, node: Node) -> Tensor:
    point = node.residual
    target = RawTensorId(point.location, point.layer, PassType.FORWARD)
    store = run(given, PreparedInference(TOKENS, (), None), [target]).raw_store
    found = store.get(point.location, PassType.FORWARD)
    return found.activations_by_layer_index[point.layer].clone()


def by_definition(given: Given, trace: Trace, at: Tensor) -> Callable[[Tensor], Tensor]:
    """The traced activation as a function of the residual stream, what is cut off held at `at`."""
    model, node = given.model, trace.node
    kind = trace.attention_trace_type
    if kind is None and node.reads is None:
        which = "pre_act" if trace.side is PRE else "post_act"
        return lambda x: getattr(model.mlp_neurons(2, x), which)[node.index]
    if kind is None:
        autoencoder = given.autoencoders.single
        assert autoencoder is not None

        def latent(x: Tensor) -> Tensor:
            if node.reads is Location.RESID_DELTA_ATTN:
                read = model.attention_output(2, model.attention_heads(2, x).mixed)
            else:
                read = model.mlp_neurons(2, x).post_act
                if node.reads is Location.RESID_DELTA_MLP:
                    read = model.mlp_output(2, read)
            pre = autoencoder.encode_pre(2, read)
            return (pre if trace.side is PRE else autoencoder.activate(2, pre))[node.index]

        return latent
    fixed = model.attention_heads(2, at)
    query, key, head = node.index

    def of_head(x: Tensor) -> Tensor:
        moving = model.attention_heads(2, x)
        queries = moving.query if "q" in kind else fixed.query.detach()
        keys = moving.key if "k" in kind else fixed.key.detach()
        logits = keys[: query + 1, head] @ queries[query, head]
        return (logits if trace.side is PRE else torch.softmax(logits, dim=0))[key]

    return of_head


def differences(function: Callable[[Tensor], Tensor], at: Tensor, rows: list[int]) -> Tensor:
    """Central differences of a scalar with respect to some rows of its argument."""
    step = 1e-2
    found = torch.zeros_like(at)
    for row in rows:
        for column in range(at.shape[1]):
            moved = torch.zeros_like(at)
            moved[row, column] = step
            found[row, column] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found


def test_a_trace_is_its_activation_and_that_activations_gradient(given: Given) -> None:
    for trace in traces(given):
        at = entering(given, trace.node)
        function = by_definition(given, trace, at)
        point = trace.residual
        backward = RawTensorId(point.location, point.layer, PassType.BACKWARD)
        result = run(given, by(trace), [backward])
        assert result.traced_activation == pytest.approx(float(function(at)), rel=1e-4, abs=1e-6)
        found = result.raw_store.get(point.location, PassType.BACKWARD)
        flowing = found.activations_by_layer_index[point.layer]
        expected = gradient(function, at)
        largest = max(float(expected.abs().max()), 1e-6)
        assert float((flowing - expected).abs().max()) <= 1e-4 * largest, trace
        if trace.side is PRE:
            rows = [4, 6]
            approximate = differences(function, at, rows)
            assert float((flowing - approximate)[rows].abs().max()) <= 2e-2 * largest, trace


def test_the_local_gradient_is_that_of_the_backward_pass(given: Given) -> None:
    for trace in traces(given):
        heads, heads_again, neurons, neurons_again, x0, x0_again = derive(
            given,
            by(trace),
            [
                Wanted("unflattened_attn_write_to_final_residual_grad"),
                Wanted("unflattened_attn_write_to_final_activation_residual_grad"),
                Wanted("mlp_write_to_final_residual_grad"),
                Wanted("mlp_write_to_final_activation_residual_grad"),
                Wanted("resid_post_embedding_proj_to_final_residual_grad"),
                Wanted("resid_post_embedding_proj_to_final_activation_residual_grad"),
            ],
        )
        for one, other in ((heads, heads_again), (neurons, neurons_again), (x0, x0_again)):
            for layer, tensor in one.items():
                largest = float(tensor.abs().max())
                assert float((tensor - other[layer]).abs().max()) <= 1e-4 * largest, trace
        # Every write that is not upstream is 0.
        assert not neurons[2].any()
        before_the_mlp = not trace.node.reads_attention
        assert bool(heads[2].any()) is (before_the_mlp and bool(neurons[1].any()))


def test_direct_effects_add_up_to_the_projected_gradient(given: Given) -> None:
    write = given.model.write
    for trace in traces(given):
        heads, neurons, tokens = derive(
            given,
            by(trace),
            [
                Wanted("unflattened_attn_write_to_final_activation_residual_grad"),
                Wanted("mlp_write_to_final_activation_residual_grad"),
                Wanted("resid_post_embedding_proj_to_final_activation_residual_grad"),
            ],
        )
        point = trace.residual
        ids = [
            RawTensorId(point.location, point.layer, each)
            for each in (PassType.FORWARD, PassType.BACKWARD)
        ]
        store = run(given, by(trace), ids).raw_store
        x, g = (
            store.get(point.location, each.pass_type).activations_by_layer_index[point.layer]
            for each in ids
        )
        total = tokens[None].sum()
        for layer in range(3):
            total = total + heads[layer].sum() + neurons[layer].sum()
            biases = [write.mlp_bias[layer]] if layer < 2 else []
            if layer < 2 or not trace.node.reads_attention:
                biases.append(write.attn_bias[layer])
            for bias in biases:
                if bias is not None:
                    total = total + (g @ bias).sum()
        assert float(total) == pytest.approx(float((x * g).sum()), rel=1e-3, abs=1e-5), trace


def test_a_trace_through_the_value_is_a_direct_effect(given: Given) -> None:
    head = Node(NodeType.ATTENTION_HEAD, (6, 4, 1), 1)
    downstream = Trace(NEURON, PRE, True)
    value = Trace(head, PRE, True, AttentionTraceType.VALUE, downstream)
    (effects,) = derive(
        given,
        by(downstream),
        [Wanted("unflattened_attn_write_to_final_activation_residual_grad")],
    )
    expected = float(effects[1][head.index])
    assert expected != 0
    assert run(given, by(value)).traced_activation == pytest.approx(expected, rel=1e-4)

    # Beside a loss, the last layer norm's scale is a constant where the trace detaches.
    constant_scale = Overwrite(
        RawTensorId(Location.RESID_FINAL_LAYER_NORM_SCALE, None, PassType.BACKWARD),
        (slice(None), slice(None)),
        0.0,
    )
    for detach, overwrites in ((True, (constant_scale,)), (False, ())):
        (effects,) = derive(
            given,
            PreparedInference(TOKENS, overwrites, LOSS),
            [Wanted("unflattened_attn_write_to_final_residual_grad")],
        )
        trace = Trace(head, PRE, detach, AttentionTraceType.VALUE, LOSS)
        result = run(given, by(trace, LOSS))
        expected = float(effects[1][head.index])
        assert result.traced_activation == pytest.approx(expected, rel=1e-3)
        assert result.loss is not None


def test_a_trace_through_the_value_flows_through_the_value_alone(given: Given) -> None:
    model = given.model
    head = Node(NodeType.ATTENTION_HEAD, (6, 4, 1), 2)
    trace = Trace(head, PRE, False, AttentionTraceType.VALUE, LOSS)
    at = entering(given, head)
    probability = model.attention_heads(2, at).probs[head.index]
    g = RawTensorId(Location.RESID_POST_MLP, 2, PassType.BACKWARD)
    store = run(given, PreparedInference(TOKENS, (), LOSS), [g]).raw_store
    direction = store.get(g.location, PassType.BACKWARD).activations_by_layer_index[2][6].clone()

    def write(x: Tensor) -> Tensor:
        value = model.attention_heads(2, x).value[4, 1]
        return probability * (value @ model.write.attn[2][1] @ direction)

    point = trace.residual
    backward = RawTensorId(point.location, point.layer, PassType.BACKWARD)
    found = run(given, by(trace, LOSS), [backward]).raw_store.get(point.location, PassType.BACKWARD)
    flowing = found.activations_by_layer_index[point.layer]
    expected = gradient(write, at)
    assert flowing.any(dim=1).nonzero().flatten().tolist() == [4]
    largest = float(expected.abs().max())
    assert float((flowing - expected).abs().max()) <= 1e-3 * largest


def test_ablations_before_the_block_reach_a_trace_and_those_in_it_do_not(given: Given) -> None:
    trace = Trace(NEURON, POST, False)
    plain = run(given, by(trace)).traced_activation

    def ablated(location: ActivationLocationType, layer: int, pass_type: PassType) -> float | None:
        overwrite = Overwrite(RawTensorId(location, layer, pass_type), (slice(None), 7), 3.0)
        return run(given, by(trace, None, overwrite)).traced_activation

    assert ablated(Location.MLP_POST_ACT, 1, PassType.FORWARD) != plain
    assert ablated(Location.MLP_PRE_ACT, 2, PassType.FORWARD) == plain
    assert ablated(Location.MLP_POST_ACT, 1, PassType.BACKWARD) == plain


def test_gradients_after_the_traced_node_are_zero(given: Given) -> None:
    trace = Trace(Node(NodeType.MLP_NEURON, (6, 7), 1), POST, True)
    places = [(Location.MLP_POST_ACT, layer) for layer in range(3)]
    ids = [RawTensorId(location, layer, PassType.BACKWARD) for location, layer in places]
    ids.append(RawTensorId(Location.RESID_POST_MLP, 2, PassType.BACKWARD))
    store = run(given, by(trace), ids).raw_store
    neurons = store.get(Location.MLP_POST_ACT, PassType.BACKWARD).activations_by_layer_index
    assert neurons[0].any()
    assert not neurons[1].any()
    assert not neurons[2].any()
    last = store.get(Location.RESID_POST_MLP, PassType.BACKWARD).activations_by_layer_index
    assert not last[2].any()
