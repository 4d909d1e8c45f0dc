"""Deriving a scalar from raw activations, or from other derived scalars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from services.scalars.deriving.activations import ActivationsAndMetadata, RawActivationStore
from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.deriving.sources import DerivedScalarSource, ScalarSource
from services.scalars.model.locations import (
    ActivationLocationType,
    LayerIndex,
    LocationWithinLayer,
    PassType,
)
from services.scalars.model.taps import RawTensorId

TensorFunction = Callable[[tuple[Tensor, ...], LayerIndex, PassType], Tensor]
"""From the sources' tensors at one layer of the result to the result's tensor."""


@dataclass(frozen=True, eq=False)
class ScalarDeriver:
    """How one derived scalar type is computed. Immutable.

    `sources` are the inputs of the forward value and `backward_sources` those of the gradient; a
    deriver that has none of the latter, or whose configuration asks for no gradients, derives the
    forward pass alone. The gradient has its own inputs, so that a forward pass can never answer
    with a gradient or the other way round.

    ValueError where the location within the layer that a transform inherits disagrees with the
    scalar type's own.
    """

    dst: DerivedScalarType
    dst_config: DstConfig
    sources: tuple[ScalarSource, ...]
    function: TensorFunction
    backward_sources: tuple[ScalarSource, ...] = ()
    specified_location_within_layer: LocationWithinLayer | None = None

    def __post_init__(self) -> None:
        own = self.dst.location_within_layer
        specified = self.specified_location_within_layer
        if own is not None and specified is not None and own != specified:
            raise ValueError(
                f"{self.dst.name} is at {own.name}, but what it is made from is at {specified.name}"
            )

    @property
    def location_within_layer(self) -> LocationWithinLayer | None:
        """Its place in the layer, where known."""
        return self.specified_location_within_layer or self.dst.location_within_layer

    @property
    def derivable_pass_types(self) -> tuple[PassType, ...]:
        """The passes that it derives as configured."""
        if self.backward_sources and self.dst_config.derive_gradients:
            return (PassType.FORWARD, PassType.BACKWARD)
        return (PassType.FORWARD,)

    @property
    def n_input_tensors(self) -> int:
        """Number of tensors that the function takes for a forward pass."""
        return len(self.sources)

    @property
    def n_total_required_tensors(self) -> int:
        """Number of raw tensors a layer that a forward pass needs in the end."""
        return len(self.raw_locations(PassType.FORWARD))

    def sources_for(self, pass_type: PassType) -> tuple[ScalarSource, ...]:
        """The inputs of a pass; ValueError where it does not derive that pass."""
        if pass_type not in self.derivable_pass_types:
            raise ValueError(f"{self.dst.name} is not derived for the {pass_type.value} pass")
        return self.sources if pass_type is PassType.FORWARD else self.backward_sources

    def raw_locations(
        self, pass_type: PassType
    ) -> frozenset[tuple[ActivationLocationType, PassType]]:
        """The activation locations and passes that it needs in the end."""
        return frozenset().union(*(s.raw_locations for s in self.sources_for(pass_type)))

    def raw_tensors(
        self, pass_type: PassType, layers: Sequence[LayerIndex] | None = None
    ) -> frozenset[RawTensorId]:
        """The tensors that must be captured to derive these layers (by default all wanted)."""
        wanted = self._layers() if layers is None else layers
        return frozenset().union(
            *(
                source.raw_tensors(wanted, self.dst_config.n_layers)
                for source in self.sources_for(pass_type)
            )
        )

    def derive_from_raw(
        self,
        raw_store: RawActivationStore,
        pass_type: PassType,
        layers: Sequence[LayerIndex] | None = None,
    ) -> ActivationsAndMetadata:
        """Derives the layers named, by default all that the configuration wants."""
        wanted = self._layers() if layers is None else list(layers)
        sources = self.sources_for(pass_type)

        def at_layer(layer: LayerIndex) -> Tensor:
            def compute() -> Tensor:
                inputs = tuple(source.derive_from_raw(raw_store, [layer]) for source in sources)
                return self.calculate(inputs, pass_type).activations_by_layer_index[layer]

            return raw_store.derived_once(self, pass_type, layer, compute)

        return ActivationsAndMetadata(
            dst=self.dst,
            pass_type=pass_type,
            activations_by_layer_index={layer: at_layer(layer) for layer in wanted},
        )

    def calculate(
        self, inputs: tuple[ActivationsAndMetadata, ...], pass_type: PassType
    ) -> ActivationsAndMetadata:
        """Applies the function to inputs at hand.

        ValueError where they are not the sources in number, scalar type, pass type or layers.
        """
        sources = self.sources_for(pass_type)
        given = [(each.dst.name, each.pass_type.value) for each in inputs]
        expected = [(source.dst.name, source.pass_type.value) for source in sources]
        if given != expected:
            raise ValueError(f"{self.dst.name} is derived from {expected}, not from {given}")
        first, *others = inputs

        def function(*arguments: Tensor | LayerIndex) -> Tensor:
            *tensors, layer = arguments
            return self.function(tuple(tensors), layer, pass_type)  # type: ignore[arg-type]

        return first.apply_transform_fn(
            function, *others, output_dst=self.dst, output_pass_type=pass_type
        )

    def transform(
        self,
        function: Callable[[Tensor], Tensor],
        output_dst: DerivedScalarType,
        *,
        transform_gradient: bool = False,
    ) -> ScalarDeriver:
        """A deriver of `function` of this one's output.

        With `transform_gradient` the gradient is `function` of this one's gradient: right where
        the function only rearranges or selects elements.
        """
        return self.transform_by_layer(
            lambda tensor, layer, pass_type: function(tensor),
            output_dst,
            transform_gradient=transform_gradient,
        )

    def transform_by_layer(
        self,
        function: Callable[[Tensor, LayerIndex, PassType], Tensor],
        output_dst: DerivedScalarType,
        *,
        transform_gradient: bool = False,
    ) -> ScalarDeriver:
        """The same with a function that also takes the layer and the pass type."""
        gradient_exists = transform_gradient and bool(self.backward_sources)
        return replace(
            self,
            dst=output_dst,
            sources=(DerivedScalarSource(self, PassType.FORWARD),),
            backward_sources=(
                (DerivedScalarSource(self, PassType.BACKWARD),) if gradient_exists else ()
            ),
            function=lambda tensors, layer, pass_type: function(tensors[0], layer, pass_type),
            specified_location_within_layer=self.location_within_layer,
        )

    def combine(
        self,
        function: Callable[[Tensor, Tensor, LayerIndex], Tensor],
        other: ScalarSource,
        output_dst: DerivedScalarType,
        *,
        pass_type: PassType = PassType.FORWARD,
    ) -> ScalarDeriver:
        """A deriver of `function` of this one's output in a pass, and of one more source."""
        return replace(
            self,
            dst=output_dst,
            sources=(DerivedScalarSource(self, pass_type), other),
            backward_sources=(),
            function=lambda tensors, layer, _: function(tensors[0], tensors[1], layer),
            specified_location_within_layer=self.location_within_layer,
        )

    def _layers(self) -> list[LayerIndex]:
        return list(self.dst_config.layers) if self.dst.has_layers else [None]
