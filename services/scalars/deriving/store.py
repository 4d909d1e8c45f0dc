"""Derived scalars of one prompt, together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor

from services.scalars.deriving.activations import ActivationsAndMetadata
from services.scalars.deriving.indexing import DerivedScalarIndex, python_index
from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.deriving.selection import top_indices
from services.scalars.model.locations import Dimension, PassType


class DerivedScalarStore:
    """Derived scalars by scalar type and pass type.

    ValueError where one is given twice, or where they are on several devices.
    """

    def __init__(self, scalars: Iterable[ActivationsAndMetadata]) -> None:
        self._scalars: dict[tuple[str, PassType], ActivationsAndMetadata] = {}
        for each in scalars:
            key = (each.dst.name, each.pass_type)
            if key in self._scalars:
                raise ValueError(f"{each.dst.name} ({each.pass_type.value}) is there twice")
            self._scalars[key] = each
        devices = {each.device for each in self._scalars.values()} - {None}
        if len(devices) > 1:
            raise ValueError(f"derived scalars are spread over several devices: {devices}")

    @property
    def device(self) -> torch.device | None:
        """Where the tensors are; None where there are none."""
        return next((each.device for each in self if each.device is not None), None)

    @property
    def numel(self) -> int:
        """Number of elements of all scalars."""
        return sum(each.numel for each in self)

    def __iter__(self) -> Iterator[ActivationsAndMetadata]:
        return iter(self._scalars.values())

    def __len__(self) -> int:
        return len(self._scalars)

    def get(
        self, dst: DerivedScalarType, pass_type: PassType = PassType.FORWARD
    ) -> ActivationsAndMetadata:
        """One scalar; KeyError where it is not there."""
        return self._scalars[(dst.name, pass_type)]

    def __getitem__(self, index: DerivedScalarIndex) -> Tensor:
        """The elements that an index names, as a view.

        KeyError for a scalar or layer that is not there, IndexError for an index that is too large.
        """
        tensor = self.get(index.dst, index.pass_type).activations_by_layer_index[index.layer_index]
        return tensor[python_index(index.tensor_indices)]

    def filter(
        self,
        *,
        dsts: Collection[DerivedScalarType] | None = None,
        pass_type: PassType | None = None,
        layer_indices: Collection[int] | None = None,
    ) -> DerivedScalarStore:
        """Only what agrees with all that is given."""
        return DerivedScalarStore(
            each.filter_layers(layer_indices)
            for each in self
            if (dsts is None or each.dst in dsts)
            and (pass_type is None or each.pass_type == pass_type)
        )

    def topk(
        self,
        k: int | None,
        *,
        pass_type: PassType = PassType.FORWARD,
        dsts: Collection[DerivedScalarType] | None = None,
        layer_indices: Collection[int] | None = None,
        largest: bool = True,
    ) -> tuple[Tensor, list[DerivedScalarIndex]]:
        """The k most extreme elements of all scalars together, the most extreme first.

        None for k is all elements. Elements that are not a number take no part.
        """
        chosen = self.filter(dsts=dsts, pass_type=pass_type, layer_indices=layer_indices)
        count = chosen.numel if k is None else k
        found = [each.topk(count, largest=largest) for each in chosen]
        if not found:
            return torch.empty(0), []
        values, order = top_indices(
            torch.cat([values for values, _ in found]), count, largest=largest
        )
        places = [place for _, indices in found for place in indices]
        return values, [places[position] for position in order.tolist()]

    def sum(
        self,
        dimensions_to_keep: Collection[Dimension] = (),
        *,
        layer_indices: Collection[int] | None = None,
    ) -> Tensor:
        """Sum over all scalars, their layers, and the dimensions that are not kept.

        ValueError where the scalars lack a dimension to keep, or have them in different orders.
        """
        chosen = self.filter(layer_indices=layer_indices)
        total: Tensor | None = None
        orders = set()
        for each in chosen:
            dimensions = each.dst.dimensions
            missing = [d.value for d in dimensions_to_keep if d not in dimensions]
            if missing:
                raise ValueError(f"{each.dst.name} has no dimension {', '.join(missing)}")
            orders.add(tuple(d for d in dimensions if d in dimensions_to_keep))
            dropped = [i for i, d in enumerate(dimensions) if d not in dimensions_to_keep]
            for tensor in each.activations_by_layer_index.values():
                part = tensor.sum(dim=dropped) if dropped else tensor
                total = part if total is None else total + part
        if len(orders) > 1:
            raise ValueError("the scalars have the dimensions to keep in different orders")
        return torch.zeros((), device=self.device) if total is None else total
