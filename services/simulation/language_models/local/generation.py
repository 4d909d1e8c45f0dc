"""Texts: the most probable id each time, or seeded draws; several texts in one pass a token."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from services.simulation.errors import InvalidInput
from services.simulation.language_models.interface import GenerationOptions
from services.simulation.language_models.local.prefixes import Prefix, Segment
from services.simulation.language_models.local.rows import not_finite

if TYPE_CHECKING:
    from services.simulation.language_models.local.model import LocalModel


@dataclass(frozen=True)
class Written:
    """A text that was written."""

    ids: tuple[int, ...]
    finished: bool
    """Whether it ended before the limit."""
    passes: int
    """How often its prompt was computed or read."""


@dataclass
class _Text:
    """A text that is being written."""

    prompt: tuple[int, ...]
    options: GenerationOptions
    generator: np.random.Generator
    past: Segment | None = None
    written: list[int] = field(default_factory=list)
    passes: int = 0
    finished: bool = False

    @property
    def goes_on(self) -> bool:
        return not self.finished and len(self.written) < self.options.max_tokens


def generate_steps(
    model: LocalModel,
    prefix: Prefix,
    prompts: Sequence[tuple[int, ...]],
    options: Sequence[GenerationOptions],
) -> Generator[None, None, tuple[list[Written], int]]:
    """What follows the prefix and each of the prompts, and the forward passes that it took.

    A forward pass a step.

    A text ends at one of the model's end-of-text ids, which isn't of it, or with the first of its
    `stop` texts, which is. Prompts of the same ids are computed once.
    """
    texts = []
    for number, (prompt, each) in enumerate(zip(prompts, options, strict=True)):
        if not prompt:
            raise InvalidInput(f"prompts[{number}] is empty; one id at least is needed")
        if not (min(prompt) >= 0 and max(prompt) < model.vocabulary):
            raise InvalidInput(f"prompts[{number}] has ids outside of the vocabulary")
        model.check_length(len(prefix) + len(prompt) + max(each.max_tokens - 1, 0))
        texts.append(_Text(prompt, each, np.random.default_rng(each.seed)))
    ends = end_ids(model)
    calls = 0
    read: dict[tuple[int, ...], tuple[Segment, torch.Tensor]] = {}
    for text in texts:
        if not text.goes_on:
            continue
        if not model.shares_prefix:
            continue
        if text.prompt not in read:
            read[text.prompt] = model.read(prefix, text.prompt)
            calls += 1
            yield
        text.past, logits = read[text.prompt]
        _go_on(model, text, logits, ends)
    del read
    while going := [text for text in texts if text.goes_on]:
        if not model.shares_prefix:
            for text in going:
                whole = prefix.ids + text.prompt + tuple(text.written)
                _go_on(model, text, model.after(whole), ends)
                calls += 1
                yield
            continue
        pasts = [text.past for text in going if text.past is not None]
        ids = [text.written[-1] for text in going]
        longer, logits = model.next_tokens(prefix, pasts, ids)
        for number, text in enumerate(going):
            text.past = longer[number]
            _go_on(model, text, logits[number], ends)
        calls += 1
        yield
    written = [Written(tuple(text.written), text.finished, text.passes) for text in texts]
    return written, calls


def _go_on(model: LocalModel, text: _Text, logits: torch.Tensor, ends: frozenset[int]) -> None:
    text.passes += 1
    chosen = choose_id(logits, text.options.temperature, text.generator)
    if chosen in ends:
        text.finished = True
        return
    text.written.append(chosen)
    if text.options.stop:
        so_far = model.tokenizer.decode(text.written)
        text.finished = any(stop in so_far for stop in text.options.stop)


def end_ids(model: LocalModel) -> frozenset[int]:
    """Ids that end a text."""
    found: set[int] = set()
    configured = getattr(model.loaded.model, "generation_config", None)
    for ids in (getattr(configured, "eos_token_id", None), model.tokenizer.eos_token_id):
        found |= set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
    return frozenset(found)


def choose_id(logits: torch.Tensor, temperature: float, generator: np.random.Generator) -> int:
    """The most probable id for a temperature of 0, else a draw."""
    if not bool(torch.isfinite(logits).all()):
        raise not_finite()
    if temperature <= 0:
        return int(torch.argmax(logits))
    values = logits.double().cpu().numpy()
    # The largest becomes 0 first: divided by a tiny temperature, it would be infinite.
    with np.errstate(over="ignore"):
        sums = np.cumsum(np.exp((values - values.max()) / temperature))
    drawn = int(np.searchsorted(sums, generator.random() * sums[-1], side="right"))
    return min(drawn, len(sums) - 1)
