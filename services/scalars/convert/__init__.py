"""Between the contract's messages and the domain's objects, and nothing more."""

from __future__ import annotations

from services.scalars.convert.answers import (
    component_scalars,
    inference_result,
    token_pair_sequences,
    tokenized_texts,
    top_nodes,
)
from services.scalars.convert.batches import batch_response
from services.scalars.convert.frames import check_row, checked_size, frames
from services.scalars.convert.model import model_info, scalar_type
from services.scalars.convert.requests import (
    batch_inferences,
    component_by_token_pair_spec,
    component_spec,
    inference_spec,
    selection,
    top_nodes_spec,
)

__all__ = [
    "batch_inferences",
    "batch_response",
    "check_row",
    "checked_size",
    "component_by_token_pair_spec",
    "component_scalars",
    "component_spec",
    "frames",
    "inference_result",
    "inference_spec",
    "model_info",
    "scalar_type",
    "selection",
    "token_pair_sequences",
    "tokenized_texts",
    "top_nodes",
    "top_nodes_spec",
]
