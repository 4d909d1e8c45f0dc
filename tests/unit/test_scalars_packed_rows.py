"""Rows of a batch don't depend on each other: each gives what it gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scalars.autoencoders import Activation, AutoencoderSet
from services.scalars.autoencoders.autoencoder_set import sizes_at
from services.scalars.deriving.indexing import ActivationIndex, NodeIndex
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import NodeType
from services.scalars.model.packing import Packing
from services.scalars.model.subject import load_subject
from services.scalars.model.taps import Overwrite, RawTensorId, RowTaps, Taps
from services.scalars.passes.ablations import AblationSpec, resolve_ablations
from services.scalars.passes.inference import PreparedInference, Row, RunResult, run_rows
from services.scalars.passes.losses import Loss, LossKind
from services.scalars.passes.nodes import NonlinearitySide
from services.scalars.passes.traces import AttentionTraceType, Trace, TraceSpec, resolve_trace
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_llama_checkpoint import write_llama_checkpoint
from tests.unit.scalars_reference_pass import BACKWARD, FORWARD, every_target, make_autoencoder

AUTOENCODERS = AutoencoderSet(
    [
        make_autoencoder(Location.MLP_POST_ACT, Activation.RELU),
        make_autoencoder(Location.RESID_DELTA_ATTN, Activation.JUMPRELU),
    ]
)
TARGETS = every_target(AUTOENCODERS)
PLACES = sorted({target.place for target in TARGETS}, key=str)
LONGEST = 12
NODES = (
    NodeIndex(NodeType.MLP_NEURON, (0, 3), 2),
    NodeIndex(NodeType.MLP_NEURON, (0, 3), 0),
    NodeIndex(NodeType.ATTENTION_HEAD, (0, 0, 1), 1),
    NodeIndex(NodeType.MLP_AUTOENCODER_LATENT, (0, 3), 2),
    NodeIndex(NodeType.ATTENTION_AUTOENCODER_LATENT, (0, 2), 1),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("rows") / "model")
    return load_subject("tiny", str(path), "cpu").model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    path = write_llama_checkpoint(tmp_path_factory.mktemp("rows") / "llama")
    return load_subject("tiny", str(path), "cpu").model


def tokens_of(length: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(0, 319)] * length)


@st.composite
def overwrites_of(draw: st.DrawFn, n_tokens: int, model: SubjectModel) -> Overwrite:
    location, layer = draw(st.sampled_from(PLACES))
    autoencoder = AUTOENCODERS.for_location(location)
    sizes = sizes_at(location.dimensions, model.shape, n_tokens, autoencoder, layer)
    index = tuple(draw(st.none() | st.integers(0, size - 1)) for size in sizes)
    # A scale of 0 is divided by: what is infinite then may be no number in another order of sums.
    values = [1.0, -2.5] if location.value.endswith("scale") else [0.0, 1.0, -2.5]
    spec = AblationSpec(
        ActivationIndex(location, index, layer, draw(st.sampled_from([FORWARD, BACKWARD]))),
        draw(st.sampled_from(values)),
    )
    (found,) = resolve_ablations(
        [spec], model.shape, n_tokens, AUTOENCODERS, backward=True, field=""
    )
    return found


@st.composite
def starts_of(
    draw: st.DrawFn, n_tokens: int, model: SubjectModel
) -> tuple[Loss | None, Trace | None]:
    """A loss, a trace, both where they go together, or nothing."""
    kind = draw(st.sampled_from([*LossKind, None]))
    distractors = (17,) if kind is LossKind.LOGIT_DIFF else ()
    position = draw(st.integers(0, n_tokens - 1))
    loss = None if kind is None else Loss(kind, (40, 7), distractors, position)
    node = draw(st.none() | st.sampled_from(NODES))
    if node is None:
        return loss, None
    is_head = node.node_type is NodeType.ATTENTION_HEAD
    through = draw(st.sampled_from(AttentionTraceType)) if is_head else None
    by_value = through is AttentionTraceType.VALUE
    if by_value and loss is None:
        loss = Loss(LossKind.ZERO, (), (), 0)
    spec = TraceSpec(
        node=node,
        side=draw(st.sampled_from(NonlinearitySide)),
        detach_layer_norm_scale=draw(st.booleans()),
        attention_trace_type=through,
    )
    loss = loss if by_value else None
    trace = resolve_trace(
        spec, loss, model.shape, AUTOENCODERS, n_tokens, field="trace", loss_field="loss"
    )
    return loss, trace


@st.composite
def rows_of(draw: st.DrawFn, model: SubjectModel) -> Row:
    n_tokens = draw(st.integers(1, LONGEST))
    loss, trace = draw(starts_of(n_tokens, model))
    overwrites = draw(st.lists(overwrites_of(n_tokens, model), max_size=3))
    prepared = PreparedInference(draw(tokens_of(n_tokens)), tuple(overwrites), loss, trace)
    captures = {each for each in TARGETS if prepared.has_gradient or each.pass_type is FORWARD}
    if draw(st.booleans()):
        captures = set(draw(st.lists(st.sampled_from(sorted(captures, key=str)), max_size=4)))
    return Row(prepared, frozenset(captures))


def same(found: RunResult, alone: RunResult) -> None:
    for name in ("loss", "traced_activation"):
        mine, wanted = getattr(found, name), getattr(alone, name)
        assert mine == (None if wanted is None else pytest.approx(wanted, rel=1e-4, abs=1e-5))
    assert found.raw_store.tensors.keys() == alone.raw_store.tensors.keys()
    for target, wanted in alone.raw_store.tensors.items():
        # The gradient of a scale is a sum over the whole residual stream, most of which cancels.
        relative = 3e-4 if target.location.value.endswith("scale") else 1e-5
        finite = wanted[torch.isfinite(wanted)]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        torch.testing.assert_close(
            found.raw_store.tensors[target],
            wanted,
            rtol=0,
            atol=1e-6 + relative * largest,
            msg=str(target),
        )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_are_what_they_are_alone(model: SubjectModel, data: st.DataObject) -> None:
    rows = data.draw(st.lists(rows_of(model), min_size=1, max_size=4))
    together = run_rows(model, rows, AUTOENCODERS)
    for found, row in zip(together, rows, strict=True):
        same(found, run_rows(model, [row], AUTOENCODERS)[0])


def test_a_gradient_after_a_traces_start_is_0_whoever_runs_beside_it(model: SubjectModel) -> None:
    tokens = (5, 9, 200, 31)
    node = NodeIndex(NodeType.MLP_NEURON, (2, 3), 1)
    trace = resolve_trace(
        TraceSpec(node=node), None, model.shape, AUTOENCODERS, 4, field="", loss_field=""
    )
    later = RawTensorId(Location.MLP_PRE_ACT, 1, BACKWARD)
    earlier = RawTensorId(Location.RESID_POST_ATTN, 1, BACKWARD)
    everywhere = (slice(None), slice(None))
    in_vain = Overwrite(later, everywhere, 2.0)
    at_start = Overwrite(earlier, everywhere, 2.0)
    with_loss = Row(PreparedInference(tokens, (), Loss(LossKind.PROBS, (4,), (), 3)), TARGETS)
    plain, unchanged, changed = (
        Row(PreparedInference(tokens, overwrites, None, trace), TARGETS)
        for overwrites in ((), (in_vain,), (at_start,))
    )
    together = run_rows(model, [with_loss, unchanged, changed], AUTOENCODERS)
    same(together[0], run_rows(model, [with_loss], AUTOENCODERS)[0])
    same(together[1], run_rows(model, [plain], AUTOENCODERS)[0])
    same(together[2], run_rows(model, [changed], AUTOENCODERS)[0])
    assert not together[1].raw_store.tensors[later].any()
    assert bool((together[2].raw_store.tensors[earlier] == 2).all())


@pytest.mark.parametrize("family", ["model", "llama"])
def test_what_is_not_finite_after_a_traces_start_never_comes_back_to_it(
    family: str, request: pytest.FixtureRequest
) -> None:
    """The backward pass goes on there for another row, of whose gradient 0 this one has no use."""
    model: SubjectModel = request.getfixturevalue(family)
    autoencoders = AUTOENCODERS if family == "model" else AutoencoderSet()
    targets = every_target(autoencoders)
    gradients = frozenset(each for each in targets if each.pass_type is BACKWARD)
    trace = resolve_trace(
        TraceSpec(node=NodeIndex(NodeType.MLP_NEURON, (2, 3), 0)),
        None,
        model.shape,
        autoencoders,
        4,
        field="",
        loss_field="",
    )
    scale = RawTensorId(Location.MLP_INPUT_LAYER_NORM_SCALE, model.shape.layers - 1, FORWARD)
    divided_by_0 = Overwrite(scale, (slice(None), slice(None)), 0.0)
    tokens = (5, 9, 200, 31)
    traced = Row(PreparedInference(tokens, (divided_by_0,), None, trace), gradients)
    with_loss = Row(PreparedInference(tokens, (), Loss(LossKind.PROBS, (4,), (), 3)), targets)
    alone = run_rows(model, [traced], autoencoders)[0]
    assert all(bool(each.isfinite().all()) for each in alone.raw_store.tensors.values())
    together = run_rows(model, [traced, with_loss, traced], autoencoders)
    same(together[0], alone)
    same(together[2], alone)
    same(together[1], run_rows(model, [with_loss], autoencoders)[0])
    after = RawTensorId(Location.RESID_DELTA_MLP, model.shape.layers - 1, BACKWARD)
    assert not together[0].raw_store.tensors[after].any()


def test_rows_of_rotated_positions_are_what_they_are_alone(llama: SubjectModel) -> None:
    """Each row counts its positions from its own beginning."""
    captures = every_target(AutoencoderSet())
    rows = [
        Row(
            PreparedInference(
                tuple(range(first, first + n_tokens)), (), Loss(LossKind.PROBS, (4,), (), 0)
            ),
            captures,
        )
        for first, n_tokens in ((5, 7), (30, 2), (60, 7), (90, 11), (120, 1))
    ]
    for found, row in zip(run_rows(llama, rows), rows, strict=True):
        same(found, run_rows(llama, [row])[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_row_that_overflows_harms_no_other(model: SubjectModel, value: float) -> None:
    """What one row becomes by an ablation, finite or not, stays in its row."""
    loss = Loss(LossKind.LOGIT_DIFF, (40,), (7,), 3)
    broken = Overwrite(
        RawTensorId(Location.RESID_POST_ATTN, 0, FORWARD), (slice(None), slice(None)), value
    )
    flooded = Overwrite(RawTensorId(Location.ATTN_QK_PROBS, 2, BACKWARD), (1, 0, 0), value)
    sound = Row(PreparedInference((5, 9, 200, 31), (), loss), TARGETS)
    rows = [
        sound,
        Row(PreparedInference((5, 9, 200, 31), (broken, flooded), loss), TARGETS),
        Row(PreparedInference((5, 9, 200, 31, 7), (broken,), loss), TARGETS),
        sound,
    ]
    together = run_rows(model, rows, AUTOENCODERS)
    alone = run_rows(model, [sound], AUTOENCODERS)[0]
    same(together[0], alone)
    same(together[3], alone)


@pytest.mark.parametrize("family", ["model", "llama"])
@pytest.mark.parametrize("value", [1e19, 1e20, 1e30])
def test_a_norms_scale_that_is_captured_changes_nothing(
    family: str, value: float, request: pytest.FixtureRequest
) -> None:
    """Neither beside a row nor of it, also where its square is beyond all numbers."""
    model: SubjectModel = request.getfixturevalue(family)
    names = [each for each in Location if each.value.endswith("scale")]
    scales = [each for each in every_target(AutoencoderSet()) if each.location in names]
    residuals = frozenset(
        RawTensorId(Location.RESID_POST_MLP, layer, pass_type)
        for layer in range(model.shape.layers)
        for pass_type in (FORWARD, BACKWARD)
    )
    neurons = RawTensorId(Location.MLP_POST_ACT, 0, FORWARD)
    flooded = Overwrite(neurons, (slice(None), slice(None)), value)
    prepared = PreparedInference(
        (5, 9, 200, 31), (flooded,), Loss(LossKind.LOGIT_DIFF, (4,), (7,), 3)
    )
    (alone,) = run_rows(model, [Row(prepared, residuals)])
    for found in run_rows(
        model, [Row(prepared, residuals), Row(prepared, residuals.union(scales))]
    ):
        assert found.loss == pytest.approx(alone.loss, rel=1e-4, nan_ok=True)
        for target, wanted in alone.raw_store.tensors.items():
            torch.testing.assert_close(
                found.raw_store.tensors[target], wanted, rtol=1e-4, atol=1e-6, equal_nan=True
            )


def test_a_run_ends_once_nobody_waits_for_any_row(model: SubjectModel) -> None:
    class Gone(Exception):
        pass

    def gone() -> None:
        raise Gone

    prepared = PreparedInference((5, 9), (), None)
    captures = frozenset({RawTensorId(Location.MLP_POST_ACT, 0, FORWARD)})
    waited_for, abandoned = Row(prepared, captures), Row(prepared, captures, gone)
    assert len(run_rows(model, [abandoned, waited_for, abandoned])) == 3
    with pytest.raises(Gone):
        run_rows(model, [abandoned, abandoned])


def test_a_gradient_needs_something_to_start_from(model: SubjectModel) -> None:
    captures = frozenset({RawTensorId(Location.MLP_POST_ACT, 0, BACKWARD)})
    with pytest.raises(ValueError, match="needs a loss or a trace"):
        run_rows(model, [Row(PreparedInference((5, 9), (), None), captures)])


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_packing_places_every_token_once(lengths: Sequence[int]) -> None:
    packing = Packing(lengths)
    sequences = [[100 * row + place for place in range(n)] for row, n in enumerate(lengths)]
    packed = packing.pack(sequences)
    assert packing.total == len(packed) == sum(lengths)
    for sequence, where in zip(sequences, packing.slices, strict=True):
        assert packed[where].tolist() == sequence
        assert packing.positions[where].tolist() == list(range(len(sequence)))
    for group in packing.groups:
        assert {lengths[row] for row in group.rows} == {group.length}
        batch = group.batch(packed)
        assert batch.tolist() == [sequences[row] for row in group.rows]
    assert sorted(row for group in packing.groups for row in group.rows) == list(
        range(len(lengths))
    )


def test_what_can_not_be_packed() -> None:
    for lengths in ([], [3, 0], [-1]):
        with pytest.raises(ValueError, match="must have tokens"):
            Packing(lengths)
    with pytest.raises(ValueError, match="2 rows of taps for 1"):
        Taps(Packing([4]), [RowTaps(), RowTaps()])
