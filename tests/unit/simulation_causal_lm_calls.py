"""How tests run the causal_lm simulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.simulation.language_models.local.language_model import LocalLanguageModel
from services.simulation.simulators.causal_lm import CausalLmSimulator, Method
from services.simulation.simulators.interface import SimulatedSequence
from tests.unit.simulation_tokenizers import KINDS, save_model

DEMO = Path(__file__).parents[2] / "data" / "demo" / "model"
EXPLANATION = "names of colors"
TOLERANCE = 1e-4
SENTENCE = ["The", " red", " house", ",", "\n", " not", " a", " blue", "\t", "ish", " one", "."]


async def simulated(
    simulator: CausalLmSimulator, explanation: str, sequences: Sequence[Sequence[str]]
) -> list[SimulatedSequence]:
    return [result async for result in simulator.simulate(explanation, sequences)]


def of_folder(path: Path, method: Method = "auto", **options: Any) -> CausalLmSimulator:
    return CausalLmSimulator("causal", LocalLanguageModel(str(path)), method=method, **options)


def small_models(root: Path, *kinds: str) -> dict[str, Path]:
    """A small model with random weights by kind of tokenizer; of all kinds where none is named."""
    families = ["gpt2", "llama"] * len(KINDS)
    return {
        kind: save_model(root / str(number), make(), family)
        for number, ((kind, make), family) in enumerate(zip(KINDS.items(), families, strict=False))
        if not kinds or kind in kinds
    }
