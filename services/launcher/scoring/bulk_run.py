"""One bulk run from the caller's side: it is gone on with when the service was away."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import neuropil
from neuropil.simulation import v1
from services.launcher.scoring.explained import Explained
from services.launcher.scoring.outcomes import Outcomes
from shared.errors import ConfigurationError

_AWAY = frozenset({"UNAVAILABLE", "ABORTED"})
_PAUSE_SECONDS = 1.0
_OTHER_FIELDS_BYTES = 8192


@dataclass(frozen=True)
class HowToScore:
    """What the command line says of scoring; what is empty or 0 is the deployment's default."""

    simulator: str = ""
    calibration: str | None = None
    method: str | None = None
    max_sequences: int = 0
    seed: int = 0
    budget_tokens: int = 0
    budget_calls: int = 0
    concurrency: int = 0
    put_to: str = ""
    key: str = ""
    away_seconds: float = 60.0
    """How long the service may be away before that is a failure."""


OnEvent = Callable[[int, v1.SimulationCost], None]
"""Called with how many explanations have an outcome, and what is spent."""

OnAway = Callable[[neuropil.NeuropilError], None]
"""Called when the service doesn't answer, once each time that it goes away."""


def requests_of(
    client: neuropil.Client, explained: Sequence[Explained], how: HowToScore
) -> list[v1.ScoreExplanationRequest]:
    """The requests, in order; ConfigurationError where a name is unknown."""
    try:
        return [
            client.simulation.score_request(
                each.explanation,
                each.derived_scalar_type,
                each.layer,
                each.component,
                each.dataset,
                simulator=how.simulator,
                method=how.method,
                calibration=how.calibration,
                max_sequences=how.max_sequences,
                seed=how.seed,
                explanation_provenance=each.provenance,
            )
            for each in explained
        ]
    except ValueError as error:
        raise ConfigurationError("", str(error)) from error


def check_size(requests: Sequence[v1.ScoreExplanationRequest], message_bytes: int) -> None:
    """Refuse more than one message holds, with a word on what to do.

    Raises:
        ConfigurationError: naming the setting.
    """
    size = v1.BulkScoreExplanationsRequest(requests=requests).ByteSize() + _OTHER_FIELDS_BYTES
    if size > message_bytes:
        raise ConfigurationError(
            "limits.message_megabytes",
            f"{len(requests)} explanations are a message of about {size} bytes, and one holds "
            f"{message_bytes}; split the input, or raise the limit in the deployment",
        )


def key_of(requests: Sequence[v1.ScoreExplanationRequest]) -> str:
    """A key that is the same for the same requests, and for no others.

    Where results are put is no part of it: to store what is scored is not paid for again.
    """
    digest = hashlib.sha256()
    for request in requests:
        content = request.SerializeToString(deterministic=True)
        digest.update(len(content).to_bytes(8, "little") + content)
    return f"score-{digest.hexdigest()[:32]}"


def score_all(
    client: neuropil.Client,
    requests: Sequence[v1.ScoreExplanationRequest],
    outcomes: Outcomes,
    how: HowToScore,
    key: str,
    on_event: OnEvent,
    on_away: OnAway,
) -> None:
    """Enter the outcome of every request.

    A service that goes away is called again with the same key until it was away for
    `how.away_seconds`.

    Raises:
        neuropil.NeuropilError: if the run can't be begun, or gone on with.
    """
    heard, told = time.monotonic(), False
    while True:
        completed, ended = 0, False
        events = client.simulation.bulk_score(
            requests,
            key,
            max_tokens=how.budget_tokens,
            max_calls=how.budget_calls,
            max_concurrency=how.concurrency,
            explanation_dataset=how.put_to,
        )
        try:
            with closing(events):
                for event in events:
                    heard, told = time.monotonic(), False
                    outcomes.spent = event.spent
                    match event:
                        case neuropil.BulkResult():
                            outcomes.add(event)
                            completed += 1
                        case neuropil.BulkSummary():
                            # The call ends a little later, when the run is put away.
                            outcomes.stopped_by, ended = event.stopped_by, True
                    on_event(completed, event.spent)
        except neuropil.NeuropilError as error:
            if ended:
                return
            away = time.monotonic() - heard
            if error.code not in _AWAY or away > how.away_seconds:
                raise
            if not told:
                on_away(error)
                told = True
            time.sleep(max(_PAUSE_SECONDS, error.retry_after_seconds or 0.0))
        else:
            if ended:
                return
            raise neuropil.NeuropilError("DATA_LOSS", "the answer ended before its summary")
