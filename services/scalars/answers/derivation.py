"""Deriving from one run: derivers by configuration, and scalars when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from services.scalars.catalogue import CATALOGUE, Derivers
from services.scalars.deriving.activations import ActivationsAndMetadata
from services.scalars.deriving.config import DstConfig
from services.scalars.model.locations import ActivationLocationType, LayerIndex, PassType
from services.scalars.model.subject import Subject
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import PreparedInference, RunResult
from services.scalars.requests.selected_nodes import SelectedNode
from services.scalars.requests.selections import ResolvedSelection


class RequestDerivers:
    """The derivers of one inference: those of one configuration are made once, and share sources.

    A selection of one node's edges has a configuration of its own.
    """

    def __init__(self, subject: Subject, prepared: PreparedInference) -> None:
        self._common = DstConfig(
            subject.model,
            derive_gradients=True,
            autoencoders=subject.autoencoders,
            trace=prepared.trace,
            has_loss=prepared.loss is not None,
            within_layer_latent=prepared.within_layer_latent,
        )
        self._made: dict[SelectedNode, Derivers] = {}

    def of(self, selection: ResolvedSelection) -> Derivers:
        """The derivers of a selection's configuration."""
        about = selection.about
        if about not in self._made:
            self._made[about] = Derivers(CATALOGUE, about.config(self._common))
        return self._made[about]

    def captures(self, selections: Iterable[ResolvedSelection]) -> set[RawTensorId]:
        """The tensors that a run must capture for these selections."""
        found: set[RawTensorId] = set()
        for each in selections:
            found |= self.of(each)[each.dst.name].raw_tensors(each.pass_type, each.layers)
        return found


class Derivation:
    """What is derived from one run; each tensor once, when it is first asked for.

    `check` is called before anything is derived, and raises once nobody waits for it.
    """

    def __init__(
        self, derivers: RequestDerivers, run: RunResult, check: Callable[[], None]
    ) -> None:
        self.run = run
        self.check = check
        self._derivers = derivers

    def scalars(self, selection: ResolvedSelection) -> ActivationsAndMetadata:
        """A selection's tensors by layer, before they are cut to its ranges."""
        self.check()
        deriver = self._derivers.of(selection)[selection.dst.name]
        return deriver.derive_from_raw(
            self.run.raw_store, selection.pass_type, list(selection.layers)
        )

    def forget(self) -> None:
        """Lets go of what was derived so far; it would be derived anew."""
        self.run.raw_store.forget_derived()

    def captured(self, location: ActivationLocationType, layer: LayerIndex) -> Tensor:
        """A tensor of the forward pass."""
        found = self.run.raw_store.get(location, PassType.FORWARD)
        return found.activations_by_layer_index[layer]
