"""Products with gradients that several kinds of scalars are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.layer_indexers import ConstantLayerIndexer
from services.scalars.deriving.sources import RawScalarSource
from services.scalars.model.locations import LayerIndex, LocationWithinLayer, PassType


def final_residual_gradient(config: DstConfig) -> RawScalarSource:
    """g, the gradient at the last residual stream before the loss, for every layer: (T, D)."""
    point = config.final_residual
    if point.layer is None:
        raise ValueError("the final residual stream has a layer")
    return RawScalarSource(point.location, PassType.BACKWARD, ConstantLayerIndexer(point.layer))


def is_upstream(config: DstConfig, layer: LayerIndex, within: LocationWithinLayer | None) -> bool:
    """Whether something at that layer and place is strictly upstream of g."""
    return config.final_residual.is_after(layer, within)


def rows_with_gradient(gradient: Tensor) -> Tensor:
    """Positions whose gradient is not all zero.

    A loss at one position has one such row at the final residual stream: products with the other
    rows need not be computed.
    """
    return torch.nonzero(gradient.ne(0).any(dim=1)).flatten()
