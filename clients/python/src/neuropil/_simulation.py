"""Simulation, calibration, scoring and explaining."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuropil import names
from neuropil._simulation_results import (
    BulkEvent,
    Proposals,
    ScoredExplanation,
    Simulation,
    bulk_event_of,
    proposals_of,
    scored_of,
    simulation_of,
)
from neuropil._token_sequences import refuse_text, token_sequences
from neuropil.errors import NeuropilError, translated
from neuropil.names import component_id, dataset_names
from neuropil.simulation import v1
from neuropil.tensors import to_array, to_tensor

BULK_SECONDS = 86_400.0
"""Deadline of a bulk run, where none is given."""


class SimulationClient:
    """Simulates components from explanations and scores the simulations; proposes explanations."""

    def __init__(self, stub: v1.SimulationStub, timeout: float) -> None:
        self.stub = stub
        """The generated stub, for what this class doesn't cover."""
        self._timeout = timeout

    def simulators(self) -> list[v1.Simulator]:
        """The simulators of the deployment: what they run and can do, whether they are ready."""
        with translated():
            answer = self.stub.ListSimulators(v1.ListSimulatorsRequest(), timeout=self._timeout)
        return list(answer.simulators)

    def explainers(self) -> list[v1.Explainer]:
        """The explainers of the deployment."""
        with translated():
            answer = self.stub.ListExplainers(v1.ListExplainersRequest(), timeout=self._timeout)
        return list(answer.explainers)

    def simulate(
        self,
        explanation: str,
        sequences: Sequence[Sequence[str]],
        *,
        simulator: str = "",
        calibration: v1.Calibration | None = None,
        calibration_id: str = "",
    ) -> list[Simulation]:
        """Simulate an explanation on sequences of tokens; with a calibration, in activation units.

        Raises:
            ValueError: if a text stands where a list of tokens is needed.
            NeuropilError: INVALID_ARGUMENT, naming the field, for an empty explanation or the like.
        """
        request = v1.SimulateRequest(
            simulator=simulator,
            explanation=explanation,
            sequences=token_sequences(sequences),
            calibration=calibration,
            calibration_id=calibration_id,
        )
        with translated():
            return [
                simulation_of(response.simulation, response.cost)
                for response in self.stub.Simulate(request, timeout=self._timeout)
            ]

    def simulate_explanations(
        self,
        explanations: Sequence[str],
        tokens: Sequence[str],
        *,
        simulator: str = "",
        calibration: v1.Calibration | None = None,
        calibration_id: str = "",
    ) -> list[Simulation]:
        """Simulate many explanations on one sequence of tokens; one simulation an explanation.

        Raises:
            ValueError: if a text stands for the explanations, or for the tokens.
            NeuropilError: as `simulate`.
        """
        refuse_text(tokens, "tokens")
        if isinstance(explanations, str):
            raise ValueError("explanations is one text; a list of explanations is needed")
        request = v1.SimulateExplanationsRequest(
            simulator=simulator,
            explanations=explanations,
            tokens=tokens,
            calibration=calibration,
            calibration_id=calibration_id,
        )
        with translated():
            return [
                simulation_of(response.simulation, response.cost)
                for response in self.stub.SimulateExplanations(request, timeout=self._timeout)
            ]

    def propose(
        self,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        datasets: str | Sequence[str],
        *,
        explainer: str = "",
        count: int = 1,
        seed: int = 0,
        temperature: float | None = None,
        max_sequences: int = 0,
    ) -> Proposals:
        """At most `count` explanations of a recorded component, best first.

        The explainer's own order is not that of `train_correlation` alone: of two that fit as well
        the simpler one is better.

        Raises:
            ValueError: if there is no such scalar type.
            NeuropilError: NOT_FOUND where no dataset has the component.
        """
        request = v1.ProposeExplanationsRequest(
            recorded_component=v1.RecordedComponent(
                component=component_id(derived_scalar_type, layer_index, component_index),
                datasets=dataset_names(datasets),
            ),
            explainer=explainer,
            count=count,
            seed=seed,
            temperature=temperature,
            max_sequences=max_sequences,
        )
        with translated():
            return proposals_of(self.stub.ProposeExplanations(request, timeout=self._timeout))

    @staticmethod
    def score_request(
        explanation: str,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        datasets: str | Sequence[str],
        *,
        simulator: str = "",
        method: str | None = None,
        calibration: str | v1.Calibration | None = None,
        calibration_id: str = "",
        max_sequences: int = 0,
        seed: int = 0,
        min_coverage: float = 0.0,
        max_judgements: int = 0,
        pairs_per_sequence: int = 0,
        low_activation_threshold: float = 0.0,
        explanation_provenance: v1.ExplanationProvenance | None = None,
    ) -> v1.ScoreExplanationRequest:
        """The request of `score` with the same arguments, one of those that `bulk_score` takes.

        Raises:
            ValueError: if a name is unknown.
        """
        request = v1.ScoreExplanationRequest(
            recorded_component=v1.RecordedComponent(
                component=component_id(derived_scalar_type, layer_index, component_index),
                datasets=dataset_names(datasets),
            ),
            explanation=explanation,
            simulator=simulator,
            calibration_id=calibration_id,
            max_sequences=max_sequences,
            seed=seed,
            min_coverage=min_coverage,
            max_judgements=max_judgements,
            pairs_per_sequence=pairs_per_sequence,
            low_activation_threshold=low_activation_threshold,
            explanation_provenance=explanation_provenance,
        )
        _set_names(request, method, calibration)
        return request

    def score(
        self,
        explanation: str,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        datasets: str | Sequence[str],
        *,
        simulator: str = "",
        method: str | None = None,
        calibration: str | v1.Calibration | None = None,
        calibration_id: str = "",
        max_sequences: int = 0,
        seed: int = 0,
        min_coverage: float = 0.0,
        max_judgements: int = 0,
        pairs_per_sequence: int = 0,
        low_activation_threshold: float = 0.0,
        explanation_provenance: v1.ExplanationProvenance | None = None,
        on_progress: Callable[[v1.Progress], None] | None = None,
    ) -> ScoredExplanation:
        """Score an explanation of a recorded component.

        `method` is simulation, detection, fuzzing or attention_pairs; None means attention_pairs
        for components by token pair and simulation for others. `calibration` is none, linear,
        percentile or isotonic, which is fitted on other sequences of the record; or a fitted one.
        None means the deployment's default; `calibration_id` names one that `store_calibration`
        kept. Other methods than simulation calibrate nothing. `datasets` are tried in order; a
        single one need not be in a list. 0 means the service's own default. `max_sequences` takes
        sequences evenly spread over the scored ones; one or two of them say little.

        Raises:
            ValueError: if a name is unknown.
            NeuropilError: NOT_FOUND where no dataset has the component.
        """
        request = self.score_request(
            explanation,
            derived_scalar_type,
            layer_index,
            component_index,
            datasets,
            simulator=simulator,
            method=method,
            calibration=calibration,
            calibration_id=calibration_id,
            max_sequences=max_sequences,
            seed=seed,
            min_coverage=min_coverage,
            max_judgements=max_judgements,
            pairs_per_sequence=pairs_per_sequence,
            low_activation_threshold=low_activation_threshold,
            explanation_provenance=explanation_provenance,
        )
        return self._scored(request, on_progress)

    def score_sequences(
        self,
        explanation: str,
        sequences: Sequence[Sequence[str]],
        activations: Sequence[ArrayLike],
        *,
        calibration_sequences: Sequence[Sequence[str]] = (),
        calibration_activations: Sequence[ArrayLike] = (),
        simulator: str = "",
        method: str | None = None,
        calibration: str | v1.Calibration | None = None,
        calibration_id: str = "",
        seed: int = 0,
        min_coverage: float = 0.0,
        on_progress: Callable[[v1.Progress], None] | None = None,
    ) -> ScoredExplanation:
        """Score an explanation on sequences of one's own, each with an activation a token.

        A calibration is fitted on `calibration_sequences`, none of which may be among the scored
        ones; without any, `calibration` is ``"none"`` or a fitted one. The rest is as in `score`.

        Raises:
            ValueError: if a name is unknown, a text stands where a list of tokens is needed, or a
                sequence has not one activation a token.
            NeuropilError: INVALID_ARGUMENT, naming the field, where nothing can be scored.
        """
        request = v1.ScoreExplanationRequest(
            sequences=v1.LabeledSequences(
                scored_sequences=token_sequences(sequences, activations),
                calibration_sequences=token_sequences(
                    calibration_sequences,
                    calibration_activations,
                    names=("calibration_sequences", "calibration_activations"),
                ),
            ),
            explanation=explanation,
            simulator=simulator,
            calibration_id=calibration_id,
            seed=seed,
            min_coverage=min_coverage,
        )
        _set_names(request, method, calibration)
        return self._scored(request, on_progress)

    def _scored(
        self,
        request: v1.ScoreExplanationRequest,
        on_progress: Callable[[v1.Progress], None] | None,
    ) -> ScoredExplanation:
        result: v1.ScoredExplanation | None = None
        with translated():
            # Read to the end, although the result comes last: the server sees the call succeed.
            for response in self.stub.ScoreExplanation(request, timeout=self._timeout):
                if response.HasField("result"):
                    result = response.result
                elif on_progress is not None:
                    on_progress(response.progress)
        if result is None:
            raise NeuropilError("DATA_LOSS", "the answer ended before the result")
        return scored_of(result)

    def bulk_score(
        self,
        requests: Sequence[v1.ScoreExplanationRequest],
        resume_key: str,
        *,
        max_tokens: int = 0,
        max_calls: int = 0,
        max_concurrency: int = 0,
        explanation_dataset: str = "",
        timeout: float = BULK_SECONDS,
    ) -> Generator[BulkEvent, None, None]:
        """Score many explanations; `score_request` makes the requests.

        Gives `BulkProgress` and `BulkResult`s as they come, a `BulkSummary` last. A run of the same
        key and requests goes on where the last one stopped: what was scored then is sent again,
        marked as reused. `max_tokens` and `max_calls` are for all runs of the key together; 0 is no
        limit. Results are put to `explanation_dataset` where one is named. Who stops in the middle
        closes the iterator, and the service stops too.

        Raises:
            ValueError: if a number is out of range.
            NeuropilError: FAILED_PRECONDITION where the deployment keeps no state, or the key is
                that of other requests; a request that fails is a `BulkResult` with its failure.
        """
        request = v1.BulkScoreExplanationsRequest(
            resume_key=resume_key,
            requests=requests,
            budget=v1.Budget(max_tokens=max_tokens, max_calls=max_calls),
            explanation_dataset=explanation_dataset,
            max_concurrency=max_concurrency,
        )
        with translated():
            call = self.stub.BulkScoreExplanations(request, timeout=timeout)
            try:
                for response in call:
                    event = bulk_event_of(response)
                    if event is not None:
                        yield event
            finally:
                call.cancel()

    def fit_calibration(
        self,
        kind: str,
        simulated: ArrayLike,
        true_activations: ArrayLike,
        *,
        sequences: Sequence[Sequence[str]] | None = None,
    ) -> v1.Calibration:
        """Fit a calibration to simulated and true activations, [N] each.

        Given the `sequences` of tokens that they belong to, no score is given on one of these with
        it.

        Raises:
            ValueError: if there is no such kind, or a text stands where a list of tokens is needed.
            NeuropilError: INVALID_ARGUMENT where lengths differ or a value is not finite.
        """
        request = v1.FitCalibrationRequest(
            kind=names.CALIBRATION_KINDS.value(kind),
            simulated=to_tensor(np.asarray(simulated, dtype=np.float64)),
            true_activations=to_tensor(np.asarray(true_activations, dtype=np.float64)),
            sequences=None if sequences is None else token_sequences(sequences),
        )
        with translated():
            return self.stub.FitCalibration(request, timeout=self._timeout).calibration

    def apply_calibration(
        self, calibration: v1.Calibration | str, values: ArrayLike
    ) -> NDArray[Any]:
        """Map simulated values, of any shape, to activation units.

        `calibration` is a fitted one, or the id of one that `store_calibration` kept.
        """
        request = v1.ApplyCalibrationRequest(values=to_tensor(np.asarray(values, dtype=np.float64)))
        if isinstance(calibration, str):
            request.calibration_id = calibration
        else:
            request.calibration.CopyFrom(calibration)
        with translated():
            return to_array(self.stub.ApplyCalibration(request, timeout=self._timeout).values)

    def store_calibration(self, calibration: v1.Calibration) -> str:
        """Keep a fitted calibration; gives its id, the same for the same content.

        Raises:
            NeuropilError: FAILED_PRECONDITION where the deployment keeps no state.
        """
        request = v1.StoreCalibrationRequest(calibration=calibration)
        with translated():
            return self.stub.StoreCalibration(request, timeout=self._timeout).calibration_id

    def stored_calibration(self, calibration_id: str) -> v1.Calibration:
        """The calibration that is kept under an id.

        Raises:
            NeuropilError: NOT_FOUND where there is none.
        """
        request = v1.GetCalibrationRequest(calibration_id=calibration_id)
        with translated():
            return self.stub.GetCalibration(request, timeout=self._timeout).calibration


def _set_names(
    request: v1.ScoreExplanationRequest,
    method: str | None,
    calibration: str | v1.Calibration | None,
) -> None:
    if method is not None:
        request.method = names.SCORING_METHODS.value(method)
    if isinstance(calibration, v1.Calibration):
        request.calibration.CopyFrom(calibration)
    elif calibration is not None:
        request.calibration_kind = names.CALIBRATION_KINDS.value(calibration)
