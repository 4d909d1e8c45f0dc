"""The demo's token head: what its README says holds, on neurons that it never saw."""

from __future__ import annotations

import numpy as np
import pytest

from data.recipe.layout import DEMO, RECORDS
from data.recipe.score import chosen
from shared.formats.decoding import decode_neuron_record

pytestmark = pytest.mark.torch


async def test_it_tells_explanations_from_those_of_other_neurons() -> None:
    from data.recipe.token_head_check import correlations
    from services.simulation.simulators.token_head import TokenHeadSimulator

    pairs = []
    for each in chosen()[::2]:
        path = RECORDS / "mlp" / str(each.layer) / f"{each.neuron}.json"
        pairs.append((each.explanation, decode_neuron_record(path.read_bytes(), str(path))))
    simulator = TokenHeadSimulator("token-head", DEMO / "token_head", "cpu")
    own = await correlations(simulator, pairs)
    others = await correlations(simulator, pairs, shift=3)
    await simulator.close()
    assert np.median(own) > 0.5
    assert np.median(others) < 0.15
    assert simulator.capabilities == ("reads 256 pieces at once; longer sequences in windows",)


def test_its_files_are_small_and_explained() -> None:
    files = list((DEMO / "token_head").iterdir())
    assert sum(path.stat().st_size for path in files) < 2e6
    assert {path.name for path in files} == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json"),
        "tokenizer_config.json",
    }
