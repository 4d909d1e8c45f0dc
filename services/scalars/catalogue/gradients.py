"""The gradients that direct effects project on, and where they end.

g is the gradient of what a backward pass starts from, at the last residual stream before it. g~ is
that of a trace's scalar, recomputed from saved activations: no backward pass is needed for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.scalars.catalogue.declaration import D, Derivers, T
from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.differentiation import gradient
from services.scalars.deriving.layer_indexers import NO_LAYERS, ConstantLayerIndexer
from services.scalars.deriving.residual_points import ResidualPoint
from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.deriving.sources import DerivedScalarSource, RawScalarSource, ScalarSource
from services.scalars.model.locations import LayerIndex, LocationWithinLayer, PassType

_LOCAL_GRADIENT = DerivedScalarType("final_activation_residual_gradient", (T, D), has_layers=False)


def residual_source(point: ResidualPoint, pass_type: PassType) -> RawScalarSource:
    """The residual stream at a point, or its gradient, for every layer: (T, D)."""
    indexer = NO_LAYERS if point.layer is None else ConstantLayerIndexer(point.layer)
    return RawScalarSource(point.location, pass_type, indexer)


def final_residual_gradient(config: DstConfig) -> RawScalarSource:
    """g, the gradient at the last residual stream before the loss or the trace: (T, D)."""
    return residual_source(config.final_residual, PassType.BACKWARD)


def final_activation_residual_gradient(derivers: Derivers) -> ScalarSource:
    """g~, the gradient of the trace's scalar at the residual stream of its block: (T, D).

    ValueError without a trace.
    """
    config = derivers.config
    trace = config.trace
    if trace is None:
        raise ValueError("the gradient of a traced activation needs a trace")

    def local_gradient(
        tensors: tuple[Tensor, ...], layer: LayerIndex, pass_type: PassType
    ) -> Tensor:
        first, *others = tensors
        return gradient(
            lambda residual: trace.scalar(config.model, config.autoencoders, (residual, *others)),
            first,
        )

    def make() -> ScalarDeriver:
        return ScalarDeriver(
            dst=_LOCAL_GRADIENT,
            dst_config=config,
            sources=tuple(
                residual_source(point, PassType.FORWARD)
                for point in trace.residual_points(config.n_layers)
            ),
            function=local_gradient,
        )

    return DerivedScalarSource(
        derivers.shared(_LOCAL_GRADIENT.name, make), PassType.FORWARD, NO_LAYERS
    )


def is_upstream(config: DstConfig, layer: LayerIndex, within: LocationWithinLayer | None) -> bool:
    """Whether something at that layer and place is strictly upstream of g."""
    return config.final_residual.is_after(layer, within)


def rows_with_gradient(gradient: Tensor) -> Tensor:
    """Positions whose gradient is not all zero.

    A loss at one position has one such row at the final residual stream: products with the other
    rows need not be computed.
    """
    return torch.nonzero(gradient.ne(0).any(dim=1)).flatten()
