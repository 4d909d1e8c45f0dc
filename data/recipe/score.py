"""Step 7: score. Score the explanations with our own services, and store them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data.recipe.layout import CACHE, EXPLANATIONS
from data.recipe.packages import RecipeError
from data.recipe.running import service
from neuropil import Client
from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, translated
from neuropil.names import component_id
from neuropil.records import v1 as records
from neuropil.simulation import v1 as simulation
from shared.formats.decoding import decode_simulation_results
from shared.formats.encoding import encode, write_atomically

DATASET = "demo"
SCALAR_TYPE = "mlp_post_act"
SIGNIFICANT_DIGITS = 4
SECONDS = 120.0
CHOSEN = Path(__file__).with_name("explanations.yaml")


@dataclass(frozen=True)
class Explained:
    """A neuron and one explanation of it."""

    layer: int
    neuron: int
    explanation: str

    @property
    def component(self) -> common.ComponentId:
        """The neuron, as the services name it."""
        return component_id(SCALAR_TYPE, self.layer, self.neuron)


def chosen(path: Path = CHOSEN) -> list[Explained]:
    """Every explanation of the list, in its order."""
    return [
        Explained(entry["layer"], entry["neuron"], explanation)
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))
        for explanation in entry["explanations"]
    ]


def score(client: Client, explained: Explained) -> simulation.ScoredExplanation:
    """Simulate, calibrate linearly and score on the record's validation split."""
    request = simulation.ScoreExplanationRequest(
        recorded_component=simulation.RecordedComponent(
            component=explained.component, datasets=[DATASET]
        ),
        explanation=explained.explanation,
        calibration_kind=simulation.CALIBRATION_KIND_LINEAR,
    )
    with translated():
        for answer in client.simulation.stub.ScoreExplanation(request, timeout=SECONDS):
            if answer.HasField("result"):
                return answer.result
    raise RecipeError(f"no score came for {explained}")


def store(
    client: Client, explained: Explained, scored: simulation.ScoredExplanation, folder: Path
) -> None:
    """Put the explanation through the record reader, then shorten its numbers."""
    with translated():
        client.records.stub.PutExplanation(
            records.PutExplanationRequest(
                component=explained.component,
                explanation_dataset=str(folder),
                explanation=explained.explanation,
                scored_simulation=scored.scored_simulation,
            ),
            timeout=SECONDS,
        )
    path = folder / str(explained.layer) / f"{explained.neuron}.jsonl"
    results = decode_simulation_results(path.read_bytes(), str(path))
    write_atomically(path, encode(results, significant_digits=SIGNIFICANT_DIGITS) + b"\n")


def _shown(scored: simulation.Score) -> str:
    return f"{scored.value:.3f}" if scored.HasField("value") else "-"


def main(folder: Path = EXPLANATIONS) -> None:
    """Score every explanation of explanations.yaml and write `<layer>/<index>.jsonl`."""
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*/*.jsonl"):
        path.unlink()
    table = Table("neuron", "explanation", "correlation", "R squared", "R squared uncalibrated")
    CACHE.mkdir(parents=True, exist_ok=True)
    with service("records", log=CACHE / "records.log") as record_reader:
        environment = {"NEUROPIL_SERVICES__RECORDS": record_reader}
        with (
            service("simulation", log=CACHE / "simulation.log", environment=environment) as scorer,
            Client(records=record_reader, simulation=scorer, timeout=SECONDS) as client,
        ):
            try:
                for explained in track(chosen(), description="scoring", console=console):
                    scored = score(client, explained)
                    store(client, explained, scored, folder)
                    scores = scored.scored_simulation.scores
                    table.add_row(
                        f"{explained.layer}/{explained.neuron}",
                        explained.explanation,
                        _shown(scored.preferred_score),
                        _shown(scores.r_squared),
                        _shown(scored.uncalibrated_scores.r_squared),
                    )
            except NeuropilError as error:
                raise RecipeError(f"scoring {explained} failed: {error}") from error
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
