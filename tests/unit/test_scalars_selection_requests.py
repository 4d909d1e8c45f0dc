"""What a request selects of the scalars: resolved where it is right, else told with its field."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.scalars.deriving.indexing import ActivationIndex, NodeIndex
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    NodeType,
    PassType,
)
from services.scalars.model.subject import Subject, load_subject
from services.scalars.passes.inference import PreparedInference
from services.scalars.passes.losses import Loss, LossKind
from services.scalars.requests.components import ComponentSpec, resolve_component
from services.scalars.requests.selected_nodes import NodeSelection
from services.scalars.requests.selections import (
    DimensionRange,
    Selection,
    resolve_selection,
)
from services.scalars.requests.top_nodes import (
    MAX_NODES,
    ScalarGroup,
    TopNodesSpec,
    resolve_top_nodes,
)
from shared.errors import ResourceExhausted
from tests.unit.scalars_checkpoint import LAYERS, NEURONS, write_checkpoint
from tests.unit.scalars_refused import TOKENS, refused

BACKWARD = PassType.BACKWARD


def run(has_loss: bool = False) -> PreparedInference:
    loss = Loss(LossKind.ZERO, (), (), 0) if has_loss else None
    return PreparedInference((0,) * TOKENS, (), loss)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


def test_selections(subject: Subject) -> None:
    def resolve(selection: Selection, has_loss: bool = True) -> object:
        return resolve_selection(
            selection,
            subject,
            run(has_loss),
            field="s",
            inference_field="inference",
        )

    tokens, neurons = Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS
    cut = resolve_selection(
        Selection("mlp_post_act", layer_indices=(2, 0), ranges=(DimensionRange(neurons, 3, 5),)),
        subject,
        run(),
        field="",
        inference_field="",
    )
    assert cut.layers == (2, 0)
    assert cut.slices == (slice(None), slice(3, 5))
    assert cut.n_bytes == 4 * TOKENS * NEURONS * 2
    cases: list[tuple[Selection, str, str]] = [
        (Selection("nonsense"), "s.derived_scalar_type", "nonsense"),
        (Selection("always_one", BACKWARD), "s.pass_type", "unflattened_attn_write_norm"),
        (Selection("mlp_post_act", layer_indices=(0, LAYERS)), "s.layer_indices[1]", "layer 3"),
        (Selection("mlp_post_act", layer_indices=(-1,)), "s.layer_indices[0]", "layer -1"),
        (Selection("mlp_post_act", layer_indices=(1, 1)), "s.layer_indices[1]", "twice"),
        (Selection("logits", layer_indices=(0,)), "s.layer_indices", "no layers"),
        (
            Selection("logits", ranges=(DimensionRange(neurons),)),
            "s.ranges[0].dimension",
            "vocab_size",
        ),
        (
            Selection("mlp_post_act", ranges=(DimensionRange(tokens), DimensionRange(tokens))),
            "s.ranges[1].dimension",
            "twice",
        ),
        (
            Selection("mlp_post_act", ranges=(DimensionRange(tokens, TOKENS),)),
            "s.ranges[0].start",
            f"has {TOKENS}",
        ),
        (
            Selection("mlp_post_act", ranges=(DimensionRange(tokens, 2, TOKENS + 1),)),
            "s.ranges[0].stop",
            f"has {TOKENS}",
        ),
        (
            Selection("mlp_post_act", ranges=(DimensionRange(tokens, 2, 2),)),
            "s.ranges[0].stop",
            "2 to 2",
        ),
        (
            Selection(
                "mlp_post_act",
                node=NodeSelection(NodeIndex(NodeType.MLP_NEURON, (0, 0), 0)),
            ),
            "s.node_index",
            "takes no",
        ),
        (
            Selection(
                "mlp_post_act",
                node=NodeSelection(
                    activation_index=ActivationIndex(ActivationLocationType.LOGITS, (0, 0), None)
                ),
            ),
            "s.activation_index",
            "takes no",
        ),
    ]
    for selection, field, word in cases:
        refused(lambda selection=selection: resolve(selection), field, word)  # type: ignore[misc]
    for selection in (Selection("mlp_act_times_grad"), Selection("mlp_post_act", BACKWARD)):
        error = refused(
            lambda selection=selection: resolve(selection, has_loss=False),  # type: ignore[misc]
            "inference.loss",
            "give a loss",
        )
        assert error.reason == "LOSS_NEEDED"


def test_components(subject: Subject) -> None:
    def resolve(spec: ComponentSpec, by_token_pair: bool = False) -> object:
        return resolve_component(
            spec,
            subject,
            run(),
            field="spec",
            inference_field="inference",
            by_token_pair=by_token_pair,
        )

    resolve(ComponentSpec("attn_write_norm", 1, 2))
    resolve(ComponentSpec("unflattened_attn_write_norm", 1, 2), by_token_pair=True)
    at = "spec.component"
    refused(
        lambda: resolve(ComponentSpec("attn_qk_probs", 0, 0)),
        f"{at}.derived_scalar_type",
        "attended_to_sequence_tokens",
    )
    refused(
        lambda: resolve(ComponentSpec("mlp_post_act", 0, 0), by_token_pair=True),
        f"{at}.derived_scalar_type",
        "query, key and component",
    )
    refused(
        lambda: resolve(ComponentSpec("attn_write_norm", 0, 0), by_token_pair=True),
        f"{at}.derived_scalar_type",
        "needed, as unflattened_attn_write_norm is",
    )
    refused(lambda: resolve(ComponentSpec("mlp_post_act", 9, 0)), f"{at}.layer_index", "layer 9")
    refused(lambda: resolve(ComponentSpec("mlp_post_act", None, 0)), f"{at}.layer_index", "needs")
    for index in (NEURONS, -1):
        refused(
            lambda index=index: resolve(ComponentSpec("mlp_post_act", 0, index)),  # type: ignore[misc]
            f"{at}.component_index",
            f"has {NEURONS}",
        )
    refused(
        lambda: resolve(ComponentSpec("mlp_act_times_grad", 0, 0)), "inference.loss", "give a loss"
    )


def test_top_nodes(subject: Subject) -> None:
    def resolve(spec: TopNodesSpec) -> object:
        return resolve_top_nodes(
            spec,
            subject,
            run(),
            field="spec",
            inference_field="inference",
        )

    def group(*dsts: str, name: str = "write_norm") -> ScalarGroup:
        return ScalarGroup(name, dsts)

    heads = "unflattened_attn_write_norm"
    cases: list[tuple[TopNodesSpec, str, str]] = [
        (
            TopNodesSpec((group("mlp_post_act"), group("mlp_pre_act"))),
            "spec.groups[1].group_id",
            "twice",
        ),
        (
            TopNodesSpec((group("mlp_post_act", "mlp_pre_act"),)),
            "spec.groups[0].derived_scalar_types",
            "mlp_neuron, mlp_neuron",
        ),
        (
            TopNodesSpec(
                (group("mlp_post_act", heads), group(heads, "mlp_post_act", name="activation"))
            ),
            "spec.groups[1].derived_scalar_types",
            "same order",
        ),
        (
            TopNodesSpec((group("mlp_post_act", "attn_write"),)),
            "spec.groups[0].derived_scalar_types[1]",
            "4 dimensions",
        ),
        (
            TopNodesSpec((group("nonsense"),)),
            "spec.groups[0].derived_scalar_types[0]",
            "nonsense",
        ),
        (
            TopNodesSpec((group(heads), group("attn_write_norm", name="activation"))),
            "spec.groups[1].derived_scalar_types[0]",
            "not indexed as",
        ),
        (
            TopNodesSpec(
                (group("mlp_layer_write_norm"), group("token_attribution", name="activation"))
            ),
            "inference.loss",
            "give a loss",
        ),
        (
            TopNodesSpec((group("mlp_layer_write_norm"), group("always_one", name="activation"))),
            "spec.groups[1].derived_scalar_types[0]",
            "not indexed as",
        ),
        (
            TopNodesSpec((group("attn_write_norm"),), token_index=0),
            "spec.token_index",
            "token pair",
        ),
        (TopNodesSpec((group("always_one"),), pass_type=BACKWARD), "spec.pass_type", "backward"),
        (TopNodesSpec((group("mlp_act_times_grad"),)), "inference.loss", "give a loss"),
        (TopNodesSpec((group("mlp_post_act"),), token_index=TOKENS), "spec.token_index", "6"),
        (TopNodesSpec((group("mlp_post_act"),), token_index=-7), "spec.token_index", "-7"),
        (
            TopNodesSpec((group("mlp_post_act"),), sum_dimensions=(Dimension.ATTN_HEADS,)),
            "spec.sum_dimensions.dimensions[0]",
            "attn_heads",
        ),
    ]
    for spec, field, word in cases:
        refused(lambda spec=spec: resolve(spec), field, word)  # type: ignore[misc]
    tokens = MAX_NODES // (subject.model.shape.layers * NEURONS) + 1
    refused(
        lambda: resolve_top_nodes(
            TopNodesSpec((group("mlp_post_act"),)),
            subject,
            PreparedInference((0,) * tokens, (), None),
            field="spec",
            inference_field="",
        ),
        "spec.top_and_bottom_count",
        str(MAX_NODES),
        kind=ResourceExhausted,
    )
    alike = TopNodesSpec(
        (group("attn_write_norm"), group("attn_write_norm_per_sequence_token", name="activation"))
    )
    # As large for a single token, but what its second index counts is not the same.
    for number in (1, 2):
        refused(
            lambda number=number: resolve_top_nodes(  # type: ignore[misc]
                alike,
                subject,
                PreparedInference((0,) * number, (), None),
                field="spec",
                inference_field="",
            ),
            "spec.groups[1].derived_scalar_types[0]",
            "not indexed as",
        )


def test_each_node_counts_once(subject: Subject) -> None:
    groups = tuple(
        ScalarGroup(name, (dst,))
        for name, dst in (("activation", "mlp_post_act"), ("write_norm", "mlp_pre_act"))
    )

    def listed(spec: TopNodesSpec) -> int:
        return resolve_top_nodes(spec, subject, run(), field="", inference_field="").max_nodes

    assert listed(TopNodesSpec(groups)) == LAYERS * TOKENS * NEURONS
    assert listed(TopNodesSpec(groups, token_index=1)) == LAYERS * NEURONS
    assert listed(TopNodesSpec(groups, first_layer=LAYERS - 1)) == TOKENS * NEURONS
    assert listed(TopNodesSpec(groups, count=5)) == 20
    assert listed(TopNodesSpec(groups, count=5, exclude_bottom=True)) == 10
    assert listed(TopNodesSpec(groups, count=9999)) == LAYERS * TOKENS * NEURONS
