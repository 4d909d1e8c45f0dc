"""How long replies are kept."""

from __future__ import annotations

import random

_SHORTEST = 0.9


def scattered(seconds: float) -> float:
    """A lifetime up to a tenth shorter, by chance.

    Replies that came together would else end together, and all be loaded anew at once.
    """
    return seconds * random.uniform(_SHORTEST, 1.0)
