"""What a derived scalar type declares of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.scalar_types import DerivedScalarType
from services.scalars.model.locations import (
    Dimension,
    LocationWithinLayer,
    NodeType,
    PassType,
)

T = Dimension.SEQUENCE_TOKENS
S = Dimension.ATTENDED_TO_SEQUENCE_TOKENS
PAIRS = Dimension.SEQUENCE_TOKEN_PAIRS
V = Dimension.VOCAB_SIZE
D = Dimension.RESIDUAL_STREAM_CHANNELS
H = Dimension.ATTN_HEADS
QK = Dimension.QUERY_AND_KEY_CHANNELS
VC = Dimension.VALUE_CHANNELS
F = Dimension.MLP_ACTS
A = Dimension.AUTOENCODER_LATENTS
ONE = Dimension.SINGLETON


class Requirement(StrEnum):
    """What a request for a type, or the deployment, must have."""

    GRADIENT = "a loss or a trace"
    NO_LAYER = "no layer index"
    SINGLE_AUTOENCODER = "exactly one autoencoder in the deployment"
    MLP_AUTOENCODER = "an autoencoder on the MLP"
    ATTENTION_AUTOENCODER = "an autoencoder on the attention's output"
    TRACE = "a trace"
    NODE_INDEX = "a node index"
    ACTIVATION_INDEX = "an activation index"
    NEURON_AUTOENCODER = "an autoencoder on the MLP's neurons"
    MLP_OUTPUT_AUTOENCODER = "an autoencoder on the MLP's output"
    BLOCK_OUTPUT_AUTOENCODER = "an autoencoder on the output of attention or of the MLP"
    WITHIN_LAYER_LATENT = "the within-layer gradient index of one of its latents"


class NodeRole(StrEnum):
    """Which end of the edges the one node is that a type takes."""

    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"


Make = Callable[["Derivers"], ScalarDeriver]
"""Makes a type's deriver, given where to find those that it builds on."""


@dataclass(frozen=True)
class Declaration:
    """A derived scalar type: all that the service, its validation and its documents say of it.

    `backward` says that a gradient exists as well. `node_role` is set where a type takes one node;
    one that exists only at that node's layer says so by `at_layer_of_node`.
    """

    dst: DerivedScalarType
    formula: str
    requirements: frozenset[Requirement]
    make: Make
    backward: bool
    node_role: NodeRole | None = None
    at_layer_of_node: bool = False

    @property
    def pass_types(self) -> tuple[PassType, ...]:
        """Pass types that are derived."""
        return (PassType.FORWARD, PassType.BACKWARD) if self.backward else (PassType.FORWARD,)

    def needs_gradient(self, pass_type: PassType) -> bool:
        """Whether a backward pass must run."""
        return pass_type is PassType.BACKWARD or bool(
            self.requirements & {Requirement.GRADIENT, Requirement.TRACE}
        )


def declare(
    name: str,
    dimensions: tuple[Dimension, ...],
    formula: str,
    make: Make,
    *,
    requires: Iterable[Requirement] = (),
    backward: bool = False,
    at: LocationWithinLayer | None = None,
    node_type: NodeType | None = None,
    node_role: NodeRole | None = None,
    at_layer_of_node: bool = False,
) -> Declaration:
    """Declares a type; `at` is its place in the layer, for what is upstream or downstream of it."""
    requirements = frozenset(requires)
    dst = DerivedScalarType(
        name=name,
        dimensions=dimensions,
        has_layers=Requirement.NO_LAYER not in requirements,
        location_within_layer=at,
        declared_node_type=node_type,
    )
    return Declaration(dst, formula, requirements, make, backward, node_role, at_layer_of_node)


class Catalogue:
    """All declarations, in the order of the contract; ValueError where a name is there twice."""

    def __init__(self, declarations: Iterable[Declaration]) -> None:
        self._by_name: dict[str, Declaration] = {}
        for each in declarations:
            if each.dst.name in self._by_name:
                raise ValueError(f"{each.dst.name} is declared twice")
            self._by_name[each.dst.name] = each

    def __iter__(self) -> Iterator[Declaration]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Declaration | None:
        """The declaration of a name, None where there is none."""
        return self._by_name.get(name)

    def __getitem__(self, name: str) -> Declaration:
        return self._by_name[name]

    def unflattened(self, name: str) -> str | None:
        """The type by query and key that a type by token pair is the flattened one of, if any."""
        for other in (f"unflattened_{name}", name.removeprefix("flattened_")):
            if other != name and other in self._by_name:
                return other
        return None

    @property
    def names_with_backward_pass(self) -> tuple[str, ...]:
        """Names of the types whose gradient exists."""
        return tuple(each.dst.name for each in self if each.backward)


class Derivers:
    """The derivers of one request: each made once, so that what several need is shared."""

    def __init__(self, catalogue: Catalogue, config: DstConfig) -> None:
        self._catalogue = catalogue
        self.config = config
        self._made: dict[str, ScalarDeriver] = {}

    def __getitem__(self, name: str) -> ScalarDeriver:
        """The deriver of a type; KeyError where it is not declared."""
        if name not in self._made:
            self._made[name] = self._catalogue[name].make(self)
        return self._made[name]

    def shared(self, name: str, make: Callable[[], ScalarDeriver]) -> ScalarDeriver:
        """A deriver of an intermediate that is no type of the catalogue, made once as well."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def dst(self, name: str) -> DerivedScalarType:
        """The type of a name."""
        return self._catalogue[name].dst
