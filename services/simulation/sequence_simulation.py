"""A simulation of one sequence, with its distributions as one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.errors import InvalidInput
from shared.formats import simulations as files
from shared.formats.simulations import ActivationScale

FloatArray = NDArray[np.float64]

NUM_VALUES = 11
NORMALIZED_VALUES: FloatArray = np.arange(NUM_VALUES, dtype=np.float64)
"""The values 0 to 10 that a simulator's distributions are over, before calibration, [11]."""
NORMALIZED_VALUES.flags.writeable = False


@dataclass(frozen=True, eq=False)
class SequenceSimulation:
    """Simulated activations of a component on a sequence of n tokens.

    `expected_activations` [n] is NaN at a token that the simulator gave no distribution for.
    `distribution_probabilities` [n, v] holds each token's probabilities of `distribution_values`
    [v]: the 11 values 0 to 10, or what a calibration maps them to. `uncalibrated_simulation` is
    what a calibration was applied to.
    """

    tokens: Sequence[str]
    expected_activations: FloatArray
    activation_scale: ActivationScale
    distribution_values: FloatArray
    distribution_probabilities: FloatArray
    uncalibrated_simulation: SequenceSimulation | None = None

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if self.expected_activations.shape != (n,):
            raise InvalidInput(
                f"expected_activations has shape {self.expected_activations.shape}, not ({n},): "
                "one value a token",
                field="expected_activations",
            )
        shape = (n, len(self.distribution_values))
        if self.distribution_probabilities.shape != shape:
            raise InvalidInput(
                f"distribution_probabilities has shape {self.distribution_probabilities.shape}, "
                f"not {shape}: a row a token, a column a value",
                field="distribution_probabilities",
            )

    @classmethod
    def from_file_class(cls, simulation: files.SequenceSimulation) -> SequenceSimulation:
        """From the class of the explanation files, whose tokens may each have other values.

        Raises:
            InvalidInput: values and probabilities of a token differ in number.
        """
        lists = simulation.distribution_values
        values = np.unique(np.concatenate([np.asarray(v, dtype=np.float64) for v in [[], *lists]]))
        probabilities = np.zeros((len(simulation.tokens), len(values)))
        weights = simulation.distribution_probabilities
        if not len(lists) == len(weights) == len(simulation.tokens):
            raise InvalidInput(
                "distribution_values and distribution_probabilities need a list a token",
                field="distribution_values",
            )
        for row, (own_values, own_weights) in enumerate(zip(lists, weights, strict=True)):
            if len(own_values) != len(own_weights):
                raise InvalidInput(
                    f"token {row} has {len(own_values)} values and {len(own_weights)} "
                    "probabilities",
                    field=f"distribution_probabilities[{row}]",
                )
            columns = np.searchsorted(values, own_values)
            np.add.at(probabilities[row], columns, own_weights)
        inner = simulation.uncalibrated_simulation
        return cls(
            tokens=simulation.tokens,
            expected_activations=np.asarray(simulation.expected_activations, dtype=np.float64),
            activation_scale=simulation.activation_scale,
            distribution_values=values,
            distribution_probabilities=probabilities,
            uncalibrated_simulation=None if inner is None else cls.from_file_class(inner),
        )

    def to_file_class(self) -> files.SequenceSimulation:
        """As the class of the explanation files: a list of values and probabilities a token.

        A token without a distribution has empty lists there.
        """
        values: list[float] = self.distribution_values.tolist()
        rows: list[list[float]] = self.distribution_probabilities.tolist()
        has_distribution: list[bool] = np.any(self.distribution_probabilities, axis=1).tolist()
        inner = self.uncalibrated_simulation
        return files.SequenceSimulation(
            tokens=list(self.tokens),
            expected_activations=self.expected_activations.tolist(),
            activation_scale=self.activation_scale,
            distribution_values=[list(values) if has else [] for has in has_distribution],
            distribution_probabilities=[
                row if has else [] for row, has in zip(rows, has_distribution, strict=True)
            ],
            uncalibrated_simulation=None if inner is None else inner.to_file_class(),
        )
