"""Texts: the most probable id each time, or seeded draws."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from services.simulation.errors import InvalidInput
from services.simulation.language_models.interface import GenerationOptions
from services.simulation.language_models.local.prefixes import Prefix, Segment

if TYPE_CHECKING:
    from services.simulation.language_models.local.model import LocalModel


def generate_steps(
    model: LocalModel, prefix: Prefix, ids: Sequence[int], options: GenerationOptions
) -> Generator[None, None, tuple[tuple[int, ...], bool]]:
    """Ids that follow, and whether they ended before the limit; a forward pass a step.

    They end at the model's end-of-text ids, which aren't among them, or with the first text of
    `options.stop`, which is.
    """
    prompt = tuple(ids)
    if not prompt:
        raise InvalidInput("ids is empty; one id at least is needed", field="ids")
    if not (min(prompt) >= 0 and max(prompt) < model.vocabulary):
        raise InvalidInput("ids are outside of the vocabulary", field="ids")
    model.check_length(len(prefix) + len(prompt) + max(options.max_tokens - 1, 0))
    generator = np.random.default_rng(options.seed)
    ends = end_ids(model)
    written: list[int] = []
    own: Segment | None = None
    fresh = prompt
    while len(written) < options.max_tokens:
        if model.shares_prefix:
            segments = prefix.segments if own is None else (*prefix.segments, own)
            start = len(prefix) + (0 if own is None else len(own.ids))
            added, logits = model.extend(segments, start, fresh, last=True)
            own = added if own is None else joined(own, added)
        else:
            logits = model.after(prefix.ids + prompt + tuple(written))
        chosen = choose_id(logits, options.temperature, generator)
        if chosen in ends:
            return tuple(written), True
        written.append(chosen)
        if options.stop:
            text = model.tokenizer.decode(written)
            if any(stop in text for stop in options.stop):
                return tuple(written), True
        fresh = (chosen,)
        yield
    return tuple(written), False


def end_ids(model: LocalModel) -> frozenset[int]:
    """Ids that end a text."""
    found: set[int] = set()
    configured = getattr(model.loaded.model, "generation_config", None)
    for ids in (getattr(configured, "eos_token_id", None), model.tokenizer.eos_token_id):
        found |= set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
    return frozenset(found)


def choose_id(
    logits: torch.Tensor | None, temperature: float, generator: np.random.Generator
) -> int:
    """The most probable id for a temperature of 0, else a draw."""
    from services.simulation.language_models.local.model import not_finite

    if logits is None or not bool(torch.isfinite(logits).all()):
        raise not_finite()
    if temperature <= 0:
        return int(torch.argmax(logits))
    scaled = logits.double().cpu().numpy() / temperature
    weights = np.exp(scaled - scaled.max())
    sums = np.cumsum(weights)
    drawn = int(np.searchsorted(sums, generator.random() * sums[-1], side="right"))
    return min(drawn, len(sums) - 1)


def joined(own: Segment, added: Segment) -> Segment:
    """Two segments, one after the other, as one."""
    return Segment(
        own.ids + added.ids,
        own.start,
        [torch.cat(pair, dim=2) for pair in zip(own.keys, added.keys, strict=True)],
        [torch.cat(pair, dim=2) for pair in zip(own.values, added.values, strict=True)],
    )
