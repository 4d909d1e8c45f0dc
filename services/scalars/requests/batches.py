"""Several inferences in one call, and several requests on each: checked before anything runs.

Requests on one inference share its passes. Some depend on others by name: tokens are scored and
token pairs attributed for the nodes that a request for top nodes lists. Top nodes of one name are
united over the inferences of a call, so that pages can be compared node by node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.scalars.answers.components import ComponentByTokenPairSpec, ResolvedComponent
from services.scalars.answers.derivation import RequestDerivers
from services.scalars.answers.output_logits import NORMALIZED, ranks_one_token
from services.scalars.answers.token_pair_attribution import (
    TokenPairAttribution,
    TokenPairAttributionSpec,
)
from services.scalars.model.subject import Subject
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import InferenceSpec, PreparedInference
from services.scalars.requests.components import ComponentSpec
from services.scalars.requests.resolving import Resolver
from services.scalars.requests.selections import ResolvedSelection, Selection
from services.scalars.requests.top_nodes import (
    MAX_NODES,
    ResolvedTopNodes,
    TopNodesSpec,
    too_many_nodes,
)
from services.scalars.vocabulary.node_directions import Layout, NodeDirections
from services.scalars.vocabulary.scored_tokens import ScoredTokensSpec
from services.scalars.vocabulary.vocabulary_lists import VocabularyLists
from shared.errors import InvalidArgument, ResourceExhausted

MAX_LISTED = 500_000
"""Most tokens that one request lists over all of its nodes, or the components of a call."""

_ENTRY_BYTES = 200
"""About what a listed token of a component takes."""

AnySpec = (
    Selection
    | ComponentSpec
    | ComponentByTokenPairSpec
    | TopNodesSpec
    | ScoredTokensSpec
    | TokenPairAttributionSpec
)
Dependent = ScoredTokensSpec | TokenPairAttributionSpec

_KINDS = {
    Selection: "a selection",
    ComponentSpec: "a component",
    ComponentByTokenPairSpec: "a component by token pair",
    TopNodesSpec: "top nodes",
    ScoredTokensSpec: "scored tokens",
    TokenPairAttributionSpec: "token-pair attribution",
}


@dataclass(frozen=True)
class NamedSpec:
    """A request on an inference. `field` is where it stands in the call, for errors."""

    name: str
    spec: AnySpec
    field: str


@dataclass(frozen=True)
class BatchInference:
    """An inference and what is asked of it. `field` is where the inference stands in the call.

    `message_bytes` is what the one message holds that all answers are sent in, in which the layers
    of a selection are one tensor; None where each tensor is sent by itself.
    """

    inference: InferenceSpec
    specs: tuple[NamedSpec, ...]
    field: str
    message_bytes: int | None = None


ResolvedSpec = ResolvedSelection | ResolvedComponent | ResolvedTopNodes | Dependent


@dataclass(eq=False)
class InferencePlan:
    """A checked inference with its checked requests, and what a run must capture for them.

    `extra_bytes` is what deriving them takes, `held_bytes` what of it waits for other inferences.
    Requests `of_one_token` are those for top nodes that rank one token's logits.
    """

    prepared: PreparedInference
    derivers: RequestDerivers
    specs: dict[str, ResolvedSpec] = field(default_factory=dict)
    captures: set[RawTensorId] = field(default_factory=set)
    extra_bytes: int = 0
    held_bytes: int = 0
    of_one_token: set[str] = field(default_factory=set)

    def top_nodes(self) -> dict[str, ResolvedTopNodes]:
        """Its requests for top nodes by name."""
        return {
            name: each for name, each in self.specs.items() if isinstance(each, ResolvedTopNodes)
        }

    def nodes_of(self, dependent: Dependent) -> ResolvedTopNodes:
        """The request for top nodes that another depends on."""
        found = self.specs[dependent.depends_on]
        if not isinstance(found, ResolvedTopNodes):
            raise ValueError(f"{dependent.depends_on} is no request for top nodes")
        return found


def layout_of(top_nodes: ResolvedTopNodes) -> Layout:
    """What the indices of the listed nodes count, by node type."""
    return {each.dst.node_type: each.dst.dimensions for each in top_nodes.groups[0]}


class Planner:
    """Checks calls against a model."""

    def __init__(
        self,
        subject: Subject,
        directions: NodeDirections,
        attribution: TokenPairAttribution,
        vocabulary: VocabularyLists,
    ) -> None:
        self._subject = subject
        self._directions = directions
        self._attribution = attribution
        self._vocabulary = vocabulary

    def plan(
        self, inferences: Sequence[BatchInference], prepared: Sequence[PreparedInference]
    ) -> list[InferencePlan]:
        """Checks all requests of a call, given its prepared inferences.

        Raises InvalidArgument or ResourceExhausted, naming the field of the call.
        """
        plans = [
            self._plan(inference, each)
            for inference, each in zip(inferences, prepared, strict=True)
        ]
        _check_lengths(inferences, plans)
        _check_united(inferences, plans)
        self._add_top_tokens(inferences, plans)
        passing = 0
        for inference, plan in zip(inferences, plans, strict=True):
            passing = max(passing, self._add_dependents(inference, plan, plans))
        # One list of directions is found or projected at a time, whichever inference it is for.
        plans[0].extra_bytes += passing
        return plans

    def _plan(self, inference: BatchInference, prepared: PreparedInference) -> InferencePlan:
        plan = InferencePlan(prepared, RequestDerivers(self._subject, prepared))
        _check_names(inference)
        for each in inference.specs:
            resolved = self._resolve(each, inference, prepared)
            plan.specs[each.name] = resolved
            match resolved:
                case ResolvedSelection():
                    selections: tuple[ResolvedSelection, ...] = (resolved,)
                case ResolvedComponent():
                    selections = (resolved.selection,)
                    plan.captures |= resolved.captures
                case ResolvedTopNodes() if ranks_one_token(resolved, prepared):
                    selections = ()
                    plan.captures.add(NORMALIZED)
                    plan.of_one_token.add(each.name)
                    plan.extra_bytes += 2 * 4 * resolved.selections[0].shape[-1]
                case ResolvedTopNodes():
                    selections = resolved.selections
                case _:
                    selections = ()
            plan.captures |= plan.derivers.captures(selections)
            derived = sum(selection.n_bytes for selection in selections)
            plan.extra_bytes += derived
            # What it is derived from is about as large.
            plan.held_bytes += 2 * derived
        _check_message(inference, plan)
        return plan

    def _resolve(
        self, named: NamedSpec, inference: BatchInference, prepared: PreparedInference
    ) -> ResolvedSpec:
        resolver = Resolver(
            self._subject, self._directions, inference.inference, prepared, inference.field
        )
        match named.spec:
            case Selection() as spec:
                return resolver.selection(spec, named.field)
            case ComponentSpec() as spec:
                return resolver.component(spec, named.field)
            case ComponentByTokenPairSpec() as spec:
                return resolver.component_by_token_pair(spec, named.field)
            case TopNodesSpec() as spec:
                return resolver.top_nodes(spec, named.field)
            case ScoredTokensSpec() | TokenPairAttributionSpec() as spec:
                _check_dependency(named, spec, inference)
                return spec

    def _add_top_tokens(
        self, inferences: Sequence[BatchInference], plans: Sequence[InferencePlan]
    ) -> None:
        """Adds what top tokens of components take, which are kept until the call is complete."""
        listed = 0
        for inference, plan in zip(inferences, plans, strict=True):
            for each in inference.specs:
                if isinstance(each.spec, ComponentSpec) and each.spec.top_token_count:
                    count = min(each.spec.top_token_count, self._vocabulary.size)
                    listed += 2 * count
                    _check_entries(
                        listed, "the components of this call", f"{each.field}.top_token_count"
                    )
                    plan.extra_bytes += 2 * count * _ENTRY_BYTES + 16 * self._vocabulary.size

    def _add_dependents(
        self, inference: BatchInference, plan: InferencePlan, plans: Sequence[InferencePlan]
    ) -> int:
        """Adds what scored tokens and attributions of listed nodes take.

        Answers the memory that finding directions and projecting them on the vocabulary takes,
        which are done one at a time.
        """
        passing = 0
        for each in inference.specs:
            spec = each.spec
            if not isinstance(spec, ScoredTokensSpec | TokenPairAttributionSpec):
                continue
            top_nodes = plan.nodes_of(spec)
            layout = layout_of(top_nodes)
            # Of all inferences: each scores the nodes of the others too.
            nodes = sum(
                other.max_nodes
                for every in plans
                for name, other in every.top_nodes().items()
                if name == spec.depends_on
            )
            n_tokens = len(plan.prepared.tokens)
            if isinstance(spec, ScoredTokensSpec):
                count = min(spec.count, self._vocabulary.size)
                _check_entries(2 * nodes * count, f"{nodes} nodes", f"{each.field}.token_count")
                plan.captures |= self._directions.captures(spec.scoring, layout)
                plan.extra_bytes += self._directions.n_bytes(nodes)
                found = self._directions.finding_bytes(spec.scoring, nodes, n_tokens)
                passing = max(passing, found, self._vocabulary.n_bytes(nodes))
            else:
                count = min(spec.count, n_tokens)
                _check_entries(
                    2 * nodes * count, f"{nodes} nodes", f"{each.field}.attended_to_token_count"
                )
                plan.captures |= self._attribution.captures(layout)
                plan.extra_bytes += self._attribution.n_bytes(nodes, count, n_tokens)
        return passing


def _check_message(inference: BatchInference, plan: InferencePlan) -> None:
    """Refuses tensors that one message can't hold, before anything is derived."""
    if inference.message_bytes is None:
        return
    sizes = {}
    for each in inference.specs:
        resolved = plan.specs[each.name]
        if isinstance(resolved, ResolvedSelection):
            _check_one_tensor(resolved, each.field)
            sizes[each.name] = resolved.answer_bytes
    if sum(sizes.values()) > inference.message_bytes:
        raise answers_too_large(
            sum(sizes.values()),
            max(sizes, key=lambda name: sizes[name]),
            inference.message_bytes,
            f"{inference.field.rpartition('.')[0]}.specs",
        )


def _check_one_tensor(selection: ResolvedSelection, field: str) -> None:
    shapes = sorted(set(selection.cut_shapes))
    if len(shapes) > 1:
        raise InvalidArgument(
            f"the layers of {selection.dst.name} have the shapes {', '.join(map(str, shapes))}, "
            "which don't fit into one tensor; name layers of one shape, cut them to a range that "
            "all have, or use Derive",
            field=f"{field}.layer_indices",
        )


def answers_too_large(size: int, largest: str, limit: int, field: str) -> ResourceExhausted:
    """The refusal of answers of an inference that one message can't hold."""
    return ResourceExhausted(
        f"the answers of this inference take {size} bytes, most of them those of {largest!r}; "
        f"a message holds {limit}. Ask for less, or in several calls",
        field=field,
        reason="REQUEST_TOO_LARGE",
        metadata={"bytes": str(size), "limit_bytes": str(limit)},
    )


def _check_names(inference: BatchInference) -> None:
    seen: set[str] = set()
    for each in inference.specs:
        if each.name in seen:
            raise InvalidArgument(
                f"{each.name!r} is the name of two requests on this inference",
                field=f"{each.field.rpartition('.')[0]}.name",
            )
        seen.add(each.name)


def _check_dependency(named: NamedSpec, spec: Dependent, inference: BatchInference) -> None:
    here = f"{named.field}.depends_on"
    by_name = {each.name: each.spec for each in inference.specs}
    needed = by_name.get(spec.depends_on)
    if isinstance(needed, TopNodesSpec):
        return
    there = ", ".join(name for name, each in by_name.items() if isinstance(each, TopNodesSpec))
    wanted = f"it must name top nodes of the same inference, which are {there or 'none'}"
    if needed is None:
        raise InvalidArgument(
            f"no request on this inference is called {spec.depends_on!r}; {wanted}", field=here
        )
    if spec.depends_on == named.name:
        raise InvalidArgument(f"{named.name!r} depends on itself; {wanted}", field=here)
    raise InvalidArgument(f"{spec.depends_on!r} is {_KINDS[type(needed)]}; {wanted}", field=here)


def _check_lengths(inferences: Sequence[BatchInference], plans: Sequence[InferencePlan]) -> None:
    """Refuses prompts of different lengths where top nodes are asked for."""
    first: tuple[int, str] | None = None
    for inference, plan in zip(inferences, plans, strict=True):
        if not plan.top_nodes():
            continue
        length = len(plan.prepared.tokens)
        if first is None:
            first = length, inference.field
        elif length != first[0]:
            raise InvalidArgument(
                f"all prompts of a call that asks for top nodes must have the same length: this "
                f"one has {length} tokens, {first[1]}.prompt has {first[0]}",
                field=f"{inference.field}.prompt",
                reason="PROMPT_LENGTHS_DIFFER",
            )


def _check_united(inferences: Sequence[BatchInference], plans: Sequence[InferencePlan]) -> None:
    """Refuses top nodes of one name whose nodes can't be united, or are too many together."""
    first: dict[str, tuple[ResolvedTopNodes, str]] = {}
    total: dict[str, int] = {}
    for inference, plan in zip(inferences, plans, strict=True):
        for each in inference.specs:
            resolved = plan.specs[each.name]
            if not isinstance(resolved, ResolvedTopNodes):
                continue
            other, where = first.setdefault(each.name, (resolved, each.field))
            if resolved.node_layout != other.node_layout:
                raise InvalidArgument(
                    f"top nodes of the name {each.name!r} are united over inferences; these are "
                    f"not of the node types of {where}, or are indexed in another way",
                    field=f"{each.field}.groups",
                )
            listed = total.get(each.name, 0) + resolved.max_nodes
            # The same nodes count once.
            total[each.name] = min(listed, resolved.nodes)
            if total[each.name] > MAX_NODES:
                raise too_many_nodes(total[each.name], each.field)


def _check_entries(entries: int, of: str, field: str) -> None:
    if entries > MAX_LISTED:
        raise ResourceExhausted(
            f"up to {entries} tokens would be listed for {of}; {MAX_LISTED} is the most. "
            "Ask for fewer tokens or fewer nodes",
            field=field,
            reason="REQUEST_TOO_LARGE",
            metadata={"entries": str(entries), "limit": str(MAX_LISTED)},
        )
