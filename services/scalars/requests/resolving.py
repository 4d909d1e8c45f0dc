"""Checks requests on one prepared inference, each against the same model and run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.scalars.answers.components import (
    ComponentByTokenPairSpec,
    ResolvedComponent,
    with_top_tokens,
)
from services.scalars.catalogue import CATALOGUE, Requirement
from services.scalars.model.locations import PassType
from services.scalars.model.subject import Subject
from services.scalars.passes.inference import InferenceSpec, PreparedInference
from services.scalars.requests.components import ComponentSpec, resolve_component
from services.scalars.requests.selected_nodes import NodeSelection
from services.scalars.requests.selections import (
    DimensionRange,
    ResolvedSelection,
    Selection,
    check_pass,
    resolve_selection,
)
from services.scalars.requests.top_nodes import ResolvedTopNodes, TopNodesSpec, resolve_top_nodes
from services.scalars.vocabulary.node_directions import NodeDirections
from shared.errors import InvalidArgument


@dataclass(frozen=True)
class Resolver:
    """Checks requests on an inference; `inference_field` is where that stands in the call."""

    subject: Subject
    directions: NodeDirections
    inference: InferenceSpec
    prepared: PreparedInference
    inference_field: str

    def selection(self, spec: Selection, field: str) -> ResolvedSelection:
        """A checked selection of tensors."""
        return resolve_selection(
            spec,
            self.subject,
            self.prepared,
            field=field,
            inference_field=self.inference_field,
        )

    def top_nodes(self, spec: TopNodesSpec, field: str) -> ResolvedTopNodes:
        """A checked request for top nodes."""
        return resolve_top_nodes(
            spec,
            self.subject,
            self.prepared,
            field=field,
            inference_field=self.inference_field,
        )

    def component(self, spec: ComponentSpec, field: str) -> ResolvedComponent:
        """A checked request for a component at every token."""
        declaration = CATALOGUE.get(spec.dst)
        if declaration and Requirement.ACTIVATION_INDEX in declaration.requirements:
            return ResolvedComponent(spec, self._read_by_ablated(spec, field))
        selection = self._component(spec, field, by_token_pair=False)
        resolved = ResolvedComponent(spec, selection)
        return with_top_tokens(resolved, self.directions, spec.top_token_count, field)

    def component_by_token_pair(
        self, spec: ComponentByTokenPairSpec, field: str
    ) -> ResolvedComponent:
        """A checked request for a component at every query and key."""
        component = ComponentSpec(spec.dst, spec.layer_index, spec.component_index)
        return ResolvedComponent(spec, self._component(component, field, by_token_pair=True))

    def _component(
        self, spec: ComponentSpec, field: str, *, by_token_pair: bool
    ) -> ResolvedSelection:
        return resolve_component(
            spec,
            self.subject,
            self.prepared,
            field=field,
            inference_field=self.inference_field,
            by_token_pair=by_token_pair,
        )

    def _read_by_ablated(self, spec: ComponentSpec, field: str) -> ResolvedSelection:
        """A scalar of what one neuron or latent reads: that which the only ablation names."""
        if len(self.inference.ablations) != 1:
            raise InvalidArgument(
                f"{spec.dst} is of what one neuron or latent reads: exactly one ablation must say "
                f"which; there are {len(self.inference.ablations)}",
                field=f"{self.inference_field}.ablations",
            )
        component = f"{field}.component"
        if spec.layer_index is not None:
            raise InvalidArgument(
                f"{spec.dst} has no layers; leave it out", field=f"{component}.layer_index"
            )
        dimension = CATALOGUE[spec.dst].dst.dimensions[-1]
        size = self.subject.model.shape.vocab_size
        if not 0 <= spec.component_index < size:
            raise InvalidArgument(
                f"component {spec.component_index} is not in {dimension.value}, which has {size}",
                field=f"{component}.component_index",
            )
        check_pass(
            CATALOGUE[spec.dst],
            spec.pass_type,
            self.prepared,
            field=f"{field}.pass_type",
            inference_field=self.inference_field,
        )
        index = replace(self.inference.ablations[0].index, pass_type=PassType.FORWARD)
        selection = Selection(
            spec.dst,
            spec.pass_type,
            ranges=(DimensionRange(dimension, spec.component_index, spec.component_index + 1),),
            node=NodeSelection(activation_index=index),
        )
        return resolve_selection(
            selection,
            self.subject,
            self.prepared,
            field=field,
            inference_field=self.inference_field,
            activation_field=f"{self.inference_field}.ablations[0].index",
        )
