"""What the index knows of an explanation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.formats.decoding import SimulationResults
from shared.formats.simulations import finite_or_none

MAX_TEXT_CHARACTERS = 65_536
"""Of a longer explanation the beginning is searched and answered."""


@dataclass(frozen=True, slots=True)
class FileKey:
    """An explanation file: its folder's number in the index, its layer and component."""

    folder: int
    layer_index: int
    component_index: int


@dataclass(frozen=True, slots=True)
class Text:
    """An explanation as a file has it; `score` is NaN where it is undefined."""

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Document:
    """An explanation in the index, the `ordinal`th of its file, from 0."""

    id: int
    file: FileKey
    ordinal: int
    text: str
    score: float

    @property
    def score_or_none(self) -> float | None:
        """The preferred score; None where it is undefined."""
        return None if math.isnan(self.score) else self.score


def texts_of(results: SimulationResults) -> list[Text]:
    """The explanations of a file, in its order."""
    return [
        Text(storable(scored.explanation), _score(scored.get_preferred_score()))
        for scored in results.scored_explanations
    ]


def storable(text: str) -> str:
    """`text` without what UTF-8 has no form for (a lone surrogate becomes a question mark)."""
    return text[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace").decode()


def _score(score: float | None) -> float:
    finite = finite_or_none(score)
    return math.nan if finite is None else finite
