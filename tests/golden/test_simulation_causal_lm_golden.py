"""The causal_lm simulator with GPT-2's own tokenizer and context, on a narrower model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from services.simulation.language_models.local.language_model import LocalLanguageModel
from services.simulation.prompts.simulation import AllAtOncePrompt, simulation_prompt
from services.simulation.simulators.causal_lm import CausalLmSimulator
from services.simulation.simulators.token_pieces import PieceTokenizer
from tests.unit.simulation_tokenizers import save_model

pytestmark = [pytest.mark.golden, pytest.mark.torch]

EXPLANATION = "words about cats"
SEQUENCE = ["The", " cat", " sat", " on", " the", " mat", ".", "\n", " It", " purr", "ed", "."]


async def test_with_gpt_2_tokenizer_only_own_tokens_are_computed(
    golden: Path, tmp_path: Path
) -> None:
    import torch
    import transformers

    tokenizer = Tokenizer.from_file(str(golden / "model" / "tokenizer.json"))
    folder = save_model(tmp_path, tokenizer, n_positions=1024, n_layer=3)
    simulator = CausalLmSimulator("gpt2", LocalLanguageModel(str(folder)))
    sequences = [SEQUENCE * 3, SEQUENCE[:5], SEQUENCE]
    await simulated(simulator, sequences[:1])
    results = await simulated(simulator, sequences)
    assert simulator.prompt_version.startswith("few_shot-1+")

    pieces = PieceTokenizer(tokenizer.to_str())
    prompt = simulation_prompt("few_shot-1", AllAtOncePrompt)
    before = pieces.joined(prompt.shared + prompt.explained(EXPLANATION), "prompt")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    values = [pieces.piece(str(value)).ids[0] for value in range(11)]
    for tokens, result in zip(sequences, results, strict=True):
        ids = [pieces.piece(piece).ids for piece in prompt.lines(tokens)]
        own = sum(len(piece) for piece in ids)
        assert 0 < result.cost.prompt_tokens_computed <= 1.05 * own
        assert result.cost.prompt_tokens_reused == len(before)
        # The whole prompt at once, as a server that shares nothing reads it.
        with torch.inference_mode():
            whole = [*before, *(i for piece in ids for i in piece)]
            logits = plain(input_ids=torch.tensor([whole])).logits[0].double()
        place = len(before) - 1
        for number, piece in enumerate(ids):
            place += len(piece)
            if number % 4 == 1:
                expected = torch.softmax(logits[place, values], dim=-1).numpy()
                assert result.probabilities[number // 4] == pytest.approx(expected, abs=1e-4)
    await simulator.close()


async def simulated(simulator: CausalLmSimulator, sequences: list[list[str]]) -> list[Any]:
    return [result async for result in simulator.simulate(EXPLANATION, sequences)]
