"""What a subject model must offer, whatever its family.

Derived scalars are written against this protocol alone. A new family is one class that satisfies it
and one entry in `FAMILIES`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from services.scalars.model.blocks import (
    ALL_PARTS,
    AttentionPart,
    HeadActivations,
    MlpActivations,
)
from services.scalars.model.checkpoint import MODEL_KEY, Checkpoint
from services.scalars.model.gpt2 import Gpt2
from services.scalars.model.llama import Llama
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

    @property
    def token_embedding(self) -> Tensor:
        """What each token puts into the residual stream, (V, D), without its position."""
        ...

    def attention_heads(
        self,
        layer: int,
        residual: Tensor,
        *,
        attached: frozenset[AttentionPart] = ALL_PARTS,
        detach_scale: bool = False,
    ) -> HeadActivations:
        """The heads of a layer, for the residual stream (T, D) that enters it.

        Parts that are not attached are constants; so is the layer norm's scale with
        `detach_scale`.
        """
        ...

    def attention_parts(
        self, layer: int, residual: Tensor, positions: Tensor, *, detach_scale: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (N, H, dh) each, of some tokens, as in `HeadActivations`.

        `residual` (N, D) enters the layer at them, `positions` (N,) say where in their sequence.
        """
        ...

    def attention_output(self, layer: int, mixed: Tensor) -> Tensor:
        """What heads write together, (T, D), for `HeadActivations.mixed`; bias included."""
        ...

    def mlp_neurons(
        self,
        layer: int,
        residual: Tensor,
        *,
        detach_scale: bool = False,
        neurons: Tensor | None = None,
    ) -> MlpActivations:
        """The neurons of a layer, for the residual stream (T, D) that enters its MLP block.

        `neurons`, indices of shape (N,), says which alone are wanted.
        """
        ...

    def mlp_output(self, layer: int, post_act: Tensor) -> Tensor:
        """What neurons write together, (T, D), for `MlpActivations.post_act`; bias included."""
        ...

    def logits(self, residual: Tensor, *, detach_scale: bool = False) -> Tensor:
        """Next-token logits (T, V), for the residual stream (T, D) after the last layer."""
        ...

    def forward(self, tokens: Tensor, taps: Taps, logit_tokens: Tensor | None) -> Tensor | None:
        """Runs packed sequences, an int64 tensor (N,), handing every named tensor to the taps.

        Answers logits (M, V) for the places `logit_tokens` (M,) on the packed axis, or None where
        no logits are asked for; then the pass ends once everything was tapped that is asked for.
        The logits themselves are the caller's to tap. The residual stream that enters a layer goes
        through `Taps.begin`, attention through `attend`.
        """
        ...


FAMILIES: dict[str, type[Gpt2] | type[Llama]] = {
    "gpt2": Gpt2,
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
}


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
