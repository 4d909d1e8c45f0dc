"""References to single elements or slices of activations, scalars and nodes."""

from __future__ import annotations

from dataclasses import dataclass

from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.model.locations import (
    ActivationLocationType,
    LayerIndex,
    NodeType,
    PassType,
)

TensorIndices = tuple[int | None, ...]
"""An index an axis, the layer not included; None takes the whole axis. Missing axes are whole."""


@dataclass(frozen=True)
class ActivationIndex:
    """Elements of one activation or gradient of a forward pass."""

    activation_location_type: ActivationLocationType
    tensor_indices: TensorIndices
    layer_index: LayerIndex
    pass_type: PassType = PassType.FORWARD


@dataclass(frozen=True)
class NodeIndex:
    """A node, or the slice of nodes that an open index stands for."""

    node_type: NodeType
    tensor_indices: TensorIndices
    layer_index: LayerIndex
    pass_type: PassType = PassType.FORWARD


@dataclass(frozen=True)
class DerivedScalarIndex:
    """Elements of one derived scalar."""

    dst: DerivedScalarType
    tensor_indices: TensorIndices
    layer_index: LayerIndex
    pass_type: PassType = PassType.FORWARD

    @classmethod
    def of_node(cls, node: NodeIndex, dst: DerivedScalarType) -> DerivedScalarIndex:
        """Where a node stands in a scalar of the same node type; ValueError for another type."""
        if node.node_type != dst.node_type:
            raise ValueError(f"{dst.name} is a scalar of {dst.node_type}, not of {node.node_type}")
        return cls(dst, node.tensor_indices, node.layer_index, node.pass_type)


def python_index(indices: TensorIndices) -> tuple[int | slice, ...]:
    """The index that a tensor understands."""
    return tuple(slice(None) if index is None else index for index in indices)
