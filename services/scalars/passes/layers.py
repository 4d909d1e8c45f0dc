"""Which layers a request may name."""

from __future__ import annotations

from services.scalars.model.locations import ModelShape
from shared.errors import InvalidArgument


def check_layer(
    layer: int | None, name: str, has_layers: bool, shape: ModelShape, field: str
) -> None:
    """Refuses a layer that the model lacks, one that is missing, or one that makes no sense."""
    here = f"{field}.layer_index"
    if not has_layers:
        if layer is not None:
            raise InvalidArgument(f"{name} has no layers; leave the layer index out", field=here)
        return
    if layer is None:
        raise InvalidArgument(f"{name} needs a layer index", field=here)
    check_layer_exists(layer, shape, here)


def check_layer_exists(layer: int, shape: ModelShape, field: str) -> None:
    """Refuses a layer that the model lacks."""
    if not 0 <= layer < shape.layers:
        raise InvalidArgument(
            f"layer {layer} does not exist; the model has layers 0 to {shape.layers - 1}",
            field=field,
        )
