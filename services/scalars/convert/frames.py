"""What a message can hold, and tensors in the messages of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_tensor
from services.scalars.model.locations import LayerIndex
from shared.errors import ResourceExhausted

Answer = TypeVar("Answer", bound=Message)

FRAME_BYTES = 1 << 20
"""About how much of a tensor one message of a stream holds."""

MAX_ROW_BYTES = 15 << 20
"""Most of a tensor that one message can hold."""


def check_row(shape: Sequence[int], field: str) -> None:
    """Refuses a tensor one of whose rows is too large for a message."""
    row_bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
    if row_bytes > MAX_ROW_BYTES:
        raise ResourceExhausted(
            f"a row of this tensor takes {row_bytes} bytes; {MAX_ROW_BYTES} is the most. "
            "Ask for a range of one of its dimensions",
            field=field,
            reason="REQUEST_TOO_LARGE",
            metadata={"row_bytes": str(row_bytes), "limit_bytes": str(MAX_ROW_BYTES)},
        )


def checked_size(answer: Answer, max_bytes: int, field: str) -> Answer:
    """The same; ResourceExhausted, naming what asked for it, where a message can't hold it."""
    size = answer.ByteSize()
    if size > max_bytes:
        raise answer_too_large(size, max_bytes, field)
    return answer


def answer_too_large(size: int, max_bytes: int, field: str) -> ResourceExhausted:
    """The refusal of an answer of at least so many bytes."""
    return ResourceExhausted(
        f"the answer takes {size} bytes or more; a message holds {max_bytes}. Ask for less, or in "
        "several calls",
        field=field,
        reason="REQUEST_TOO_LARGE",
        metadata={"bytes": str(size), "limit_bytes": str(max_bytes)},
    )


def frames(
    position: int, layer: LayerIndex, array: NDArray[np.float32]
) -> Iterator[scalars.DeriveResponse]:
    """A tensor in messages of about a megabyte, at least one row each."""
    row_bytes = max(1, array[:1].nbytes)
    step = max(1, FRAME_BYTES // row_bytes)
    for first in range(0, len(array), step):
        yield scalars.DeriveResponse(
            frame=scalars.TensorFrame(
                selection=position,
                layer_index=layer,
                shape=array.shape,
                first_row=first,
                rows=to_tensor(array[first : first + step]),
            )
        )
