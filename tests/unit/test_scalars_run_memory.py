"""What runs take: never more than was estimated, and nothing once they are over."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from services.scalars.answers.output_logits import OutputLogits
from services.scalars.autoencoders import NO_AUTOENCODERS, AutoencoderSet
from services.scalars.deriving.indexing import NodeIndex
from services.scalars.engine.jobs import Abandoned
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import NodeType, PassType
from services.scalars.model.subject import load_subject
from services.scalars.model.taps import Overwrite, RawTensorId
from services.scalars.passes.inference import PreparedInference, Row, estimated_bytes, run_rows
from services.scalars.passes.losses import Loss, LossKind
from services.scalars.passes.traces import AttentionTraceType, TraceSpec, resolve_trace
from tests.unit.scalars_checkpoint import CONTEXT, LAYERS, WIDTH, write_checkpoint
from tests.unit.scalars_llama_checkpoint import write_llama_checkpoint
from tests.unit.scalars_reference_pass import BACKWARD, FORWARD, every_target, make_autoencoder

TOKENS = tuple(range(40, 40 + CONTEXT - 2))
LOSS = Loss(LossKind.LOGIT_DIFF, (4,), (7,), len(TOKENS) - 1)
AUTOENCODERS = AutoencoderSet(
    [make_autoencoder(Location.MLP_POST_ACT), make_autoencoder(Location.RESID_DELTA_ATTN)]
)
ALL = every_target(NO_AUTOENCODERS)
LATENTS = every_target(AUTOENCODERS) - ALL
EMBEDDING = RawTensorId(Location.RESID_POST_EMBEDDING, None, BACKWARD)


def at(*places: Location, passes: Collection[PassType] = (FORWARD,)) -> frozenset[RawTensorId]:
    return frozenset(each for each in ALL if each.location in places and each.pass_type in passes)


CAPTURES = {
    "nothing": (None, frozenset[RawTensorId]()),
    "neurons": (None, at(Location.MLP_POST_ACT)),
    "logits": (None, at(Location.LOGITS)),
    "all activations": (None, frozenset(each for each in ALL if each.pass_type is FORWARD)),
    "one gradient": (LOSS, frozenset({EMBEDDING})),
    "gradients of pairs": (
        LOSS,
        at(Location.ATTN_QK_PROBS, passes=(FORWARD, BACKWARD)) | {EMBEDDING},
    ),
    "gradients of logits": (LOSS, at(Location.LOGITS, passes=(FORWARD, BACKWARD)) | {EMBEDDING}),
    "everything": (LOSS, ALL),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SubjectModel]:
    folder: Path = tmp_path_factory.mktemp("memory")
    paths = {
        "gpt2": write_checkpoint(folder / "gpt2"),
        "llama": write_llama_checkpoint(folder / "llama"),
    }
    return {name: load_subject("tiny", str(path), "cpu").model for name, path in paths.items()}


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that was allocated at one time, by torch's own account."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = work()
    assert kept is not None
    # The profiler gives no other way to the single allocations, in their order.
    events = profiled.profiler.kineto_results.events()
    taken = peak = 0
    for event in sorted(events, key=lambda each: int(each.start_ns())):
        if event.name() == "[memory]":
            taken += int(event.nbytes())
            peak = max(peak, taken)
    return peak


def fits(
    model: SubjectModel, rows: Sequence[Row], autoencoders: AutoencoderSet = NO_AUTOENCODERS
) -> None:
    estimate = sum(
        estimated_bytes(
            model,
            len(row.prepared.tokens),
            row.captures,
            row.prepared.overwrites,
            autoencoders,
        )
        for row in rows
    )
    peak = peak_bytes(lambda: run_rows(model, rows, autoencoders))
    assert 0 < peak <= estimate


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("what", CAPTURES)
def test_a_run_takes_no_more_than_estimated(
    models: dict[str, SubjectModel], family: str, what: str
) -> None:
    loss, captures = CAPTURES[what]
    model = models[family]
    there = [each for each in captures if each.layer is None or each.layer < model.shape.layers]
    fits(model, [Row(PreparedInference(TOKENS, (), loss), frozenset(there))])


def test_an_estimate_is_of_the_right_size(models: dict[str, SubjectModel]) -> None:
    """Not so far above that what would fit is refused."""
    row = Row(PreparedInference(TOKENS, (), LOSS), ALL)
    estimate = estimated_bytes(models["gpt2"], len(TOKENS), row.captures)
    assert estimate < 3 * peak_bytes(lambda: run_rows(models["gpt2"], [row]))


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    """A model of a vocabulary as large beside its other sizes as that of a small GPT-2."""
    path = write_checkpoint(
        tmp_path_factory.mktemp("memory") / "wordy",
        weights={"transformer.wte.weight": torch.randn(10_000, WIDTH)},
    )
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": 10_000}))
    return load_subject("wordy", str(path), "cpu").model


@pytest.mark.parametrize("overwritten", [(), (FORWARD,), (BACKWARD,), (FORWARD, BACKWARD)])
@pytest.mark.parametrize("captured", [(), (FORWARD,), (BACKWARD,), (FORWARD, BACKWARD)])
@pytest.mark.parametrize("also", [frozenset(), frozenset({EMBEDDING})])
def test_all_logits_are_in_the_estimate(
    wordy: SubjectModel,
    overwritten: tuple[PassType, ...],
    captured: tuple[PassType, ...],
    also: frozenset[RawTensorId],
) -> None:
    ablated = tuple(
        Overwrite(RawTensorId(Location.LOGITS, None, pass_type), (slice(None), 3), 0.5)
        for pass_type in overwritten
    )
    row = Row(PreparedInference(TOKENS, ablated, LOSS), at(Location.LOGITS, passes=captured) | also)
    fits(wordy, [row])
    if not overwritten and captured:
        estimate = estimated_bytes(wordy, len(TOKENS), row.captures)
        assert estimate < 2 * peak_bytes(lambda: run_rows(wordy, [row]))


def test_ablations_and_latents_are_in_the_estimate(models: dict[str, SubjectModel]) -> None:
    overwrites = tuple(
        Overwrite(each, tuple(slice(None) for _ in each.location.dimensions), 0.5)
        for each in sorted(ALL | LATENTS, key=str)
    )
    for ablated in ((), overwrites):
        for captures in (LATENTS, frozenset({EMBEDDING})):
            row = Row(PreparedInference(TOKENS, ablated, LOSS), captures)
            fits(models["gpt2"], [row], AUTOENCODERS)


@pytest.mark.parametrize(
    ("node_type", "index", "through"),
    [
        (NodeType.MLP_NEURON, (2, 3), None),
        (NodeType.ATTENTION_HEAD, (2, 1, 1), AttentionTraceType.QUERY_AND_KEY),
        (NodeType.ATTENTION_HEAD, (2, 1, 1), AttentionTraceType.VALUE),
        (NodeType.MLP_AUTOENCODER_LATENT, (2, 3), None),
        (NodeType.ATTENTION_AUTOENCODER_LATENT, (2, 3), None),
    ],
)
def test_traces_are_in_the_estimate(
    models: dict[str, SubjectModel],
    node_type: NodeType,
    index: tuple[int, ...],
    through: AttentionTraceType | None,
) -> None:
    model = models["gpt2"]
    loss = LOSS if through is AttentionTraceType.VALUE else None
    spec = TraceSpec(node=NodeIndex(node_type, index, LAYERS - 1), attention_trace_type=through)
    trace = resolve_trace(
        spec, loss, model.shape, AUTOENCODERS, len(TOKENS), field="trace", loss_field="loss"
    )
    fits(
        model,
        [Row(PreparedInference(TOKENS, (), loss, trace), frozenset({EMBEDDING}))],
        AUTOENCODERS,
    )


def test_rows_of_a_batch_take_no_more_than_all_of_them(models: dict[str, SubjectModel]) -> None:
    """What one row captures is not kept of the others."""
    neurons = CAPTURES["all activations"][1]
    few = Row(PreparedInference(TOKENS, (), None), frozenset())
    much = Row(PreparedInference(TOKENS, (), None), neurons)
    fits(models["gpt2"], [much, *[few] * 11])
    few = Row(PreparedInference(TOKENS, (), LOSS), frozenset({EMBEDDING}))
    much = Row(PreparedInference(TOKENS, (), LOSS), ALL)
    fits(models["gpt2"], [much, *[few] * 11])


def test_nothing_is_left_behind(models: dict[str, SubjectModel]) -> None:
    """No graph outlives its run, not even until garbage is collected; weights take no part."""
    model = models["gpt2"]
    ablated = Overwrite(RawTensorId(Location.MLP_POST_ACT, 1, BACKWARD), (0, 0), 1.0)
    row = Row(PreparedInference(TOKENS, (ablated,), LOSS), every_target(AUTOENCODERS))

    def abandon() -> None:
        raise Abandoned

    def tensors() -> int:
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    run_rows(model, [row, row], AUTOENCODERS)
    gc.collect()
    before = tensors()
    gc.disable()
    try:
        results = run_rows(model, [row, row], AUTOENCODERS)
        captured = results[0].raw_store.tensors
        assert not any(each.requires_grad or each.grad_fn for each in captured.values())
        assert tensors() > before
        del results, captured
        assert tensors() == before
        # Nor one of a run that ended between its passes.
        with pytest.raises(Abandoned):
            run_rows(model, [replace(row, check=abandon)] * 2, AUTOENCODERS)
        assert tensors() == before
    finally:
        gc.enable()
    assert not model.token_embedding.requires_grad
    for weight in (*model.write.mlp, *model.write.attn, model.write.unembedding):
        assert not weight.requires_grad
        assert weight.grad is None


def test_sums_of_logits_copy_no_vocabulary() -> None:
    unembedding, normalized = torch.randn(40_000, 16), torch.randn(3, 16)
    model = cast(SubjectModel, SimpleNamespace(write=SimpleNamespace(unembedding=unembedding)))
    total = OutputLogits(model).summed_unembedding()
    assert torch.allclose(normalized.double() @ total, (normalized @ unembedding.T).double().sum(1))
    assert peak_bytes(lambda: OutputLogits(model).summed_unembedding()) < unembedding.nbytes / 4
