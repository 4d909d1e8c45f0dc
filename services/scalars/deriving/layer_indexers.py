"""How the layers of a source map to the layers of what is derived from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from services.scalars.model.locations import LayerIndex


class Placeholder(Enum):
    """Stands for a layer that does not exist; the function must not use what it is given."""

    PLACEHOLDER = "placeholder"


PLACEHOLDER = Placeholder.PLACEHOLDER

SourceLayer = LayerIndex | Placeholder


class LayerIndexer(ABC):
    """Maps each layer of a result to the layer of the source that it reads."""

    @abstractmethod
    def __call__(self, layers: Sequence[LayerIndex], n_layers: int) -> list[SourceLayer]:
        """The source's layer for each of the result's, in a model of `n_layers` layers."""

    @property
    def single_layer(self) -> LayerIndex:
        """The one layer that every layer reads; ValueError if there is no such layer."""
        raise ValueError(f"{self!r} reads no single layer")


@dataclass(frozen=True)
class IdentityLayerIndexer(LayerIndexer):
    """Layer L reads layer L."""

    def __call__(self, layers: Sequence[LayerIndex], n_layers: int) -> list[SourceLayer]:
        return list(layers)


@dataclass(frozen=True)
class OffsetLayerIndexer(LayerIndexer):
    """Layer L reads layer L + offset; a placeholder where there is no such layer."""

    offset: int

    def __call__(self, layers: Sequence[LayerIndex], n_layers: int) -> list[SourceLayer]:
        sources: list[SourceLayer] = []
        for layer in layers:
            if layer is None:
                raise ValueError("an offset needs a source and a result that have layers")
            source = layer + self.offset
            sources.append(source if 0 <= source < n_layers else PLACEHOLDER)
        return sources


@dataclass(frozen=True)
class ConstantLayerIndexer(LayerIndexer):
    """Every layer reads one layer."""

    layer: int

    def __call__(self, layers: Sequence[LayerIndex], n_layers: int) -> list[SourceLayer]:
        return [self.layer] * len(layers)

    @property
    def single_layer(self) -> LayerIndex:
        return self.layer


@dataclass(frozen=True)
class NoLayersLayerIndexer(LayerIndexer):
    """Every layer reads the tensor that has no layer, such as the embedding."""

    def __call__(self, layers: Sequence[LayerIndex], n_layers: int) -> list[SourceLayer]:
        return [None] * len(layers)

    @property
    def single_layer(self) -> LayerIndex:
        return None


IDENTITY = IdentityLayerIndexer()
NO_LAYERS = NoLayersLayerIndexer()
