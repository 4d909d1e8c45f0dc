"""One run of the subject model: a prompt, ablations, and a loss to take gradients of."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

from services.scalars.ablations import AblationSpec, resolve_ablations
from services.scalars.autoencoders import NO_AUTOENCODERS, AutoencoderSet, WithinLayerLatent
from services.scalars.autoencoders.within_layer import resolve_within_layer_latent
from services.scalars.deriving.activations import RawActivationStore
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.losses import Loss, LossSpec, resolve_loss
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.taps import Overwrite, RawTensorId, Taps
from services.scalars.model.tokenizer import TextTokenizer
from services.scalars.reuse import Memo
from services.scalars.traces import Trace, TraceSpec, resolve_trace


@dataclass(frozen=True)
class InferenceSpec:
    """What to run, as a request states it."""

    prompt: str
    ablations: tuple[AblationSpec, ...] = ()
    loss: LossSpec | None = None
    trace: TraceSpec | None = None
    within_layer_gradient_index: ActivationIndex | None = None


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
    """What a run left: raw activations, the loss's value, and the time it took.

    `seconds` is the time of forward and backward pass. Memory is that allocated on the device, in
    bytes, None on a CPU. `memo` remembers what was derived from the run, for later requests too
    where the run is kept.
    """

    raw_store: RawActivationStore
    loss: float | None
    seconds: float
    memory_used_before: int | None
    memory_used_after: int | None
    memo: Memo = field(default_factory=Memo)


def prepare_inference(
    spec: InferenceSpec,
    model: SubjectModel,
    tokenizer: TextTokenizer,
    field: str,
    autoencoders: AutoencoderSet = NO_AUTOENCODERS,
) -> PreparedInference:
    """Encodes and checks a run; InvalidArgument names the field, after the prefix `field`."""
    tokens = tokenizer.prompt(spec.prompt, model.shape.context, f"{field}.prompt")
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
            model,
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
        backward=loss is not None or trace is not None,
        field=f"{field}.ablations",
    )
    return PreparedInference(tuple(tokens), overwrites, loss, trace, within_layer_latent)


def run_inference(
    model: SubjectModel,
    prepared: PreparedInference,
    captures: Collection[RawTensorId],
    check: Callable[[], None] = lambda: None,
) -> RunResult:
    """Runs the model forward, and backward where a gradient is captured.

    A loss is evaluated whenever there is one. `check` is called between the passes and may raise,
    to end a run that nobody waits for any more. ValueError where a gradient is captured without a
    loss.
    """
    backward = any(target.pass_type is PassType.BACKWARD for target in captures)
    loss = prepared.loss
    if backward and loss is None:
        raise ValueError("a gradient needs a loss")
    taps = Taps(captures, prepared.overwrites, backward=backward)
    all_logits = taps.touches(ActivationLocationType.LOGITS)
    positions = None if all_logits else () if loss is None else (loss.position,)
    tokens = torch.tensor(prepared.tokens, device=model.device)
    before = _memory(model.device)
    started = _now(model.device)
    with torch.enable_grad() if backward else torch.inference_mode():
        logits = model.forward(tokens, taps, positions)
        value = None
        if loss is not None:
            if logits is None:
                raise ValueError("the model gave no logits for the loss")
            value = loss.of_logits(logits[loss.position if all_logits else 0])
        check()
        gradients = taps.gradients(value) if backward and value is not None else {}
    seconds = _now(model.device) - started
    return RunResult(
        raw_store=RawActivationStore({**taps.activations(), **gradients}, model.shape.layers),
        loss=None if value is None else float(value.detach()),
        seconds=seconds,
        memory_used_before=before,
        memory_used_after=_memory(model.device),
    )


def estimated_bytes(
    model: SubjectModel,
    n_tokens: int,
    captures: Collection[RawTensorId],
    overwrites: Collection[Overwrite] = (),
) -> int:
    """Memory that a run takes besides the weights, from above.

    The captured tensors; the tensors of one layer, or, for a backward pass, of all layers, which
    the graph keeps; a copy of what is overwritten; and the logits where they are all wanted.
    """
    shape = model.shape
    backward = any(target.pass_type is PassType.BACKWARD for target in captures)
    pairs = n_tokens * n_tokens * shape.attn_heads
    layer = 12 * n_tokens * shape.residual_stream_channels + 4 * n_tokens * shape.mlp_acts
    layer += 4 * pairs
    elements = layer * (shape.layers if backward else 1)
    for target in {*captures, *(overwrite.target for overwrite in overwrites)}:
        size = 1
        for length in shape.sizes(target.location.dimensions, n_tokens):
            size *= length
        elements += size
    elements += 2 * shape.vocab_size
    return 4 * elements


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None
