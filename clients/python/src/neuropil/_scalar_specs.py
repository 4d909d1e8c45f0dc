"""What to derive from a run of the subject model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuropil import names
from neuropil._inference import Activation, NodeIndex
from neuropil.scalars import v1


@dataclass(frozen=True)
class TensorSpec:
    """A whole tensor, or a slice of it; in a batch its layers come along a first dimension."""

    scalar_type: str
    layers: int | Sequence[int] = ()
    """One, or several; all where none are named."""
    pass_type: str = "forward"
    ranges: Mapping[str, tuple[int, int | None]] | None = None
    """Start and stop by dimension, for example ``{"sequence_tokens": (0, 4)}``."""
    node: NodeIndex | None = None
    """The node whose edges are attributed."""
    attention_part: str | None = None
    """Which way into a head counts: query, key or value; where the node is a head downstream."""
    detach_layer_norm_scale: bool = False
    """Whether the scale of the layer norm before what is downstream is a constant."""
    activation: Activation | None = None
    """The activation whose gradient is set to 1, where the type requires one."""

    def message(self) -> v1.ScalarSelection:
        """As the contract says it.

        Raises:
            ValueError: if a name is unknown.
        """
        return v1.ScalarSelection(
            derived_scalar_type=names.DERIVED_SCALAR_TYPES.value(self.scalar_type),
            pass_type=names.PASS_TYPES.value(self.pass_type),
            layer_indices=[self.layers] if isinstance(self.layers, int) else self.layers,
            ranges=[
                v1.DimensionRange(dimension=names.DIMENSIONS.value(name), start=start, stop=stop)
                for name, (start, stop) in (self.ranges or {}).items()
            ],
            node_index=None if self.node is None else self.node.message(),
            attention_part=(
                v1.ATTENTION_PART_UNSPECIFIED
                if self.attention_part is None
                else names.ATTENTION_PARTS.value(self.attention_part)
            ),
            detach_layer_norm_scale=self.detach_layer_norm_scale,
            activation_index=None if self.activation is None else self.activation.message(),
        )

    def add_to(self, spec: v1.NamedSpec) -> None:
        """Make `spec` ask for this."""
        spec.selection.CopyFrom(self.message())


@dataclass(frozen=True)
class ComponentSpec:
    """One component at every token: `ComponentScalars`."""

    scalar_type: str
    layer_index: int | None
    component_index: int
    pass_type: str = "forward"
    top_tokens: int = 0
    """Also this many vocabulary entries that it promotes and suppresses most: see `TopTokens`."""

    def message(self) -> v1.ComponentSpec:
        """As the contract says it.

        Raises:
            ValueError: if a name is unknown.
        """
        return v1.ComponentSpec(
            component=names.component_id(self.scalar_type, self.layer_index, self.component_index),
            pass_type=names.PASS_TYPES.value(self.pass_type),
            top_token_count=self.top_tokens,
        )

    def add_to(self, spec: v1.NamedSpec) -> None:
        """Make `spec` ask for this."""
        spec.component.CopyFrom(self.message())


@dataclass(frozen=True)
class TokenPairSpec:
    """One component at every token pair: `TokenPairSequence`."""

    scalar_type: str
    layer_index: int | None
    component_index: int

    def message(self) -> v1.ComponentByTokenPairSpec:
        """As the contract says it.

        Raises:
            ValueError: if a name is unknown.
        """
        return v1.ComponentByTokenPairSpec(
            component=names.component_id(self.scalar_type, self.layer_index, self.component_index)
        )

    def add_to(self, spec: v1.NamedSpec) -> None:
        """Make `spec` ask for this."""
        spec.component_by_token_pair.CopyFrom(self.message())


@dataclass(frozen=True)
class TopNodesSpec:
    """The nodes with the largest and the smallest scalars: `TopNodes`.

    In a batch, specs of the same name list the same nodes: those of any inference.
    """

    groups: Mapping[str, str | Sequence[str]]
    """Scalar types by group, one or several; all groups hold the same kinds of nodes in the same
    order."""
    count: int | None = 10
    """This many of the largest and of the smallest of each type; None means every node."""
    token_index: int | None = None
    """Only nodes at this token, from 0, or from -1 at the end; None means all."""
    first_layer: int | None = None
    """Only nodes of this layer and later ones; None means all."""
    exclude_bottom: bool = False
    """Whether to leave out the smallest."""
    pass_type: str = "forward"
    sum_dimensions: str | Sequence[str] | None = None
    """Dimensions that the sums keep; None means those of tokens."""

    def message(self) -> v1.TopNodesSpec:
        """As the contract says it.

        Raises:
            ValueError: if a name is unknown.
        """
        spec = v1.TopNodesSpec(
            groups=[
                v1.ScalarGroup(
                    group_id=names.GROUP_IDS.value(group),
                    derived_scalar_types=[
                        names.DERIVED_SCALAR_TYPES.value(name)
                        for name in names.several(scalar_types)
                    ],
                )
                for group, scalar_types in self.groups.items()
            ],
            top_and_bottom_count=self.count,
            token_index=self.token_index,
            first_layer=self.first_layer,
            exclude_bottom=self.exclude_bottom,
            pass_type=names.PASS_TYPES.value(self.pass_type),
        )
        if self.sum_dimensions is not None:
            # Set although it may be empty: to keep none is not to leave it to the service.
            spec.sum_dimensions.SetInParent()
            spec.sum_dimensions.dimensions.extend(
                map(names.DIMENSIONS.value, names.several(self.sum_dimensions))
            )
        return spec

    def add_to(self, spec: v1.NamedSpec) -> None:
        """Make `spec` ask for this."""
        spec.top_nodes.CopyFrom(self.message())


@dataclass(frozen=True)
class ScoredTokensSpec:
    """Vocabulary entries for each node of another spec: a list of `TopTokens` or None."""

    of: str
    """Name of the top-nodes spec of the same inference."""
    scoring: str = "upvoted_output_tokens"
    """Or input_tokens_that_upvote_mlp, ..._attn_q, ..._attn_k."""
    count: int = 10
    """This many of the best and of the worst."""

    def add_to(self, spec: v1.NamedSpec) -> None:
        """Make `spec` ask for this.

        Raises:
            ValueError: if there is no such scoring.
        """
        scoring = names.TOKEN_SCORINGS.value(self.scoring)
        spec.scored_tokens.CopyFrom(
            v1.ScoredTokensSpec(scoring=scoring, token_count=self.count, depends_on=self.of)
        )


@dataclass(frozen=True)
class AttributionSpec:
    """Attended-to tokens for each node of another spec: a list of `Attribution` or None."""

    of: str
    """Name of the top-nodes spec of the same inference."""
    count: int = 3
    """This many of the largest and of the smallest."""

    def add_to(self, spec: v1.NamedSpec) -> None:
        """Make `spec` ask for this."""
        spec.token_pair_attribution.CopyFrom(
            v1.TokenPairAttributionSpec(attended_to_token_count=self.count, depends_on=self.of)
        )


Spec = (
    TensorSpec | ComponentSpec | TokenPairSpec | TopNodesSpec | ScoredTokensSpec | AttributionSpec
)
"""What a batch may ask for."""
