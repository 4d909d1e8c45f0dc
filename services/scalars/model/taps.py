"""How a forward pass exposes its activations.

A model's forward pass hands every tensor that has a name to `Taps`, and goes on with what it gets
back. That one mechanism overwrites (ablates) activations and gradients and captures what was asked
for. An ablation in the forward pass sets elements of the activation; one in the backward pass sets
elements of the gradient as it flows by. What is captured is what the rest of the computation saw:
after the ablation, in both passes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.scalars.model.locations import ActivationLocationType, LayerIndex, PassType


@dataclass(frozen=True)
class RawTensorId:
    """One tensor of a forward pass, or its gradient."""

    location: ActivationLocationType
    layer: LayerIndex
    pass_type: PassType


@dataclass(frozen=True)
class Overwrite:
    """Elements of one tensor and the value that they are set to.

    `index` has an entry an axis; a slice takes the whole axis.
    """

    target: RawTensorId
    index: tuple[int | slice, ...]
    value: float

    def applied_to(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor with the elements set."""
        changed = tensor.clone()
        changed[self.index] = self.value
        return changed


class Taps:
    """Captures and overwrites the named tensors of one forward pass and its backward pass.

    `captures` are the tensors wanted; `overwrites` the ablations, applied in the order given.
    `backward` says whether a backward pass will follow, even if no gradient is captured.
    """

    def __init__(
        self,
        captures: Collection[RawTensorId],
        overwrites: Sequence[Overwrite] = (),
        *,
        backward: bool = False,
    ) -> None:
        self._captures = frozenset(captures)
        self._overwrites: dict[RawTensorId, list[Overwrite]] = {}
        for overwrite in overwrites:
            self._overwrites.setdefault(overwrite.target, []).append(overwrite)
        self.backward = backward
        self._forward: dict[RawTensorId, Tensor] = {}
        self._inputs: dict[RawTensorId, Tensor] = {}
        self._touched = frozenset(
            (target.location, target.layer) for target in (*self._captures, *self._overwrites)
        )

    def touches(self, location: ActivationLocationType, layer: LayerIndex = None) -> bool:
        """Whether anything is captured or overwritten there, in either pass."""
        return (location, layer) in self._touched

    def last_layer(self) -> int:
        """The last layer that anything is captured from; -1 where nothing is."""
        return max(
            (target.layer for target in self._captures if target.layer is not None), default=-1
        )

    def __call__(
        self, tensor: Tensor, location: ActivationLocationType, layer: LayerIndex = None
    ) -> Tensor:
        """The tensor that the forward pass must go on with."""
        if (location, layer) not in self._touched:
            return tensor
        forward = RawTensorId(location, layer, PassType.FORWARD)
        backward = RawTensorId(location, layer, PassType.BACKWARD)
        for overwrite in self._overwrites.get(forward, ()):
            tensor = overwrite.applied_to(tensor)
        if self.backward and tensor.requires_grad:
            for overwrite in self._overwrites.get(backward, ()):
                tensor.register_hook(overwrite.applied_to)  # type: ignore[no-untyped-call]
            if backward in self._captures:
                self._inputs[backward] = tensor
        if forward in self._captures:
            self._forward[forward] = tensor.detach()
        return tensor

    def activations(self) -> Mapping[RawTensorId, Tensor]:
        """What was captured of the forward pass."""
        return self._forward

    def gradients(self, loss: Tensor) -> Mapping[RawTensorId, Tensor]:
        """The captured gradients of a scalar; zero where it does not depend on the tensor.

        Weights take no part: only activations are differentiated, and nothing is left behind.
        """
        if not self._inputs:
            return {}
        gradients = torch.autograd.grad(
            loss, list(self._inputs.values()), allow_unused=True, materialize_grads=True
        )
        captured: dict[RawTensorId, Tensor] = {}
        for target, gradient in zip(self._inputs, gradients, strict=True):
            # autograd hands out the gradient as it was before the hooks of a non-leaf tensor ran.
            for overwrite in self._overwrites.get(target, ()):
                gradient = overwrite.applied_to(gradient)
            captured[target] = gradient
        return captured
