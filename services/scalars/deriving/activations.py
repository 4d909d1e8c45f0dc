"""Tensors by layer, and the store of what a forward and backward pass left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from services.scalars.deriving.indexing import DerivedScalarIndex
from services.scalars.deriving.layer_indexers import PLACEHOLDER, LayerIndexer
from services.scalars.deriving.scalar_types import DerivedScalarType, raw_scalar_type
from services.scalars.deriving.selection import top_of_tensors
from services.scalars.model.locations import ActivationLocationType, LayerIndex, PassType
from services.scalars.model.taps import RawTensorId


def sorted_layers(layers: Iterable[LayerIndex]) -> list[LayerIndex]:
    """Layers in ascending order, that of a tensor without layers first."""
    return sorted(layers, key=lambda layer: -1 if layer is None else layer)


@dataclass(frozen=True, eq=False)
class ActivationsAndMetadata:
    """One quantity at some layers: tensors by layer index, None for what has no layers.

    All tensors are on one device; ValueError otherwise.
    """

    dst: DerivedScalarType
    pass_type: PassType
    activations_by_layer_index: Mapping[LayerIndex, Tensor]

    def __post_init__(self) -> None:
        devices = {tensor.device for tensor in self.activations_by_layer_index.values()}
        if len(devices) > 1:
            raise ValueError(f"{self.dst.name} is spread over several devices: {devices}")

    @property
    def layer_indices(self) -> list[LayerIndex]:
        """Layers at hand, ascending."""
        return sorted_layers(self.activations_by_layer_index)

    @property
    def device(self) -> torch.device | None:
        """Where the tensors are; None where there are none."""
        return next((t.device for t in self.activations_by_layer_index.values()), None)

    @property
    def numel(self) -> int:
        """Number of elements at all layers."""
        return sum(tensor.numel() for tensor in self.activations_by_layer_index.values())

    def filter_layers(self, layer_indices: Collection[LayerIndex] | None) -> ActivationsAndMetadata:
        """Only the layers named; None keeps all. What has no layers is always kept."""
        if layer_indices is None:
            return self
        return replace(
            self,
            activations_by_layer_index={
                layer: tensor
                for layer, tensor in self.activations_by_layer_index.items()
                if layer is None or layer in layer_indices
            },
        )

    def apply_layer_indexer(
        self,
        layer_indexer: LayerIndexer,
        n_layers: int,
        desired_layer_indices: Sequence[LayerIndex] | None = None,
    ) -> ActivationsAndMetadata:
        """The same tensors under the layers of a result (by default those at hand).

        A layer that does not exist gets an empty tensor. KeyError where the source lacks a layer
        that does exist.
        """
        wanted = self.layer_indices if desired_layer_indices is None else desired_layer_indices
        remapped: dict[LayerIndex, Tensor] = {}
        for layer, source in zip(wanted, layer_indexer(wanted, n_layers), strict=True):
            remapped[layer] = (
                torch.empty(0, device=self.device)
                if source is PLACEHOLDER
                else self.activations_by_layer_index[source]
            )
        return replace(self, activations_by_layer_index=remapped)

    def apply_transform_fn(
        self,
        function: Callable[..., Tensor],
        *others: ActivationsAndMetadata,
        output_dst: DerivedScalarType | None = None,
        output_pass_type: PassType | None = None,
    ) -> ActivationsAndMetadata:
        """Applies `function(tensor, *other_tensors, layer_index)` at every layer.

        ValueError where the others have other layers than this one.
        """
        for other in others:
            if set(other.activations_by_layer_index) != set(self.activations_by_layer_index):
                raise ValueError(
                    f"{self.dst.name} has layers {self.layer_indices}, "
                    f"{other.dst.name} has {other.layer_indices}"
                )
        return ActivationsAndMetadata(
            dst=output_dst or self.dst,
            pass_type=output_pass_type or self.pass_type,
            activations_by_layer_index={
                layer: function(
                    tensor, *(other.activations_by_layer_index[layer] for other in others), layer
                )
                for layer, tensor in self.activations_by_layer_index.items()
            },
        )

    def topk(self, k: int, *, largest: bool = True) -> tuple[Tensor, list[DerivedScalarIndex]]:
        """The k most extreme elements of all layers, or all where there are fewer.

        Values of shape (k,), the most extreme first, and where they stand. Elements that are not
        a number take no part.
        """
        layers = self.layer_indices
        values, places = top_of_tensors(
            [self.activations_by_layer_index[layer] for layer in layers], k, largest=largest
        )
        return values, [
            DerivedScalarIndex(self.dst, indices, layers[which], self.pass_type)
            for which, indices in places
        ]


class RawActivationStore:
    """What one forward pass, and its backward pass where there was one, left to derive from.

    It also remembers what was derived from it, so that a source that several scalars need is
    computed once.
    """

    def __init__(self, tensors: Mapping[RawTensorId, Tensor], n_layers: int) -> None:
        self.n_layers = n_layers
        self.tensors = tensors
        by_place: dict[tuple[ActivationLocationType, PassType], dict[LayerIndex, Tensor]] = {}
        for target, tensor in tensors.items():
            by_place.setdefault((target.location, target.pass_type), {})[target.layer] = tensor
        self._activations = {
            (location, pass_type): ActivationsAndMetadata(
                raw_scalar_type(location), pass_type, by_layer
            )
            for (location, pass_type), by_layer in by_place.items()
        }
        self._derived: dict[tuple[object, PassType, LayerIndex], Tensor] = {}

    def get(self, location: ActivationLocationType, pass_type: PassType) -> ActivationsAndMetadata:
        """All layers captured at a location; KeyError where none was."""
        found = self._activations.get((location, pass_type))
        if found is None:
            raise KeyError(f"{location.value} was not captured in the {pass_type.value} pass")
        return found

    def derived_once(
        self, deriver: object, pass_type: PassType, layer: LayerIndex, compute: Callable[[], Tensor]
    ) -> Tensor:
        """What a deriver gives at a layer, computed at the first call."""
        key = (deriver, pass_type, layer)
        if key not in self._derived:
            self._derived[key] = compute()
        return self._derived[key]

    def forget_derived(self) -> None:
        """Lets go of what was derived so far."""
        self._derived.clear()
