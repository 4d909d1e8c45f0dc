"""Errors of forward passes, as callers are told of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.errors import FailedPrecondition, ResourceExhausted

_NO_MEMORY_ON_CPU = "DefaultCPUAllocator"


@contextmanager
def refusing_what_fails(tokens: int) -> Iterator[None]:
    """Turn what torch raises in a pass over so many tokens into an error with a reason.

    Raises:
        ResourceExhausted: there isn't memory enough.
        FailedPrecondition: the model can't compute it, such as more tokens than it has positions
            for, where its configuration doesn't say how many.
    """
    try:
        yield
    except (RuntimeError, IndexError) as error:
        said = " ".join(str(error).split())[:300]
        if isinstance(error, torch.OutOfMemoryError) or _NO_MEMORY_ON_CPU in said:
            raise ResourceExhausted(
                f"the device has no memory for a pass of {tokens} tokens: a lower batch_tokens, or "
                f"cache_megabytes, may help ({said})",
                reason="OUT_OF_DEVICE_MEMORY",
                metadata={"tokens": str(tokens)},
            ) from error
        raise FailedPrecondition(
            f"the language model can't compute a pass of {tokens} tokens: {said}",
            reason="FORWARD_PASS_FAILED",
            metadata={"tokens": str(tokens)},
        ) from error
