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


def write_steps(
    model: LocalModel, prompts: Sequence[Prompt], options: GenerationOptions
) -> Generator[None, None, list[Generation]]:
    """A text a prompt, in order; the prompt at position i is drawn with the seed `seed + i`.

    Raises:
        InvalidInput: `max_tokens` is below 1.
    """
    if options.max_tokens < 1:
        raise InvalidInput("max_tokens must be 1 at least", field="max_tokens")
    texts = []
    for number, prompt in enumerate(prompts):
        began = time.perf_counter()
        calls = model.calls
        shared, own = prompt_ids(model, prompt)
        prefix = yield from model.prefix_steps([shared])
        each = replace(options, seed=options.seed + number)
        ids, finished = yield from generate_steps(model, prefix, own, each)
        text = str(model.tokenizer.decode(list(ids), skip_special_tokens=True))
        ends = [place for place in (text.find(stop) for stop in options.stop) if place >= 0]
        if ends:
            text = text[: min(ends)]
        computed = prefix.computed + len(own)
        if not model.shares_prefix:
            computed += len(shared)
        cost = SimulationCost(
            calls=model.calls - calls,
            prompt_tokens_computed=computed,
            prompt_tokens_reused=len(shared) + len(own) - computed,
            completion_tokens=len(ids),
            seconds=time.perf_counter() - began,
        )
        texts.append(Generation(text, finished, cost))
    return texts
