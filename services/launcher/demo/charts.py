"""Geometry of the report's pictures; the template draws it in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 320, 260
"""Of a scatter plot, in its own units; it scales to the page."""
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 40


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Scatter:
    """A scatter plot; positions are in its own units, the origin is at the top left."""

    points: list[tuple[float, float]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    line: tuple[float, float, float, float]
    """Where both values are the same."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def scatter(xs: Sequence[float], ys: Sequence[float]) -> Scatter:
    """Lay out points; pairs with a value that is not finite are left out."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    x_ticks = nice_ticks(*_range([x for x, _ in pairs]))
    y_ticks = nice_ticks(*_range([y for _, y in pairs]))

    def across(x: float) -> float:
        share = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def down(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 2)

    low = max(x_ticks[0], y_ticks[0])
    high = max(low, min(x_ticks[-1], y_ticks[-1]))
    return Scatter(
        points=[(across(x), down(y)) for x, y in pairs],
        x_ticks=[Tick(across(x), f"{x:g}".replace("-", "−")) for x in x_ticks],
        y_ticks=[Tick(down(y), f"{y:g}".replace("-", "−")) for y in y_ticks],
        line=(across(low), down(low), across(high), down(high)),
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, evenly apart, from at most `low` to at least `high`."""
    if not high - low > 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(f * magnitude for f in (1, 2, 2.5, 5, 10) if f * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _range(values: list[float]) -> tuple[float, float]:
    return (min([0.0, *values]), max([0.0, *values]) or 1.0)
