"""What a backward pass starts from: a scalar of the next-token logits at one position."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from services.scalars.model.tokenizer import TextTokenizer
from shared.errors import InvalidArgument


class LossKind(StrEnum):
    """Names of the losses."""

    LOGIT_DIFF = "logit_diff"
    LOGIT_MINUS_MEAN = "logit_minus_mean"
    PROBS = "probs"
    ZERO = "zero"


@dataclass(frozen=True)
class LossSpec:
    """A loss as a request states it.

    Targets and distractors are strings of exactly one token each; `position` is that of the logits
    that count, from 0 or from -1 at the end, None for the last.
    """

    kind: LossKind
    target_tokens: tuple[str, ...] = ()
    distractor_tokens: tuple[str, ...] = ()
    position: int | None = None


@dataclass(frozen=True)
class Loss:
    """A loss on a prompt at hand: token ids and a position from 0."""

    kind: LossKind
    targets: tuple[int, ...]
    distractors: tuple[int, ...]
    position: int

    def of_logits(self, logits: Tensor) -> Tensor:
        """The scalar, for the logits of shape (V,) at the loss's position.

        logit_diff: mean(logits[targets]) - mean(logits[distractors]), the latter 0 where there are
        none. logit_minus_mean: mean(logits[targets]) - mean(logits). probs: Σ softmax(logits) over
        the targets. zero: 0 · Σ logits, so that gradients come from backward ablations alone.
        """
        match self.kind:
            case LossKind.ZERO:
                return 0.0 * logits.sum()
            case LossKind.PROBS:
                return torch.softmax(logits, dim=0)[list(self.targets)].sum()
            case LossKind.LOGIT_MINUS_MEAN:
                return logits[list(self.targets)].mean() - logits.mean()
            case LossKind.LOGIT_DIFF:
                difference = logits[list(self.targets)].mean()
                if self.distractors:
                    difference = difference - logits[list(self.distractors)].mean()
                return difference


def resolve_loss(spec: LossSpec, tokenizer: TextTokenizer, n_tokens: int, field: str) -> Loss:
    """Checks a loss and finds its tokens.

    Raises InvalidArgument naming the field where a string is not one token, where targets are
    missing or distractors given that the loss has no use for, or where the position is not in the
    prompt.
    """
    position = n_tokens - 1 if spec.position is None else spec.position
    if not -n_tokens <= position < n_tokens:
        raise InvalidArgument(
            f"position {position} is not in the prompt of {n_tokens} tokens",
            field=f"{field}.position",
        )
    if spec.kind is not LossKind.ZERO and not spec.target_tokens:
        raise InvalidArgument(
            f"{spec.kind.value} needs at least 1 target token", field=f"{field}.target_tokens"
        )
    if spec.kind is not LossKind.LOGIT_DIFF and spec.distractor_tokens:
        raise InvalidArgument(
            f"{spec.kind.value} takes no distractor tokens; only logit_diff does",
            field=f"{field}.distractor_tokens",
        )

    def ids(texts: tuple[str, ...], name: str) -> tuple[int, ...]:
        return tuple(
            tokenizer.single_token(text, f"{field}.{name}[{index}]")
            for index, text in enumerate(texts)
        )

    return Loss(
        kind=spec.kind,
        targets=ids(spec.target_tokens, "target_tokens"),
        distractors=ids(spec.distractor_tokens, "distractor_tokens"),
        position=position % n_tokens,
    )
