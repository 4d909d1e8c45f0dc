"""Whether a model is causal, finite, and gives the same logits with a shared prefix as without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from services.simulation.language_models.local import attention
from services.simulation.language_models.local.rows import Row

if TYPE_CHECKING:
    from services.simulation.language_models.local.model import LocalModel

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
"""Of the largest logit; it is rounding that differs, by layers and number format."""

_FOLLOWED_LAYERS = frozenset({"full_attention", "sliding_attention"})
_ROPE_BY_LENGTH = frozenset({"dynamic", "longrope"})


class NotCausal(Exception):
    """What the model answers at a token depends on later ones."""


def probe(model: LocalModel) -> None:
    """Decide `model.shares_prefix`, with the reason.

    Raises:
        NotCausal: the model isn't causal.
        FailedPrecondition: it answers what isn't finite.
    """
    generator = np.random.default_rng(0)
    room = model.max_positions or 64
    prefix_ids, own, branch = _probe_ids(generator, model.vocabulary, min(room, 40))
    columns = np.unique(generator.integers(0, model.vocabulary, 8))
    rows = [
        Row(own, np.asarray([0, len(own) - 1]), columns, branch),
        Row(own[::-1], np.arange(len(own)), columns),
        Row(own[:1], np.asarray([0]), columns),
    ]
    plain = model.prefix([prefix_ids])
    whole = model.logits(plain, rows)
    scale = max(float(np.abs(result.values).max()) for result in whole)
    tolerance = _TOLERANCE[model.loaded.model.dtype] * max(scale, 1e-3)
    # The first logits of a row are those of the row that ends there.
    alone = model.logits(plain, [Row(own[:1], np.asarray([0]), columns)])[0]
    if np.abs(alone.values[0] - whole[0].values[0]).max() > tolerance:
        raise NotCausal(
            "it is no causal language model: what it answers at a token depends on later ones"
        )
    reason = _not_followed(model.loaded.model.config.get_text_config())
    if not reason:
        reason = _try_sharing(model, prefix_ids, rows, whole, tolerance)
    model.shares_prefix = not reason
    model.shares_prefix_reason = reason
    model.cache.clear()


def _try_sharing(
    model: LocalModel, prefix_ids: tuple[int, ...], rows: list[Row], whole: Any, tolerance: float
) -> str:
    attention.register()
    model.shares_prefix = True
    half = len(prefix_ids) // 2
    try:
        prefix = model.prefix([prefix_ids[:half], prefix_ids[half:]])
        shared = model.logits(prefix, rows)
        layers = len(prefix.segments[0].keys)
        _check_layers(model, prefix, layers)
    # Models of other people's code meet a call that they weren't written for.
    except Exception as error:  # noqa: BLE001
        return f"its attention can't be followed ({type(error).__name__}: {error})"[:300]
    finally:
        model.shares_prefix = False
    for got, expected in zip(shared, whole, strict=True):
        parts = [(got.values, expected.values)]
        if got.branch_values is not None:
            parts.append((got.branch_values, expected.branch_values))
        difference = max(float(np.abs(a - b).max()) for a, b in parts)
        if not difference <= tolerance:
            return f"its logits would differ by {difference:.2g}"
    return ""


def _not_followed(config: Any) -> str:
    """Why this model's configuration alone rules sharing out; empty where it doesn't."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - _FOLLOWED_LAYERS:
        return f"it has layers of the kind {', '.join(sorted(kinds - _FOLLOWED_LAYERS))}"
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [value for value in rope.values() if isinstance(value, dict)]
    if any(part.get("rope_type") in _ROPE_BY_LENGTH for part in (rope, *by_layer)):
        return "its position code depends on the length of the prompt"
    return ""


def _check_layers(model: LocalModel, prefix: Any, layers: int) -> None:
    """Every layer must have come by, and have told the window that its configuration says."""
    config = model.loaded.model.config.get_text_config()
    if layers != config.num_hidden_layers:
        raise attention.NotShared(f"{layers} of {config.num_hidden_layers} layers came by")
    windows = model.windows
    kinds = getattr(config, "layer_types", None)
    configured = getattr(config, "sliding_window", None)
    for layer, window in windows.items():
        slides = configured is not None if kinds is None else kinds[layer] == "sliding_attention"
        if slides != (window is not None) or (slides and window != configured):
            raise attention.NotShared(f"layer {layer} doesn't say what it sees")


def _probe_ids(
    generator: np.random.Generator, vocabulary: int, room: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    prefix = max(2, room // 2)
    own = max(2, room // 4)
    ids = generator.integers(0, vocabulary, prefix + own + 2).tolist()
    return tuple(ids[:prefix]), tuple(ids[prefix : prefix + own]), tuple(ids[-2:])
