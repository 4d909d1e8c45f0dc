"""What requests for traces, edges and read directions are refused for."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.scalars.autoencoders import AutoencoderSet
from services.scalars.deriving.indexing import ActivationIndex, NodeIndex
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.locations import ActivationLocationType, NodeType, PassType
from services.scalars.model.subject import Subject, load_subject
from services.scalars.passes.ablations import AblationSpec
from services.scalars.passes.inference import InferenceSpec, PreparedInference, prepare_inference
from services.scalars.passes.losses import LossKind, LossSpec
from services.scalars.passes.nodes import NonlinearitySide
from services.scalars.passes.traces import AttentionTraceType, TraceSpec
from services.scalars.requests.components import ComponentSpec, resolve_component
from services.scalars.requests.resolving import Resolver
from services.scalars.requests.selected_nodes import NodeSelection
from services.scalars.requests.selections import (
    ResolvedSelection,
    Selection,
    resolve_selection,
)
from services.scalars.requests.top_nodes import ScalarGroup, TopNodesSpec, resolve_top_nodes
from services.scalars.vocabulary.node_directions import NodeDirections
from tests.unit.scalars_checkpoint import HEADS, LAYERS, NEURONS, write_checkpoint
from tests.unit.scalars_derived import LATENTS, make_autoencoder
from tests.unit.scalars_refused import refused

Location = ActivationLocationType
PROMPT = "The cat sat"
LOSS = LossSpec(LossKind.ZERO)
VALUE, QK = AttentionTraceType.VALUE, AttentionTraceType.QUERY_AND_KEY
NEURON = NodeIndex(NodeType.MLP_NEURON, (1, 2), 1)
HEAD = NodeIndex(NodeType.ATTENTION_HEAD, (1, 0, 2), 1)
LATENT = NodeIndex(NodeType.AUTOENCODER_LATENT, (1, 2), 1)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """With latents of the MLP's neurons at layers 1 and 2."""
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    plain = load_subject("tiny", str(path), "cpu")
    autoencoder = make_autoencoder(plain.model, Location.MLP_POST_ACT, layers=(1, 2))
    return Subject("tiny", "gpt2", plain.model, plain.tokenizer, AutoencoderSet([autoencoder]))


def prepare(subject: Subject, spec: InferenceSpec, bare: bool = False) -> PreparedInference:
    autoencoders = AutoencoderSet() if bare else subject.autoencoders
    return prepare_inference(spec, subject.model, subject.tokenizer, "inference", autoencoders)


def node(node_type: NodeType, indices: tuple[int | None, ...], layer: int | None = 1) -> TraceSpec:
    kind = QK if node_type is NodeType.ATTENTION_HEAD else None
    return TraceSpec(NodeIndex(node_type, indices, layer), attention_trace_type=kind)


def test_traces(subject: Subject) -> None:
    n_tokens = len(prepare(subject, InferenceSpec(PROMPT)).tokens)
    head, neuron, latent = (
        NodeType.ATTENTION_HEAD,
        NodeType.MLP_NEURON,
        NodeType.MLP_AUTOENCODER_LATENT,
    )
    at = "inference.trace.node_index"
    backward = NodeIndex(neuron, (1, 2), 1, PassType.BACKWARD)
    v = TraceSpec(HEAD, attention_trace_type=VALUE)
    later = NodeIndex(neuron, (1, 2), 2)
    cases: list[tuple[TraceSpec, LossSpec | None, str, str]] = [
        (node(NodeType.LAYER, (1,)), None, f"{at}.node_type", "mlp_neuron"),
        (node(NodeType.VOCAB_TOKEN, (1, 2)), None, f"{at}.node_type", "attention_head"),
        (TraceSpec(backward), None, f"{at}.pass_type", "forward"),
        (node(neuron, (1, 2), None), None, f"{at}.layer_index", "needs a layer"),
        (node(neuron, (1, 2), LAYERS), None, f"{at}.layer_index", f"0 to {LAYERS - 1}"),
        (node(neuron, (1, 2), -1), None, f"{at}.layer_index", "layer -1"),
        (node(neuron, (1,)), None, f"{at}.tensor_indices", "token, neuron"),
        (node(head, (1, 0)), None, f"{at}.tensor_indices", "query token, key token, head"),
        (node(neuron, (n_tokens, 2)), None, f"{at}.tensor_indices[0]", f"there are {n_tokens}"),
        (node(neuron, (-1, 2)), None, f"{at}.tensor_indices[0]", "token -1"),
        (node(neuron, (1, NEURONS)), None, f"{at}.tensor_indices[1]", f"there are {NEURONS}"),
        (node(head, (1, 0, HEADS)), None, f"{at}.tensor_indices[2]", f"there are {HEADS}"),
        (node(head, (0, 1, 0)), None, f"{at}.tensor_indices[1]", "can't attend"),
        (node(neuron, (None, 2)), None, f"{at}.tensor_indices[0]", "which token"),
        (node(latent, (1, LATENTS + 1)), None, f"{at}.tensor_indices[1]", f"are {LATENTS + 1}"),
        (node(latent, (1, 2), 0), None, f"{at}.layer_index", "layers 1, 2"),
        (TraceSpec(HEAD), None, "inference.trace.attention_trace_type", "query (Q)"),
        (
            TraceSpec(NEURON, attention_trace_type=QK),
            None,
            "inference.trace.attention_trace_type",
            "leave the attention trace type out",
        ),
        (TraceSpec(NEURON), LOSS, "inference.loss", "a loss or from a trace"),
        (v, None, "inference.trace.downstream", "downstream node or a loss"),
        (
            TraceSpec(HEAD, attention_trace_type=VALUE, downstream=TraceSpec(later)),
            LOSS,
            "inference.loss",
            "takes no loss",
        ),
        (
            TraceSpec(NEURON, downstream=TraceSpec(later)),
            None,
            "inference.trace.downstream",
            "only a trace of type V",
        ),
        (
            TraceSpec(HEAD, attention_trace_type=VALUE, downstream=v),
            None,
            "inference.trace.downstream.attention_trace_type",
            "Q, K or QK",
        ),
        (
            TraceSpec(HEAD, attention_trace_type=VALUE, downstream=node(neuron, (1, 2), 0)),
            None,
            "inference.trace.downstream.node_index.layer_index",
            "not downstream",
        ),
        (
            TraceSpec(HEAD, attention_trace_type=VALUE, downstream=node(head, (1, 0, 0), 1)),
            None,
            "inference.trace.downstream.node_index.layer_index",
            "not downstream",
        ),
        (
            TraceSpec(HEAD, attention_trace_type=VALUE, downstream=node(neuron, (1,), 2)),
            None,
            "inference.trace.downstream.node_index.tensor_indices",
            "2 indices",
        ),
    ]
    for trace, loss, field, word in cases:
        spec = InferenceSpec(PROMPT, loss=loss, trace=trace)
        refused(lambda spec=spec: prepare(subject, spec), field, word)  # type: ignore[misc]
    error = refused(
        lambda: prepare(subject, InferenceSpec(PROMPT, trace=TraceSpec(LATENT)), bare=True),
        f"{at}.node_type",
        "no autoencoder",
    )
    assert error.reason == "AUTOENCODER_NEEDED"
    # The MLP of a head's own layer is downstream of it.
    same = TraceSpec(HEAD, attention_trace_type=VALUE, downstream=node(neuron, (1, 2), 1))
    assert prepare(subject, InferenceSpec(PROMPT, trace=same)).has_gradient
    assert prepare(subject, InferenceSpec(PROMPT, loss=LOSS, trace=v)).trace is not None


def test_equal_traces_are_one(subject: Subject) -> None:
    first, again, other = (
        prepare(subject, InferenceSpec(PROMPT, trace=TraceSpec(NEURON, side=side))).trace
        for side in (
            NonlinearitySide.PRE_ACT,
            NonlinearitySide.PRE_ACT,
            NonlinearitySide.POST_ACT,
        )
    )
    assert first == again
    assert hash(first) == hash(again)
    assert first != other


def test_a_trace_through_a_value_has_no_side(subject: Subject) -> None:
    first, other = (
        prepare(
            subject,
            InferenceSpec(
                PROMPT, loss=LOSS, trace=TraceSpec(HEAD, side=side, attention_trace_type=VALUE)
            ),
        ).trace
        for side in NonlinearitySide
    )
    assert first == other


def test_a_gradient_can_be_ablated_with_a_trace(subject: Subject) -> None:
    index = ActivationIndex(Location.MLP_POST_ACT, (0, 0), 0, PassType.BACKWARD)
    ablations = (AblationSpec(index, 0.0),)
    spec = InferenceSpec(PROMPT, ablations, trace=TraceSpec(NEURON))
    assert prepare(subject, spec).overwrites
    refused(
        lambda: prepare(subject, InferenceSpec(PROMPT, ablations)),
        "inference.ablations[0].index.pass_type",
        "a loss or a trace",
    )


def resolve(
    subject: Subject, selection: Selection, spec: InferenceSpec | None = None
) -> ResolvedSelection:
    prepared = prepare(subject, spec or InferenceSpec(PROMPT, loss=LOSS))
    return resolve_selection(selection, subject, prepared, field="s", inference_field="inference")


@pytest.mark.parametrize(
    ("ablated", "pass_type", "field"),
    [
        (ActivationIndex(Location.MLP_POST_ACT, (1, 2), 1), PassType.BACKWARD, "s.pass_type"),
        (
            ActivationIndex(Location.ATTN_QUERY, (0, 0, 0), 1),
            PassType.FORWARD,
            "inference.ablations[0].index.location_type",
        ),
        (
            ActivationIndex(Location.MLP_POST_ACT, (1, None), 1),
            PassType.FORWARD,
            "inference.ablations[0].index.tensor_indices[1]",
        ),
    ],
)
def test_what_an_ablated_neuron_reads(
    subject: Subject, ablated: ActivationIndex, pass_type: PassType, field: str
) -> None:
    spec = InferenceSpec(PROMPT, loss=LOSS, ablations=(AblationSpec(ablated, 1.0),))
    directions = NodeDirections(subject.model, subject.autoencoders)
    resolver = Resolver(subject, directions, spec, prepare(subject, spec), "inference")
    component = ComponentSpec("vocab_token_write_to_input_direction", None, 5, pass_type)
    refused(lambda: resolver.component(component, "s"), field)


def test_selections_of_one_node(subject: Subject) -> None:
    read = ActivationIndex(Location.MLP_POST_ACT, (1, 2), 1)
    vocabulary = "vocab_token_write_to_input_direction"
    out, write = "mlp_out_edge_attribution", "single_node_write"

    def activation(
        location: Location, indices: tuple[int | None, ...], layer: int | None = 1
    ) -> Selection:
        index = ActivationIndex(location, indices, layer)
        return Selection(vocabulary, node=NodeSelection(activation_index=index))

    cases: list[tuple[Selection, str, str]] = [
        (Selection(out), "s.node_index", "say which"),
        (Selection(vocabulary), "s.activation_index", "say which"),
        (Selection("logits", node=NodeSelection(NEURON)), "s.node_index", "takes no"),
        (
            Selection(out, node=NodeSelection(NEURON, activation_index=read)),
            "s.activation_index",
            "takes no",
        ),
        (
            Selection("logits", node=NodeSelection(detach_layer_norm_scale=True)),
            "s.detach_layer_norm_scale",
            "no layer norm",
        ),
        (Selection(out, node=NodeSelection(HEAD)), "s.attention_part", "query, key, value"),
        (
            Selection(out, node=NodeSelection(NEURON, AttentionPart.KEY)),
            "s.attention_part",
            "only for a head",
        ),
        (
            Selection(write, node=NodeSelection(HEAD, AttentionPart.KEY)),
            "s.attention_part",
            "takes no part",
        ),
        (
            Selection(write, node=NodeSelection(NodeIndex(NodeType.MLP_NEURON, (1, NEURONS), 1))),
            "s.node_index.tensor_indices[1]",
            f"there are {NEURONS}",
        ),
        (
            Selection(write, layer_indices=(1, 0), node=NodeSelection(NEURON)),
            "s.layer_indices[1]",
            "layer of its node alone, layer 1",
        ),
        (activation(Location.ATTN_QK_PROBS, (1, 2)), "s.activation_index.location_type", "mlp"),
        (
            activation(Location.MLP_POST_ACT, (1, 2), None),
            "s.activation_index.layer_index",
            "layer",
        ),
        (activation(Location.MLP_POST_ACT, (1, 2), 3), "s.activation_index.layer_index", "layer 3"),
        (activation(Location.MLP_POST_ACT, (1,)), "s.activation_index.tensor_indices", "2 dim"),
        (
            activation(Location.MLP_POST_ACT, (1, None)),
            "s.activation_index.tensor_indices[1]",
            "say which",
        ),
        (
            activation(Location.MLP_POST_ACT, (99, 2)),
            "s.activation_index.tensor_indices[0]",
            "index 99",
        ),
        (
            activation(Location.ONLINE_AUTOENCODER_LATENT, (1, LATENTS + 1)),
            "s.activation_index.tensor_indices[1]",
            f"has {LATENTS + 1}",
        ),
        (
            activation(Location.ONLINE_AUTOENCODER_LATENT, (1, 2), 0),
            "s.activation_index.layer_index",
            "no latents",
        ),
    ]
    for selection, field, word in cases:
        refused(lambda selection=selection: resolve(subject, selection), field, word)  # type: ignore[misc]
    reasons = [
        refused(lambda name=name: resolve(subject, Selection(name)), field).reason  # type: ignore[misc]
        for name, field in ((out, "s.node_index"), (vocabulary, "s.activation_index"))
    ]
    assert reasons == ["NODE_INDEX_NEEDED", "ACTIVATION_INDEX_NEEDED"]


def test_read_directions_of_attention(subject: Subject) -> None:
    autoencoder = make_autoencoder(subject.model, Location.RESID_DELTA_ATTN)
    of_attention = Subject(
        "tiny", "gpt2", subject.model, subject.tokenizer, AutoencoderSet([autoencoder])
    )
    index = ActivationIndex(Location.ONLINE_AUTOENCODER_LATENT, (1, 2), 1)
    selection = Selection(
        "vocab_token_write_to_input_direction", node=NodeSelection(activation_index=index)
    )
    refused(
        lambda: resolve(of_attention, selection),
        "s.activation_index.location_type",
        "mixes tokens",
    )


def test_types_that_need_a_trace(subject: Subject) -> None:
    name = "mlp_write_to_final_activation_residual_grad"
    error = refused(lambda: resolve(subject, Selection(name)), "inference.trace", "give a trace")
    assert error.reason == "TRACE_NEEDED"
    traced = InferenceSpec(PROMPT, trace=TraceSpec(NEURON))
    assert resolve(subject, Selection(name), traced).layers == (0, 1, 2)
    assert resolve(subject, Selection("mlp_act_times_grad"), traced).layers == (0, 1, 2)


def test_selections_about_one_node_share_derivers(subject: Subject) -> None:
    first, again, other = (
        resolve(subject, Selection("mlp_in_edge_attribution", node=NodeSelection(node)))
        for node in (NEURON, NEURON, HEAD)
    )
    assert first.about == again.about
    assert len({first.about, again.about, other.about}) == 2


def test_one_node_can_be_named_by_selections_alone(subject: Subject) -> None:
    prepared = prepare(subject, InferenceSpec(PROMPT, loss=LOSS))
    refused(
        lambda: resolve_component(
            ComponentSpec("mlp_in_edge_attribution", 1, 2),
            subject,
            prepared,
            field="spec",
            inference_field="inference",
        ),
        "spec.component.derived_scalar_type",
        "about one node",
    )
    refused(
        lambda: resolve_top_nodes(
            TopNodesSpec((ScalarGroup("act_times_grad", ("mlp_in_edge_attribution",)),)),
            subject,
            prepared,
            field="spec",
            inference_field="inference",
        ),
        "spec.groups[0].derived_scalar_types[0]",
        "about one node",
    )


def test_edges_count_what_they_take_besides(subject: Subject) -> None:
    edges = resolve(subject, Selection("mlp_in_edge_attribution", node=NodeSelection(NEURON)))
    neurons = resolve(subject, Selection("mlp_act_times_grad"))
    assert edges.n_bytes > neurons.n_bytes
