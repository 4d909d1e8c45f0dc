"""What a subject model must offer, whatever its family.

Derived scalars are written against this protocol alone. A new family is one class that satisfies it
and one entry in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from services.scalars.model.checkpoint import MODEL_KEY, Checkpoint
from services.scalars.model.gpt2 import Gpt2
from services.scalars.model.locations import ModelShape
from services.scalars.model.taps import Taps
from services.scalars.model.weights import WriteWeights
from shared.errors import ConfigurationError


class SubjectModel(Protocol):
    """A causal language model on one device, its weights frozen.

    Weights are in the orientation in which they are used here: rows are what writes, columns the
    residual stream.
    """

    @property
    def shape(self) -> ModelShape: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def write(self) -> WriteWeights:
        """Weights through which nodes write to the residual stream."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        ...

    def forward(
        self, tokens: Tensor, taps: Taps, logit_positions: Sequence[int] | None
    ) -> Tensor | None:
        """Runs the tokens, an int64 tensor of shape (T,), handing every named tensor to the taps.

        Answers logits of shape (len(logit_positions), V), or None where no logits are asked for
        (an empty sequence). None asks for all positions; only then are `logits` tapped.
        """
        ...


FAMILIES = {"gpt2": Gpt2}


def build_model(checkpoint: Checkpoint, device: torch.device) -> SubjectModel:
    """The model of a checkpoint, by its config's model_type; ConfigurationError if unknown."""
    name = checkpoint.config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise ConfigurationError(
            MODEL_KEY,
            f"config.json: model_type is {name!r}; these are served: {', '.join(sorted(FAMILIES))}",
        )
    return family.from_checkpoint(checkpoint, device)
