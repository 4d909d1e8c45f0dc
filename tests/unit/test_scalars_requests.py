"""Requests: what is right about one is resolved, what is wrong is told with its field."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from services.scalars.ablations import AblationSpec, resolve_ablations
from services.scalars.catalogue import CATALOGUE
from services.scalars.deriving.indexing import ActivationIndex, NodeIndex
from services.scalars.inference import (
    InferenceSpec,
    estimated_bytes,
    prepare_inference,
    run_inference,
)
from services.scalars.losses import Loss, LossKind, LossSpec, resolve_loss
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    NodeType,
    PassType,
)
from services.scalars.model.subject import Subject, load_subject
from services.scalars.model.taps import RawTensorId
from services.scalars.selections import (
    ComponentSpec,
    DimensionRange,
    Selection,
    resolve_component,
    resolve_selection,
)
from services.scalars.top_nodes import (
    MAX_NODES,
    ScalarGroup,
    TopNodesSpec,
    resolve_top_nodes,
)
from shared.errors import InvalidArgument, NeuropilError, ResourceExhausted, Unimplemented
from tests.unit.scalars_checkpoint import CONTEXT, LAYERS, NEURONS, write_checkpoint

BACKWARD = PassType.BACKWARD
TOKENS = 6


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


def refused(
    call: Callable[[], object],
    field: str,
    *words: str,
    kind: type[NeuropilError] = InvalidArgument,
) -> NeuropilError:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.field == field
    for word in words:
        assert word in caught.value.message
    return caught.value


def test_prompts(subject: Subject) -> None:
    def prepare(prompt: str) -> Callable[[], object]:
        return lambda: prepare_inference(
            InferenceSpec(prompt), subject.model, subject.tokenizer, "inference"
        )

    field = "inference.prompt"
    refused(prepare(""), field, "empty")
    refused(prepare("東" * CONTEXT), field, f"context is {CONTEXT}")
    refused(prepare("cat " * (1 << 18)), field, "characters")
    prepare("<|endoftext|>Paris, naïve 東京 \U0001f600 \x00")()
    whole = " cat" * CONTEXT
    assert len(subject.tokenizer.encode(whole)) == CONTEXT
    prepare(whole)()
    assert subject.tokenizer.encode("<|endoftext|>") == [0]


def test_a_part_of_a_character_is_a_replacement_character(subject: Subject) -> None:
    tokens = subject.tokenizer.encode("\U0001f600")
    assert len(tokens) > 1
    assert all("\N{REPLACEMENT CHARACTER}" in subject.tokenizer.decode(t) for t in tokens)
    assert len(subject.tokenizer.strings) == subject.model.shape.vocab_size


def test_losses(subject: Subject) -> None:
    def resolve(spec: LossSpec) -> Callable[[], Loss]:
        return lambda: resolve_loss(spec, subject.tokenizer, TOKENS, "loss")

    difference = LossKind.LOGIT_DIFF
    found = resolve(LossSpec(difference, (" cat",), (" dog", " the"), -2))()
    assert (len(found.targets), len(found.distractors), found.position) == (1, 2, TOKENS - 2)
    assert resolve(LossSpec(LossKind.ZERO))().position == TOKENS - 1
    ids = subject.tokenizer.encode("two tokens here")
    refused(
        resolve(LossSpec(difference, (" cat", "two tokens here"))),
        "loss.target_tokens[1]",
        f"'two tokens here' encodes to {ids}; exactly 1 token is needed",
    )
    refused(resolve(LossSpec(difference, ("",))), "loss.target_tokens[0]", "encodes to []")
    refused(resolve(LossSpec(difference, ("x" * 9999,))), "loss.target_tokens[0]", "9999")
    refused(
        resolve(LossSpec(difference, (" cat",), ("東京",))), "loss.distractor_tokens[0]", "1 token"
    )
    for kind in (difference, LossKind.PROBS, LossKind.LOGIT_MINUS_MEAN):
        refused(resolve(LossSpec(kind)), "loss.target_tokens", kind.value, "at least 1")
    for kind in (LossKind.PROBS, LossKind.LOGIT_MINUS_MEAN, LossKind.ZERO):
        spec = LossSpec(kind, (" cat",), (" dog",))
        refused(resolve(spec), "loss.distractor_tokens", "only logit_diff")
    for position in (TOKENS, -TOKENS - 1):
        spec = LossSpec(difference, (" cat",), position=position)
        refused(resolve(spec), "loss.position", f"{TOKENS} tokens")


def test_ablations(subject: Subject) -> None:
    post, probs = ActivationLocationType.MLP_POST_ACT, ActivationLocationType.ATTN_QK_PROBS

    def resolve(index: ActivationIndex, value: float = 1.0, backward: bool = True) -> object:
        return resolve_ablations(
            [AblationSpec(index, value)],
            subject.model.shape,
            TOKENS,
            backward=backward,
            field="ablations",
        )

    resolve(ActivationIndex(probs, (TOKENS - 1, None, 2), LAYERS - 1))
    at = "ablations[0].index"
    cases: list[tuple[ActivationIndex, str, str]] = [
        (ActivationIndex(post, (0,), 0), f"{at}.tensor_indices", "2 dimensions"),
        (ActivationIndex(post, (0, 0, 0), 0), f"{at}.tensor_indices", "3 indices"),
        (ActivationIndex(post, (TOKENS, 0), 0), f"{at}.tensor_indices[0]", "sequence_tokens"),
        (ActivationIndex(post, (0, NEURONS), 0), f"{at}.tensor_indices[1]", f"has {NEURONS}"),
        (ActivationIndex(post, (0, -1), 0), f"{at}.tensor_indices[1]", "-1"),
        (ActivationIndex(post, (0, 0), LAYERS), f"{at}.layer_index", f"0 to {LAYERS - 1}"),
        (ActivationIndex(post, (0, 0), -1), f"{at}.layer_index", "-1"),
        (ActivationIndex(post, (0, 0), None), f"{at}.layer_index", "needs a layer"),
        (
            ActivationIndex(ActivationLocationType.LOGITS, (0, 0), 0),
            f"{at}.layer_index",
            "no layers",
        ),
    ]
    for index, field, word in cases:
        refused(lambda index=index: resolve(index), field, word)  # type: ignore[misc]
    for value in (math.nan, math.inf, -math.inf, 1e39, -1e308):
        refused(
            lambda value=value: resolve(ActivationIndex(post, (0, 0), 0), value),  # type: ignore[misc]
            "ablations[0].value",
            "finite",
        )
    gradient = ActivationIndex(post, (0, 0), 0, BACKWARD)
    refused(lambda: resolve(gradient, backward=False), f"{at}.pass_type", "give a loss")
    latent = ActivationIndex(ActivationLocationType.ONLINE_AUTOENCODER_LATENT, (0, 0), 0)
    refused(lambda: resolve(latent), f"{at}.location_type", "autoencoder", kind=Unimplemented)


def test_selections(subject: Subject) -> None:
    def resolve(selection: Selection, has_loss: bool = True) -> object:
        return resolve_selection(
            selection,
            subject.model.shape,
            TOKENS,
            has_loss=has_loss,
            field="s",
            loss_field="inference.loss",
        )

    tokens, neurons = Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS
    cut = resolve_selection(
        Selection("mlp_post_act", layer_indices=(2, 0), ranges=(DimensionRange(neurons, 3, 5),)),
        subject.model.shape,
        TOKENS,
        has_loss=False,
        field="",
        loss_field="",
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
            Selection("mlp_post_act", node_index=NodeIndex(NodeType.MLP_NEURON, (0, 0), 0)),
            "s.node_index",
            "takes no",
        ),
        (
            Selection(
                "mlp_post_act",
                activation_index=ActivationIndex(ActivationLocationType.LOGITS, (0, 0), None),
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
    for declaration in CATALOGUE:
        if declaration.make is None:
            refused(
                lambda name=declaration.dst.name: resolve(Selection(name)),  # type: ignore[misc]
                "s.derived_scalar_type",
                declaration.dst.name,
                kind=Unimplemented,
            )


def test_components(subject: Subject) -> None:
    def resolve(spec: ComponentSpec, by_token_pair: bool = False) -> object:
        return resolve_component(
            spec,
            subject.model.shape,
            TOKENS,
            has_loss=False,
            field="spec",
            loss_field="inference.loss",
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
        "token pair",
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
            subject.model.shape,
            TOKENS,
            has_loss=False,
            field="spec",
            loss_field="inference.loss",
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
    shape = subject.model.shape
    tokens = MAX_NODES // (shape.layers * NEURONS) + 1
    refused(
        lambda: resolve_top_nodes(
            TopNodesSpec((group("mlp_post_act"),)),
            shape,
            tokens,
            has_loss=False,
            field="spec",
            loss_field="",
        ),
        "spec.top_and_bottom_count",
        str(MAX_NODES),
        kind=ResourceExhausted,
    )


def test_a_gradient_needs_a_loss_and_the_estimate_grows(subject: Subject) -> None:
    gradient = RawTensorId(ActivationLocationType.MLP_POST_ACT, 0, BACKWARD)
    prepared = prepare_inference(InferenceSpec("The cat"), subject.model, subject.tokenizer, "i")
    with pytest.raises(ValueError, match="needs a loss"):
        run_inference(subject.model, prepared, [gradient])
    forward = RawTensorId(ActivationLocationType.MLP_POST_ACT, 0, PassType.FORWARD)
    logits = RawTensorId(ActivationLocationType.LOGITS, None, PassType.FORWARD)
    estimates = [
        estimated_bytes(subject.model, 10, captures)
        for captures in ([], [forward], [forward, gradient], [forward, gradient, logits])
    ]
    assert estimates == sorted(set(estimates))


def test_a_run_stops_after_the_last_layer_that_is_wanted(subject: Subject) -> None:
    prepared = prepare_inference(InferenceSpec("The cat"), subject.model, subject.tokenizer, "i")
    first = RawTensorId(ActivationLocationType.RESID_POST_MLP, 0, PassType.FORWARD)
    last = RawTensorId(ActivationLocationType.RESID_POST_FINAL_LAYER_NORM, None, PassType.FORWARD)
    for captures in ([first], [last]):
        store = run_inference(subject.model, prepared, captures).raw_store
        assert store.get(captures[0].location, PassType.FORWARD).numel
