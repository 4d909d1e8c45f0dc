"""Requests: what is right about one is resolved, what is wrong is told with its field."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.model.locations import (
    ActivationLocationType,
    PassType,
)
from services.scalars.model.subject import Subject, load_subject
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.ablations import AblationSpec, resolve_ablations
from services.scalars.passes.inference import (
    InferenceSpec,
    estimated_bytes,
    prepare_inference,
    run_inference,
)
from services.scalars.passes.losses import Loss, LossKind, LossSpec, resolve_loss
from tests.unit.scalars_checkpoint import CONTEXT, LAYERS, NEURONS, write_checkpoint
from tests.unit.scalars_refused import TOKENS, refused

BACKWARD = PassType.BACKWARD


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


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
    refused(lambda: resolve(latent), f"{at}.location_type", "no autoencoder is configured")


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
