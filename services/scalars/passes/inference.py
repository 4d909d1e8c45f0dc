"""One run of the subject model: a prompt, ablations, and a loss to take gradients of."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.scalars.autoencoders import NO_AUTOENCODERS, AutoencoderSet, WithinLayerLatent
from services.scalars.autoencoders.autoencoder_set import sizes_at
from services.scalars.autoencoders.within_layer import resolve_within_layer_latent
from services.scalars.deriving.activations import RawActivationStore
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.engine.reuse import Memo
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.packing import Packing
from services.scalars.model.taps import Overwrite, RawTensorId, RowTaps, Taps
from services.scalars.model.tokenizer import TextTokenizer
from services.scalars.passes.ablations import AblationSpec, resolve_ablations
from services.scalars.passes.losses import Loss, LossSpec, resolve_loss
from services.scalars.passes.traces import Trace, TraceSpec, resolve_trace


@dataclass(frozen=True)
class InferenceSpec:
    """What to run, as a request states it."""

    prompt: str
    ablations: tuple[AblationSpec, ...] = ()
    loss: LossSpec | None = None
    trace: TraceSpec | None = None
    within_layer_gradient_index: ActivationIndex | None = None
    prepend_beginning_token: bool = False


@dataclass(frozen=True)
class PreparedInference:
    """A checked run: token ids, overwrites, and what its backward pass starts from.

    That is the trace where there is one, and else the loss.
    """

    tokens: tuple[int, ...]
    overwrites: tuple[Overwrite, ...]
    loss: Loss | None
    trace: Trace | None = None
    within_layer_latent: WithinLayerLatent | None = None

    @property
    def has_gradient(self) -> bool:
        """Whether there is something to take gradients of."""
        return self.loss is not None or self.trace is not None


@dataclass(frozen=True)
class RunResult:
    """What a run left: raw activations, the values of loss and trace, and the time it took.

    `seconds` is the time of forward and backward pass, of all rows that ran together. Memory is
    that allocated on the device, in bytes, None on a CPU. `memo` remembers what was derived from
    the run, for later requests too where the run is kept.
    """

    raw_store: RawActivationStore
    loss: float | None
    seconds: float
    memory_used_before: int | None
    memory_used_after: int | None
    traced_activation: float | None = None
    memo: Memo = field(default_factory=Memo)


def prepare_inference(
    spec: InferenceSpec,
    model: SubjectModel,
    tokenizer: TextTokenizer,
    field: str,
    autoencoders: AutoencoderSet = NO_AUTOENCODERS,
) -> PreparedInference:
    """Encodes and checks a run; InvalidArgument names the field, after the prefix `field`."""
    tokens = tokenizer.prompt(
        spec.prompt,
        model.shape.context,
        f"{field}.prompt",
        beginning_field=f"{field}.prepend_beginning_token"
        if spec.prepend_beginning_token
        else None,
    )
    loss = (
        None
        if spec.loss is None
        else resolve_loss(spec.loss, tokenizer, len(tokens), f"{field}.loss")
    )
    trace = (
        None
        if spec.trace is None
        else resolve_trace(
            spec.trace,
            loss,
            model.shape,
            autoencoders,
            len(tokens),
            field=f"{field}.trace",
            loss_field=f"{field}.loss",
        )
    )
    within_layer_latent = (
        None
        if spec.within_layer_gradient_index is None
        else resolve_within_layer_latent(
            spec.within_layer_gradient_index, autoencoders, f"{field}.within_layer_gradient_index"
        )
    )
    overwrites = resolve_ablations(
        spec.ablations,
        model.shape,
        len(tokens),
        autoencoders,
        backward=loss is not None or trace is not None,
        field=f"{field}.ablations",
    )
    return PreparedInference(tuple(tokens), overwrites, loss, trace, within_layer_latent)


@dataclass(frozen=True)
class Row:
    """A run that shares a batch with others: what is captured of it, and whether it still counts.

    `check` is called between the passes and raises once nobody waits for the run any more.
    """

    prepared: PreparedInference
    captures: frozenset[RawTensorId]
    check: Callable[[], None] = lambda: None

    @property
    def has_backward(self) -> bool:
        """Whether a gradient is captured."""
        return any(target.pass_type is PassType.BACKWARD for target in self.captures)


def run_inference(
    model: SubjectModel,
    prepared: PreparedInference,
    captures: Collection[RawTensorId],
    check: Callable[[], None] = lambda: None,
    autoencoders: AutoencoderSet = NO_AUTOENCODERS,
) -> RunResult:
    """Runs one inference alone; see `run_rows`."""
    return run_rows(model, [Row(prepared, frozenset(captures), check)], autoencoders)[0]


def run_rows(
    model: SubjectModel, rows: Sequence[Row], autoencoders: AutoencoderSet = NO_AUTOENCODERS
) -> list[RunResult]:
    """Runs the model forward once for all rows, and backward once where a gradient is captured.

    No row's result depends on the others. A loss and a trace are evaluated wherever there is one.
    The run ends between the passes once nobody waits for any row, with what the last row's check
    raised. Captured tensors are views of those of the whole batch. ValueError where a gradient is
    captured without a loss or a trace.
    """
    if any(row.has_backward and not row.prepared.has_gradient for row in rows):
        raise ValueError("a gradient needs a loss or a trace")
    backward = any(row.has_backward for row in rows)
    before = _memory(model.device)
    started = _now(model.device)
    packing = Packing([len(row.prepared.tokens) for row in rows], model.device)
    taps = Taps(packing, [_row_taps(row, model) for row in rows], autoencoders, backward=backward)
    with torch.enable_grad() if backward else torch.inference_mode():
        losses = _run_forward(model, rows, taps)
        traced = [
            _traced_activation(model, row, index, taps, autoencoders)
            for index, row in enumerate(rows)
        ]
        _check(rows)
        if backward:
            # A trace beside a loss has used the loss already: see `Trace`.
            starts = (
                loss if trace is None else trace for loss, trace in zip(losses, traced, strict=True)
            )
            taps.differentiate([start for start in starts if start is not None])
    seconds = _now(model.device) - started
    after = _memory(model.device)
    return [
        RunResult(
            raw_store=RawActivationStore(taps.row(index), model.shape.layers),
            loss=_value(losses[index]),
            seconds=seconds,
            memory_used_before=before,
            memory_used_after=after,
            traced_activation=_value(traced[index]),
        )
        for index in range(len(rows))
    ]


def _row_taps(row: Row, model: SubjectModel) -> RowTaps:
    trace = row.prepared.trace
    points = () if trace is None else trace.residual_points(model.shape.layers)
    return RowTaps(
        row.captures,
        row.prepared.overwrites,
        tuple((point.location, point.layer) for point in points),
    )


def _run_forward(model: SubjectModel, rows: Sequence[Row], taps: Taps) -> list[Tensor | None]:
    """Runs the forward pass; the loss of each row, where it has one."""
    packing = taps.packing
    tapped = {index for index in range(len(rows)) if taps.row_touches_logits(index)}
    logit_tokens: list[int] = []
    # How many logits each row gets: all of them, where they are tapped, or those of its loss.
    counts: list[int] = []
    for index, row in enumerate(rows):
        tokens, loss = packing.slices[index], row.prepared.loss
        before = len(logit_tokens)
        if index in tapped:
            logit_tokens.extend(range(tokens.start, tokens.stop))
        elif loss is not None:
            logit_tokens.append(tokens.start + loss.position)
        counts.append(len(logit_tokens) - before)
    wanted = torch.tensor(logit_tokens, device=model.device) if logit_tokens else None
    logits = model.forward(packing.pack([row.prepared.tokens for row in rows]), taps, wanted)
    if logits is None:
        return [None] * len(rows)
    ends = list(itertools.accumulate(counts))
    slices = {index: slice(ends[index] - counts[index], ends[index]) for index in tapped}
    logits = taps(logits, ActivationLocationType.LOGITS, None, slices)
    losses: list[Tensor | None] = []
    for index, of_row in enumerate(torch.split(logits, counts)):
        loss = rows[index].prepared.loss
        at = 0 if loss is None or index not in tapped else loss.position
        losses.append(None if loss is None else loss.of_logits(of_row[at]))
    return losses


def _traced_activation(
    model: SubjectModel, row: Row, index: int, taps: Taps, autoencoders: AutoencoderSet
) -> Tensor | None:
    trace = row.prepared.trace
    if trace is None:
        return None
    return trace.scalar(model, autoencoders, taps.residuals(index))


def _value(scalar: Tensor | None) -> float | None:
    return None if scalar is None else float(scalar.detach())


def _check(rows: Sequence[Row]) -> None:
    """Ends the run where nobody waits for any of its rows, with what the last one's check raised.

    No error is kept in a variable: its trace would hold it, and with it the run's tensors.
    """
    for row in rows[:-1]:
        with contextlib.suppress(Exception):
            row.check()
            return
    rows[-1].check()


def estimated_bytes(
    model: SubjectModel,
    n_tokens: int,
    captures: Collection[RawTensorId],
    overwrites: Collection[Overwrite] = (),
    autoencoders: AutoencoderSet = NO_AUTOENCODERS,
) -> int:
    """Memory that a run takes besides the weights, from above.

    The captured tensors; the tensors of one layer, or, for a backward pass, of all layers, which
    the graph keeps; a copy of what is overwritten; and the logits where they are all wanted. A
    place of an autoencoder takes its latents, and as much again twice to compute them.
    """
    shape = model.shape
    backward = any(target.pass_type is PassType.BACKWARD for target in captures)
    pairs = n_tokens * n_tokens * shape.attn_heads
    layer = 12 * n_tokens * shape.residual_stream_channels + 4 * n_tokens * shape.mlp_acts
    layer += 4 * pairs
    elements = layer * (shape.layers if backward else 1)
    overwritten = {overwrite.target for overwrite in overwrites}
    for target in (*captures, *overwritten):
        autoencoder = autoencoders.for_location(target.location)
        sizes = sizes_at(target.location.dimensions, shape, n_tokens, autoencoder, target.layer)
        elements += math.prod(sizes)
        if autoencoder is not None and target.layer is not None:
            elements += 3 * n_tokens * autoencoder.latent_count(target.layer)
    elements += _passing_logits(captures, overwritten, backward) * n_tokens * shape.vocab_size
    elements += 2 * shape.vocab_size
    return 4 * elements


def _passing_logits(
    captures: Collection[RawTensorId], overwritten: Collection[RawTensorId], backward: bool
) -> int:
    """How many tensors as large as all logits there are at a time, besides those that are kept."""
    changed, kept = (
        any(target.location is ActivationLocationType.LOGITS for target in targets)
        for targets in (overwritten, captures)
    )
    # The gradient of the loss's position is made as large as all, and then once more on the way.
    return 2 if backward and (changed or kept) else int(changed)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None
