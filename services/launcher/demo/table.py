"""What the demo prints at its end."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.launcher.demo.job import DemoResult, top_tokens
from services.launcher.demo.naming import node_name, number, quoted

TOP_TOKENS = 8
SHOWN_EFFECTS = 8
SHOWN_SCORES = 8


def summary(result: DemoResult) -> RenderableType:
    """A neuron's top tokens, direct effects on a prompt, and scores before and after."""
    return Group(_neuron(result), "", _effects(result), "", _scores(result))


def _neuron(result: DemoResult) -> Table:
    featured = result.featured
    table = _table(f"What {featured.name} responds to: {featured.explanation}")
    table.add_column("top token")
    table.add_column("largest activation", justify="right")
    table.add_column("top sequences", justify="right")
    for token, activation, count in top_tokens(result.record)[:TOP_TOKENS]:
        table.add_row(Text(quoted(token)), number(activation), str(count))
    own = result.own_effects
    if own is not None:
        peak = int(np.argmax(own.activations))
        table.caption = Text(
            f"In its strongest text its direct effect on what follows, {quoted(own.target)},"
            f" is {number(own.effects[peak], 3, sign=True)} at {quoted(own.tokens[peak])}."
        )
    return table


def _effects(result: DemoResult) -> Table:
    effects = result.effects
    table = _table(
        f"Strongest direct effects on {quoted(effects.target)} against"
        f" {quoted(effects.distractor)} after “{effects.prompt}”"
        f" (logit difference {number(effects.difference, sign=True)})"
    )
    table.add_column("node")
    table.add_column("direct effect", justify="right")
    for node in effects.nodes[:SHOWN_EFFECTS]:
        (value,) = node.values.values()
        table.add_row(Text(node_name(node, effects.tokens)), number(value, 3, sign=True))
    return table


def _scores(result: DemoResult) -> Table:
    table = _table("Explanations, simulated and scored: before and after calibration")
    table.add_column("neuron", no_wrap=True)
    table.add_column("explanation", ratio=1)
    table.add_column("correlation", justify="right", no_wrap=True)
    table.add_column("R² before", justify="right", no_wrap=True)
    table.add_column("R² after", justify="right", no_wrap=True)
    ranked = sorted(result.scored.items(), key=lambda pair: pair[0] != result.featured)
    for neuron, scored in ranked[:SHOWN_SCORES]:
        table.add_row(
            f"{neuron.layer_index}:{neuron.index}",
            Text(neuron.explanation),
            number(scored.score),
            number(scored.uncalibrated_scores["r_squared"]),
            number(scored.scores["r_squared"]),
            style="bold" if neuron == result.featured else None,
        )
    more = len(ranked) - SHOWN_SCORES
    if more > 0:
        table.caption = f"{more} more are in the report."
    return table


def _table(title: str) -> Table:
    return Table(
        title=Text(title), title_justify="left", title_style="bold", caption_justify="left"
    )
