"""Bodies of the routes about records and explanations of one component."""

from __future__ import annotations

from typing import Annotated

from services.gateway.names import DerivedScalarType
from services.gateway.requests.fields import Body, Count, Index, Text, at_most


class ComponentId(Body):
    """A component, by what is derived of it."""

    dst: DerivedScalarType
    layer_index: Index
    activation_index: Index


class NodeIdAndDatasets(ComponentId):
    """A component and the datasets to look for its record in, in that order.

    The record routes also answer what of a record is asked for besides its top and random
    sequences.
    """

    datasets: Annotated[list[Text], at_most(64)]
    include_quantile_samples: bool = False
    include_moments: bool = False


class ExistingExplanationsRequest(ComponentId):
    """Exactly one of the two says where to look."""

    explanation_datasets: Annotated[list[Text], at_most(64)]
    neuron_dataset: Text | None = None


class ScoreRequest(ComponentId):
    """An explanation to score against a component's record."""

    datasets: Annotated[list[Text], at_most(64)]
    explanation: Text
    max_sequences: Count | None = None
