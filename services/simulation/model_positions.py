"""How many tokens a model of transformers reads, by its configuration and its position vectors."""

from __future__ import annotations

from typing import Any

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""What configurations call it; the first that one has counts."""


def max_positions(model: Any) -> int | None:
    """The most tokens at once; None where nothing bounds them."""
    config = model.config.get_text_config()
    limits = []
    for name in _NAMES:
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            limits.append(limit)
            break
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding's number.
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min(limits, default=None)
