"""What a bulk run may spend."""

from __future__ import annotations

from dataclasses import dataclass

from services.simulation.bulk.events import StoppedBy
from services.simulation.simulators.interface import SimulationCost


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits over all runs of a key; 0 is none."""

    max_tokens: int = 0
    """Prompt tokens that were computed, and completion tokens."""
    max_calls: int = 0

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return bool(self.max_tokens or self.max_calls)

    def reached_by(self, calls: float, tokens: float) -> StoppedBy:
        """Which limit is reached, tokens before calls."""
        if self.max_tokens and tokens >= self.max_tokens:
            return StoppedBy.TOKENS
        if self.max_calls and calls >= self.max_calls:
            return StoppedBy.CALLS
        return StoppedBy.NOTHING


def tokens_of(cost: SimulationCost) -> int:
    """What counts against `Budget.max_tokens`; what was reused was not computed."""
    return cost.prompt_tokens_computed + cost.completion_tokens


def is_paid(cost: SimulationCost) -> bool:
    """Whether it cost anything that a budget may count."""
    return bool(cost.calls or tokens_of(cost))


class Spending:
    """What was spent, and what runs now will probably cost.

    An item that runs counts as what it has cost so far, or as the mean of those before it if that
    is more; as long as none before it tells what items cost, it runs alone. So a run ends over its
    budget by little, however many items run at once.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._running: dict[int, SimulationCost] = {}
        self._ended = SimulationCost()
        self._items = 0

    @property
    def running(self) -> int:
        """Number of items that run."""
        return len(self._running)

    @property
    def total(self) -> SimulationCost:
        """All that is known to be spent."""
        return sum(self._running.values(), self._ended)

    def earlier(self, cost: SimulationCost, items: int) -> None:
        """Count what earlier runs spent on so many items."""
        self._ended += cost
        self._items += items

    def begin(self, position: int) -> None:
        """An item begins."""
        self._running[position] = SimulationCost()

    def progress(self, position: int, cost: SimulationCost) -> None:
        """What an item has cost so far."""
        self._running[position] = cost

    def so_far(self, position: int) -> SimulationCost:
        """What an item that runs has cost."""
        return self._running[position]

    def end(self, position: int, cost: SimulationCost, *, has_result: bool) -> None:
        """An item has ended."""
        del self._running[position]
        self._ended += cost
        # What fails before it costs anything says nothing of what the others cost.
        self._items += has_result or is_paid(cost)

    def is_over(self) -> StoppedBy:
        """The limit that what is spent reaches, with what runs as far as it tells."""
        return self._budget.reached_by(self.total.calls, tokens_of(self.total))

    def has_room(self) -> bool:
        """Whether one more item may begin now: none that runs alone is ever held back."""
        if not self._running:
            return not self._is_reached(0.0, 0.0)
        if self._budget.is_limited and not self._items:
            return False
        items = max(self._items, 1)
        mean_calls, mean_tokens = self._ended.calls / items, tokens_of(self._ended) / items
        calls = sum(max(cost.calls, mean_calls) for cost in self._running.values())
        tokens = sum(max(tokens_of(cost), mean_tokens) for cost in self._running.values())
        return not self._is_reached(calls, tokens)

    def _is_reached(self, calls: float, tokens: float) -> bool:
        ended = self._ended
        reached = self._budget.reached_by(ended.calls + calls, tokens_of(ended) + tokens)
        return reached is not StoppedBy.NOTHING
