"""What a call's inferences are derived into, on the worker of the device.

Top nodes of one name are united over the inferences, so that the last inference to be ranked can
complete all of them. Runs and what was derived from them are held till then, as long as they are
small enough together; otherwise each inference is derived in two turns, the second of which starts
from the united nodes and takes the run from those that are kept, where it is still there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from torch import Tensor

from services.scalars.answers.components import (
    ResolvedComponent,
    component_scalars,
    token_pair_table,
)
from services.scalars.answers.derivation import Derivation
from services.scalars.answers.node_lists import NodeList, united
from services.scalars.answers.output_logits import NORMALIZED, OutputLogits
from services.scalars.answers.ranking import NodeScalars, strongest_nodes, sums_of, values_of
from services.scalars.answers.results import SelectedTensors, SpecResult
from services.scalars.answers.token_pair_attribution import TokenPairAttribution
from services.scalars.engine.jobs import Check
from services.scalars.passes.inference import RunResult
from services.scalars.requests.batches import Dependent, InferencePlan, layout_of
from services.scalars.requests.components import ComponentSpec
from services.scalars.requests.selections import ResolvedSelection
from services.scalars.requests.top_nodes import ResolvedTopNodes
from services.scalars.vocabulary.node_directions import NodeDirections
from services.scalars.vocabulary.remembered_lists import RememberedLists
from services.scalars.vocabulary.scored_tokens import ScoredTokensSpec, Scoring, score
from services.scalars.vocabulary.top_tokens import VocabularyProjection
from services.scalars.vocabulary.vocabulary_lists import VocabularyLists

HELD_BYTES = 512 << 20
"""Most that inferences which wait for each other may hold of their derived scalars."""

NodesByName = dict[str, NodeList]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Tools:
    """What derivations of a model share."""

    directions: NodeDirections
    attribution: TokenPairAttribution
    vocabulary: VocabularyLists
    remembered: RememberedLists
    projection: VocabularyProjection
    logits: OutputLogits


@dataclass
class BatchWork:
    """The results of a call in the making; threads may derive its inferences side by side.

    `results` holds those of each inference once they are complete.
    """

    plans: Sequence[InferencePlan]
    tools: Tools
    held_bytes: int = HELD_BYTES
    results: dict[int, dict[str, SpecResult]] = field(default_factory=dict)
    _waiting: dict[int, tuple[Derivation, NodesByName]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def in_one_turn(self) -> bool:
        """Whether all inferences can be completed when the last has run."""
        if len(self.plans) == 1 or not self._shared_names():
            return True
        return sum(plan.held_bytes for plan in self.plans) <= self.held_bytes

    def _shared_names(self) -> bool:
        """Whether top nodes of a name are asked for on more than one inference."""
        names = [name for plan in self.plans for name in plan.top_nodes()]
        return len(set(names)) < len(names)

    def derive(self, position: int, run: RunResult, check: Check) -> RunResult:
        """Derives an inference; completes what the inferences that ran before it wait for."""
        nodes = self.rank(position, run, check)
        derivation = Derivation(self.plans[position].derivers, run, check)
        if len(self.plans) == 1 or not self._shared_names():
            self.complete([(position, derivation)], nodes)
            return run
        with self._lock:
            # One thread alone finds itself to be the last.
            self._waiting[position] = derivation, nodes
            if len(self._waiting) < len(self.plans):
                return run
            waiting = dict(sorted(self._waiting.items()))
        self.complete(
            [(each, found) for each, (found, _) in waiting.items()],
            united_by_name([listed for _, listed in waiting.values()]),
        )
        self._waiting.clear()
        return run

    def rank(self, position: int, run: RunResult, check: Check) -> NodesByName:
        """The nodes that an inference's own requests for top nodes list."""
        plan = self.plans[position]
        derivation = Derivation(plan.derivers, run, check)
        return {
            name: _remembered(
                run,
                ("strongest", each.spec),
                partial(self._strongest, name, each, plan, derivation),
                lambda nodes: 40 * len(nodes),
            )
            for name, each in plan.top_nodes().items()
        }

    def _strongest(
        self, name: str, resolved: ResolvedTopNodes, plan: InferencePlan, derivation: Derivation
    ) -> NodeList:
        derivation.check()
        if name in plan.of_one_token:
            return self.tools.logits.strongest(resolved, _normalized(derivation))
        return strongest_nodes(resolved, derivation.scalars)

    def _node_scalars(
        self,
        name: str,
        resolved: ResolvedTopNodes,
        nodes: NodeList,
        plan: InferencePlan,
        derivation: Derivation,
    ) -> NodeScalars:
        logits = self.tools.logits
        one_token = name in plan.of_one_token
        sums = _remembered(
            derivation.run,
            ("sums", resolved.spec),
            lambda: (
                logits.sums(resolved, _normalized(derivation))
                if one_token
                else sums_of(resolved, derivation.scalars)
            ),
            lambda found: sum(each.nbytes for each in found.values()),
        )
        values = _remembered(
            derivation.run,
            ("values", resolved.spec, nodes.key),
            lambda: (
                logits.values(nodes, resolved, _normalized(derivation))
                if one_token
                else values_of(nodes, resolved, derivation.scalars)
            ),
            lambda found: sum(each.nbytes for each in found.values()),
        )
        return NodeScalars(nodes, values, sums)

    def derive_with(
        self, position: int, nodes: NodesByName, run: RunResult, check: Check
    ) -> RunResult:
        """Derives an inference alone, given the nodes of all."""
        self.complete([(position, Derivation(self.plans[position].derivers, run, check))], nodes)
        return run

    def complete(self, derivations: Sequence[tuple[int, Derivation]], nodes: NodesByName) -> None:
        """Makes the results of some inferences, whose listed nodes are given."""
        found: dict[int, dict[str, SpecResult]] = {}
        scorings: list[tuple[int, str, Scoring, tuple[object, ...]]] = []
        key: tuple[object, ...]
        for position, derivation in derivations:
            mine = found[position] = {}
            plan = self.plans[position]
            for name, spec in plan.specs.items():
                if isinstance(spec, ScoredTokensSpec):
                    key = (
                        *("scored", spec.scoring, spec.count),
                        *_listed_key(plan.nodes_of(spec), nodes[spec.depends_on]),
                    )
                    known = derivation.run.memo.get(key)
                    if known is not None:
                        mine[name] = known
                        continue
                    scoring = self._scoring(spec, plan, derivation, nodes[spec.depends_on])
                    scorings.append((position, name, scoring, key))
                else:
                    mine[name] = self._result(name, spec, plan, derivation, nodes)
            # Projecting directions takes much memory of its own, and needs none of it.
            derivation.forget()
        if scorings:
            check = derivations[0][1].check
            scored = score(
                [each[2] for each in scorings], self.tools.vocabulary, self.tools.remembered, check
            )
            runs = {position: derivation.run for position, derivation in derivations}
            for (position, name, _, key), each in zip(scorings, scored, strict=True):
                found[position][name] = each
                runs[position].memo.put(key, each, each.n_bytes)
        self.results.update(found)

    def _scoring(
        self,
        spec: ScoredTokensSpec,
        plan: InferencePlan,
        derivation: Derivation,
        nodes: NodeList,
    ) -> Scoring:
        derivation.check()
        layout = layout_of(plan.nodes_of(spec))
        directions = self.tools.directions.of(
            spec.scoring, nodes, layout, derivation.captured, derivation.check
        )
        return Scoring(spec, nodes, directions)

    def _result(
        self,
        name: str,
        spec: ResolvedSelection | ResolvedComponent | ResolvedTopNodes | Dependent,
        plan: InferencePlan,
        derivation: Derivation,
        nodes: NodesByName,
    ) -> SpecResult:
        match spec:
            case ResolvedSelection():
                return selected_tensors(spec, derivation)
            case ResolvedComponent():
                if isinstance(spec.spec, ComponentSpec):
                    return component_scalars(
                        spec, derivation, self.tools.directions, self.tools.projection
                    )
                return token_pair_table(spec, derivation)
            case ResolvedTopNodes():
                return self._node_scalars(name, spec, nodes[name], plan, derivation)
            case ScoredTokensSpec():
                raise ValueError("tokens are scored for all inferences together")
            case _:
                listed = nodes[spec.depends_on]
                return _remembered(
                    derivation.run,
                    ("attributed", spec.count, *_listed_key(plan.nodes_of(spec), listed)),
                    lambda: self.tools.attribution.of(
                        spec,
                        listed,
                        layout_of(plan.nodes_of(spec)),
                        derivation.captured,
                        derivation.check,
                    ),
                    lambda attributions: attributions.n_bytes,
                )


def united_by_name(listed: Sequence[NodesByName]) -> NodesByName:
    """Nodes of the same name together, each once, in the order of the inferences."""
    names = dict.fromkeys(name for each in listed for name in each)
    return {name: united([each[name] for each in listed if name in each]) for name in names}


def selected_tensors(selection: ResolvedSelection, derivation: Derivation) -> SelectedTensors:
    """A selection's tensors, cut to its ranges."""
    by_layer = derivation.scalars(selection).activations_by_layer_index
    return SelectedTensors(
        {
            layer: by_layer[layer][selection.slices].float().contiguous().cpu().numpy()
            for layer in selection.layers
        }
    )


def _normalized(derivation: Derivation) -> Tensor:
    """The residual stream after the final layer norm, (T, D)."""
    return derivation.captured(NORMALIZED.location, NORMALIZED.layer)


def _listed_key(top_nodes: ResolvedTopNodes, nodes: NodeList) -> tuple[object, ...]:
    """The same for lists of the same nodes; equal indices may count different things."""
    return (*layout_of(top_nodes).items(), nodes.key)


def _remembered(
    run: RunResult,
    key: tuple[object, ...],
    make: Callable[[], Found],
    n_bytes: Callable[[Found], int],
) -> Found:
    """What was derived from a run before, or is now."""
    known: Found | None = run.memo.get(key)
    if known is not None:
        return known
    found = make()
    run.memo.put(key, found, n_bytes(found))
    return found
