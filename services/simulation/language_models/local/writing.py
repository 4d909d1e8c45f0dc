"""Texts that a local model writes after prompts."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from services.simulation.errors import InvalidInput
from services.simulation.language_models.interface import Generation, GenerationOptions, Prompt
from services.simulation.language_models.local.conversation import prompt_ids
from services.simulation.language_models.local.generation import generate_steps
from services.simulation.simulators.interface import SimulationCost

if TYPE_CHECKING:
    from services.simulation.language_models.local.model import LocalModel

_TEXTS_AT_ONCE = 16

Split = tuple[tuple[int, ...], tuple[int, ...]]


def write_steps(
    model: LocalModel, prompts: Sequence[Prompt], options: GenerationOptions
) -> Generator[None, None, list[Generation]]:
    """A text a prompt, in order; the prompt at position i is drawn with the seed `seed + i`.

    Up to 16 neighbouring prompts that begin alike are written together, a token of each a pass.

    Raises:
        InvalidInput: `max_tokens` is below 1.
    """
    if options.max_tokens < 1:
        raise InvalidInput("max_tokens must be 1 at least", field="max_tokens")
    split = [prompt_ids(model, prompt) for prompt in prompts]
    texts: list[Generation] = []
    while len(texts) < len(split):
        start = len(texts)
        together = [split[start]]
        while (
            start + len(together) < len(split)
            and len(together) < _TEXTS_AT_ONCE
            and split[start + len(together)][0] == together[0][0]
        ):
            together.append(split[start + len(together)])
        each = [replace(options, seed=options.seed + start + n) for n in range(len(together))]
        texts += yield from _together(model, together, each)
    return texts


def _together(
    model: LocalModel, split: Sequence[Split], options: Sequence[GenerationOptions]
) -> Generator[None, None, list[Generation]]:
    began = time.perf_counter()
    segments = [split[0][0]]
    if len(set(split)) == 1:
        # Who draws several texts after one prompt may well ask for more of them.
        ((shared, own),) = set(split)
        segments = [shared, own[:-1]]
        split = [(shared + own[:-1], own[-1:])] * len(split)
    shared = split[0][0]
    prefix = yield from model.prefix_steps(segments)
    if prefix.calls:
        yield
    owns = [own for _, own in split]
    written, calls = yield from generate_steps(model, prefix, owns, options)
    seconds = time.perf_counter() - began
    texts: list[Generation] = []
    seen: set[tuple[int, ...]] = set()
    for number, ((_, own), text) in enumerate(zip(split, written, strict=True)):
        tokens = len(shared) + len(own)
        computed = 0 if own in seen else len(own)
        reused = tokens - computed
        if not model.shares_prefix:
            computed, reused = tokens * text.passes, 0
        elif not number:
            computed, reused = computed + prefix.computed, reused - prefix.computed
        seen.add(own)
        cost = SimulationCost(
            calls=0 if number else prefix.calls + calls,
            prompt_tokens_computed=computed,
            prompt_tokens_reused=reused,
            completion_tokens=len(text.ids),
            seconds=seconds / len(split),
        )
        words = _text(model, text.ids, options[number].stop)
        texts.append(Generation(words, text.finished, cost))
    return texts


def _text(model: LocalModel, ids: Sequence[int], stop: Sequence[str]) -> str:
    text = str(model.tokenizer.decode(list(ids), skip_special_tokens=True))
    ends = [place for place in (text.find(each) for each in stop) if place >= 0]
    return text[: min(ends)] if ends else text
