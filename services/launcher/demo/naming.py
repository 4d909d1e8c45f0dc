"""How tokens and nodes are written for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

import neuropil

_VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\v": "␋", "\f": "␌"}


def visible(token: str) -> str:
    """A token whose line breaks and controls can be seen; the space before a word is kept."""
    return "".join(
        _VISIBLE.get(c, c if c.isprintable() or c == " " else f"\\x{ord(c):02x}") for c in token
    )


def quoted(token: str) -> str:
    """A token by itself: blanks at its ends are seen by the quotation marks."""
    return f"“{visible(token)}”"


def node_name(node: neuropil.Node, tokens: Sequence[str]) -> str:
    """A node as people write it, for example ``layer 1, head 2: " of" reads " Israel"``."""
    *places, part = node.indices
    at = [f"{quoted(tokens[place])} ({place})" for place in places]
    where = f"layer {node.layer_index}, "
    if node.node_type == "attention_head":
        return f"{where}head {part}: {at[0]} reads {at[1]}"
    return f"{where}neuron {part} at {at[0]}"


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number with a true minus sign; – where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")
