"""What a record is of, and what of it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import InvalidArgument
from shared.formats.token_pairs import TOKEN_PAIR_TYPES


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a model over all tokens: the scalar that it has, its layer, its index there.

    Indices count from 0; InvalidArgument names the one that is negative.
    """

    derived_scalar_type: str
    layer_index: int
    component_index: int

    def __post_init__(self) -> None:
        for name in ("layer_index", "component_index"):
            if getattr(self, name) < 0:
                raise InvalidArgument(
                    f"{name} is {getattr(self, name)}, but indices count from 0.",
                    field=f"component.{name}",
                )

    @property
    def by_token_pair(self) -> bool:
        """Whether its activations are of token pairs, and not of tokens."""
        return self.derived_scalar_type in TOKEN_PAIR_TYPES

    @property
    def record_file(self) -> str:
        """Where its record is in a folder of records."""
        return f"{self.layer_index}/{self.component_index}.json"

    @property
    def explanation_file(self) -> str:
        """Where its explanations are in a folder of explanations."""
        return f"{self.layer_index}/{self.component_index}.jsonl"

    def __str__(self) -> str:
        return f"{self.derived_scalar_type} {self.layer_index}:{self.component_index}"


@dataclass(frozen=True, slots=True)
class View:
    """What of a record is wanted besides its top and random sequences."""

    quantile_samples: bool = False
    moments: bool = False
