"""Differentiating one block at tensors at hand, apart from any run of the model.

Captured tensors may come out of an inference-mode run, and derivers may be called in one: both are
left here, so that the little computation that is differentiated is an ordinary one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

# torch counts the levels of forward mode for the whole process, not for each thread.
_FORWARD_MODE = threading.Lock()


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of a scalar function, of the shape of `at`; 0 where it does not depend on it."""
    with torch.inference_mode(False), torch.enable_grad():
        point = at.detach().clone().requires_grad_()
        value = function(point)
        if not value.requires_grad:
            return torch.zeros_like(point).detach()
        (found,) = torch.autograd.grad(value, point, allow_unused=True, materialize_grads=True)
    return found


def directional_derivative(
    function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor
) -> Tensor:
    """How fast a function's value changes at a point along a direction of the point's shape.

    Forward-mode: one pass, of about twice the work of the function itself.
    """
    with _FORWARD_MODE, torch.inference_mode(False), torch.no_grad():
        change: Tensor = torch.func.jvp(
            function, (at.detach().clone(),), (along.detach().clone(),)
        )[1]
    return change
