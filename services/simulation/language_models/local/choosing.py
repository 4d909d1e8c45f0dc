"""How probable given choices are as what comes next."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from services.simulation.errors import InvalidInput
from services.simulation.language_models.interface import Choice, Prompt
from services.simulation.language_models.local.conversation import prompt_ids
from services.simulation.language_models.local.rows import (
    Row,
    RowLogits,
    counted,
    prompt_cost,
)
from services.simulation.simulators.interface import SimulationCost
from services.simulation.simulators.words import readable

if TYPE_CHECKING:
    from services.simulation.language_models.local.model import LocalModel


def choose_steps(
    model: LocalModel, prompts: Sequence[Prompt], choices: Sequence[str], began: float
) -> Generator[None, None, list[Choice]]:
    """A choice a prompt, in order; prompts that share their beginning compute it once.

    A choice of several ids has the product of their probabilities. What another choice continues
    ("1" and "10") has the rest that the other leaves it.

    Raises:
        InvalidInput: fewer than two choices, an empty one, or two of the same ids.
    """
    ids = choice_ids(model, choices)
    single = all(len(choice) == 1 for choice in ids)
    split = [prompt_ids(model, prompt) for prompt in prompts]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (shared, _) in enumerate(split):
        groups.setdefault(shared, []).append(number)
    found: list[Choice | None] = [None] * len(prompts)
    for shared, numbers in groups.items():
        prefix = yield from model.prefix_steps([shared])
        if prefix.calls:
            yield
        rows = [row for number in numbers for row in _rows(split[number][1], ids, single)]
        results, calls = yield from counted(model.logits_steps(prefix, rows))
        cost = prompt_cost(prefix.computed, results, prefix.calls + calls)
        each = len(results) // len(numbers)
        for place, number in enumerate(numbers):
            own = results[place * each : (place + 1) * each]
            probabilities = _normalized(_log_probabilities(own, ids, single))
            first = SimulationCost(cost.calls, cost.computed, cost.reused)
            found[number] = Choice(probabilities, cost=SimulationCost() if place else first)
        yield
    seconds = (time.perf_counter() - began) / max(len(prompts), 1)
    return [
        Choice(choice.probabilities, cost=choice.cost + SimulationCost(seconds=seconds))
        for choice in found
        if choice is not None
    ]


def choice_ids(model: LocalModel, choices: Sequence[str]) -> list[tuple[int, ...]]:
    """Ids of each choice as it stands within a text, where no mark of a beginning is put."""
    if len(choices) < 2:
        raise InvalidInput("two choices at least are needed", field="choices")
    found: list[tuple[int, ...]] = []
    for number, choice in enumerate(choices):
        ids = text_ids(model, choice)
        if not ids or ids in found:
            raise InvalidInput(
                f"choices[{number}] is empty or the same as another to this model's tokenizer",
                field=f"choices[{number}]",
            )
        found.append(ids)
    return found


def text_ids(model: LocalModel, text: str) -> tuple[int, ...]:
    """Ids of a text that follows a newline; alone, some tokenizers put a space before it."""
    text = readable(text)
    before = model.tokenizer("\n", add_special_tokens=False)["input_ids"]
    both = model.tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
    if before and both[: len(before)] == before:
        return tuple(both[len(before) :])
    return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def _rows(own: tuple[int, ...], ids: Sequence[tuple[int, ...]], single: bool) -> list[Row]:
    """One row where all choices are of one id, else one a choice."""
    last = len(own) - 1
    if single:
        columns = np.asarray([choice[0] for choice in ids])
        return [Row(own, np.asarray([last]), columns)]
    return [
        Row(
            own + choice[:-1],
            last + np.arange(len(choice)),
            np.asarray(choice),
            normalized=True,
        )
        for choice in ids
    ]


def _log_probabilities(
    results: Sequence[RowLogits], ids: Sequence[tuple[int, ...]], single: bool
) -> NDArray[np.float64]:
    if single:
        logits: NDArray[np.float64] = results[0].values[0]
        return logits
    joint = np.empty(len(ids))
    for number, result in enumerate(results):
        assert result.normalizers is not None
        joint[number] = float((np.diagonal(result.values) - result.normalizers).sum())
    probabilities = np.exp(joint)
    for number, choice in enumerate(ids):
        longer = [
            place
            for place, other in enumerate(ids)
            if len(other) > len(choice)
            and other[: len(choice)] == choice
            # Of what continues it, the nearest ones hold the others already.
            and not any(
                len(choice) < len(between) < len(other)
                and between[: len(choice)] == choice
                and other[: len(between)] == between
                for between in ids
            )
        ]
        if longer:
            share = probabilities[longer].sum() / probabilities[number]
            joint[number] += np.log(max(1.0 - share, 1e-12))
    return joint


def _normalized(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logs - logs.max())
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities
