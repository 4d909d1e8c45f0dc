"""What a deriver needs besides its name."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from services.scalars.autoencoders import NO_AUTOENCODERS, AutoencoderSet, WithinLayerLatent
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.deriving.residual_points import ResidualPoint, leaving_last_layer
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.family import SubjectModel
from services.scalars.passes.nodes import Node
from services.scalars.passes.traces import Trace


@dataclass(frozen=True)
class DstConfig:
    """What a deriver needs besides its name.

    `layer_indices` are the layers wanted, None for all. `derive_gradients` says whether backward
    passes are wanted too. A backward pass starts from a `trace`, or else from a loss on the logits.

    `node_index` is the one node whose edges are attributed, `attention_part` the way into it where
    it is a head downstream of others, and `detach_layer_norm_scale` makes the scale of the layer
    norm before what is downstream a constant. `activation_index` is the activation whose read
    direction is wanted, `within_layer_latent` the latent that is attributed to attention.
    """

    model: SubjectModel
    layer_indices: tuple[int, ...] | None = None
    derive_gradients: bool = False
    autoencoders: AutoencoderSet = NO_AUTOENCODERS
    trace: Trace | None = None
    has_loss: bool = False
    node_index: Node | None = None
    attention_part: AttentionPart | None = None
    activation_index: ActivationIndex | None = None
    detach_layer_norm_scale: bool = False
    within_layer_latent: WithinLayerLatent | None = None

    @property
    def device(self) -> torch.device:
        """Where raw activations are."""
        return self.model.device

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.model.shape.layers

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers wanted, all of the model's by default."""
        return tuple(range(self.n_layers)) if self.layer_indices is None else self.layer_indices

    @property
    def final_residual(self) -> ResidualPoint:
        """The last point of the residual stream before what the backward pass starts from.

        That which the traced node's block reads; without a trace, that after the last MLP.
        """
        if self.trace is not None:
            return self.trace.residual
        return leaving_last_layer(self.n_layers)
