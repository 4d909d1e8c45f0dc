"""Where a deriver's inputs come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.scalars.deriving.activations import ActivationsAndMetadata, RawActivationStore
from services.scalars.deriving.layer_indexers import (
    IDENTITY,
    PLACEHOLDER,
    LayerIndexer,
    NoLayersLayerIndexer,
)
from services.scalars.deriving.scalar_types import DerivedScalarType, raw_scalar_type
from services.scalars.model.locations import (
    ActivationLocationType,
    LayerIndex,
    LocationWithinLayer,
    PassType,
)
from services.scalars.model.taps import RawTensorId

if TYPE_CHECKING:
    from services.scalars.deriving.deriver import ScalarDeriver


class ScalarSource(ABC):
    """One input of a deriver: a quantity, its pass type, and the layers that are read of it."""

    pass_type: PassType
    layer_indexer: LayerIndexer

    @property
    @abstractmethod
    def dst(self) -> DerivedScalarType:
        """What it is."""

    @property
    @abstractmethod
    def exists_by_default(self) -> bool:
        """Whether an ordinary forward pass makes it."""

    @property
    @abstractmethod
    def raw_locations(self) -> frozenset[tuple[ActivationLocationType, PassType]]:
        """The activation locations and passes that it needs in the end."""

    @property
    @abstractmethod
    def location_within_layer(self) -> LocationWithinLayer | None:
        """Its place in the layer, where known."""

    @property
    def layer_index(self) -> LayerIndex:
        """The one layer that is read; ValueError unless the indexer is constant or no-layers."""
        return self.layer_indexer.single_layer

    @abstractmethod
    def raw_tensors(self, layers: Sequence[LayerIndex], n_layers: int) -> frozenset[RawTensorId]:
        """The tensors that must be captured for these layers of the result."""

    @abstractmethod
    def derive_from_raw(
        self, raw_store: RawActivationStore, layers: Sequence[LayerIndex]
    ) -> ActivationsAndMetadata:
        """The input for these layers of the result, under the result's layer indices."""

    def _source_layers(self, layers: Sequence[LayerIndex], n_layers: int) -> list[LayerIndex]:
        found: dict[LayerIndex, None] = {}
        for source in self.layer_indexer(layers, n_layers):
            if source is not PLACEHOLDER:
                found[source] = None
        return list(found)


@dataclass(frozen=True)
class RawScalarSource(ScalarSource):
    """A captured activation or gradient.

    ValueError where a location without layers is read by anything but a no-layers indexer.
    """

    activation_location_type: ActivationLocationType
    pass_type: PassType
    layer_indexer: LayerIndexer = IDENTITY

    def __post_init__(self) -> None:
        if not self.activation_location_type.has_layers and not isinstance(
            self.layer_indexer, NoLayersLayerIndexer
        ):
            raise ValueError(f"{self.activation_location_type.value} has no layers to index")

    @property
    def dst(self) -> DerivedScalarType:
        return raw_scalar_type(self.activation_location_type)

    @property
    def exists_by_default(self) -> bool:
        return self.activation_location_type.exists_by_default

    @property
    def raw_locations(self) -> frozenset[tuple[ActivationLocationType, PassType]]:
        return frozenset({(self.activation_location_type, self.pass_type)})

    @property
    def location_within_layer(self) -> LocationWithinLayer | None:
        return self.activation_location_type.location_within_layer

    def raw_tensors(self, layers: Sequence[LayerIndex], n_layers: int) -> frozenset[RawTensorId]:
        return frozenset(
            RawTensorId(self.activation_location_type, layer, self.pass_type)
            for layer in self._source_layers(layers, n_layers)
        )

    def derive_from_raw(
        self, raw_store: RawActivationStore, layers: Sequence[LayerIndex]
    ) -> ActivationsAndMetadata:
        # Where every layer wanted is a placeholder, nothing was captured.
        if not self._source_layers(layers, raw_store.n_layers):
            return ActivationsAndMetadata(self.dst, self.pass_type, {}).apply_layer_indexer(
                self.layer_indexer, raw_store.n_layers, layers
            )
        return raw_store.get(self.activation_location_type, self.pass_type).apply_layer_indexer(
            self.layer_indexer, raw_store.n_layers, layers
        )


@dataclass(frozen=True)
class DerivedScalarSource(ScalarSource):
    """What another deriver gives."""

    scalar_deriver: ScalarDeriver
    pass_type: PassType
    layer_indexer: LayerIndexer = IDENTITY

    @property
    def dst(self) -> DerivedScalarType:
        return self.scalar_deriver.dst

    @property
    def exists_by_default(self) -> bool:
        return False

    @property
    def raw_locations(self) -> frozenset[tuple[ActivationLocationType, PassType]]:
        return self.scalar_deriver.raw_locations(self.pass_type)

    @property
    def location_within_layer(self) -> LocationWithinLayer | None:
        return self.scalar_deriver.location_within_layer

    def raw_tensors(self, layers: Sequence[LayerIndex], n_layers: int) -> frozenset[RawTensorId]:
        return self.scalar_deriver.raw_tensors(
            self.pass_type, self._source_layers(layers, n_layers)
        )

    def derive_from_raw(
        self, raw_store: RawActivationStore, layers: Sequence[LayerIndex]
    ) -> ActivationsAndMetadata:
        return self.scalar_deriver.derive_from_raw(
            raw_store, self.pass_type, self._source_layers(layers, raw_store.n_layers)
        ).apply_layer_indexer(self.layer_indexer, raw_store.n_layers, layers)
