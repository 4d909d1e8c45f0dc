"""The whole chain on a model whose neurons' meaning is known exactly.

Weights set by hand, derived scalars, collation, records, simulation by an oracle, calibration and
scores, each behind its own service: explanations that are true must score as such, and the same
explanations given to other neurons must not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from neuropil.simulation import v1
from shared.formats.decoding import decode_neuron_record
from tests.load.simulation_coverage import CASES, coverage
from tests.planted.meaning import ACTIVE, NEURONS, sentences, text
from tests.planted.serving import Planted, serving

pytestmark = [pytest.mark.torch, pytest.mark.asyncio(loop_scope="module")]

COMPONENTS = [
    (layer, neuron, meaning)
    for layer, meanings in enumerate(NEURONS)
    for neuron, meaning in enumerate(meanings)
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Planted]:
    async with serving(tmp_path_factory.mktemp("planted")) as world:
        yield world


@pytest.fixture(scope="module")
def likeness() -> np.ndarray:
    """Correlations [neurons, neurons] of what the neurons mean, on other text."""
    texts = text(1, 400, 24)
    columns = [
        np.concatenate([meaning.activations(tokens) for tokens in texts])
        for _, _, meaning in COMPONENTS
    ]
    result: np.ndarray = np.corrcoef(columns)
    return result


async def test_weights_compute_what_neurons_mean() -> None:
    import torch

    from tests.planted.model import network, tokenizer

    model, words = network(), tokenizer()
    seen: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(model.transformer.h):
        block.mlp.act.register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.__setitem__(layer, output[0])
        )
    for tokens in text(0, 40, 32):
        with torch.inference_mode():
            model(torch.tensor([words.encode("".join(tokens)).ids]))
        for layer, neuron, meaning in COMPONENTS:
            np.testing.assert_allclose(
                seen[layer][:, neuron].numpy(), meaning.activations(tokens), atol=2e-3
            )


async def test_records_hold_what_neurons_mean(planted: Planted) -> None:
    for layer, neuron, meaning in COMPONENTS:
        path = planted.records / str(layer) / f"{neuron}.json"
        record = decode_neuron_record(path.read_bytes(), str(path))
        assert len(record.most_positive_activation_records) == 24
        for each in record.most_positive_activation_records + record.random_sample:
            np.testing.assert_allclose(
                each.activations, meaning.activations(each.tokens), atol=2e-3
            )
        assert record.max_activation == pytest.approx(ACTIVE, abs=2e-3)


@pytest.mark.parametrize(
    "kind",
    [
        v1.CALIBRATION_KIND_NONE,
        v1.CALIBRATION_KIND_LINEAR,
        v1.CALIBRATION_KIND_PERCENTILE,
        v1.CALIBRATION_KIND_ISOTONIC,
    ],
)
async def test_each_true_explanation_scores_high(
    planted: Planted, kind: v1.CalibrationKind
) -> None:
    for layer, neuron, meaning in COMPONENTS:
        result = await planted.scored(layer, neuron, meaning.explanation, kind)
        assert result.preferred_score.value > 0.95, meaning.explanation
        # What the oracle answers, 0 to 10, is too large for activations up to 4.
        assert result.uncalibrated_scores.r_squared.value < 0, meaning.explanation
        r_squared = result.scored_simulation.scores.r_squared.value
        if kind == v1.CALIBRATION_KIND_NONE:
            assert r_squared == result.uncalibrated_scores.r_squared.value
        else:
            assert r_squared > 0.9, meaning.explanation


async def test_each_shuffled_explanation_scores_low(planted: Planted, likeness: np.ndarray) -> None:
    calibrated = []
    for number, (layer, neuron, meaning) in enumerate(COMPONENTS):
        # "The word 'city' after 'the'" isn't wrong enough of a neuron for places.
        others = [other for other, alike in enumerate(likeness[number]) if alike < 0.05]
        assert len(others) >= len(COMPONENTS) - 3
        for shift in (1, 4):
            wrong = COMPONENTS[others[(number + shift) % len(others)]][2].explanation
            result = await planted.scored(layer, neuron, wrong, v1.CALIBRATION_KIND_LINEAR)
            score = result.uncalibrated_scores.ev_correlation
            assert not score.HasField("value") or score.value < 0.1, (meaning, wrong)
            assert result.preferred_score.HasField("value"), (meaning, wrong)
            calibrated.append(result.preferred_score.value)
    # Classes that exclude each other correlate a little, and a line may turn the sign.
    assert abs(np.median(calibrated)) < 0.1
    assert max(np.abs(calibrated)) < 0.2


async def test_intervals_surround_scores(planted: Planted) -> None:
    graded = [each for each in COMPONENTS if len(each[2].words) > 1]
    assert len(graded) == 4
    for layer, neuron, meaning in graded:
        result = await planted.scored(
            layer, neuron, meaning.explanation, v1.CALIBRATION_KIND_LINEAR
        )
        score = result.preferred_score
        low, high = score.confidence_interval.low, score.confidence_interval.high
        assert 0.9 < low <= score.value <= high <= 1


async def test_the_language_has_all_that_neurons_mean() -> None:
    numbers = sentences(np.random.default_rng(2), 300, 24)
    texts = text(2, 300, 24)
    assert len({meaning.explanation for _, _, meaning in COMPONENTS}) == len(COMPONENTS)
    for _, _, meaning in COMPONENTS:
        activations = meaning.of_numbers(numbers)
        assert (activations > 0).any(axis=1).mean() > 0.1
        np.testing.assert_array_equal(
            activations, [meaning.activations(tokens) for tokens in texts]
        )


async def test_intervals_cover_what_is_true() -> None:
    """The short form of `python -m tests.load.simulation_coverage`."""
    for case in CASES[1:3]:
        found = coverage(case, data_sets=150, population=20_000)
        # Three standard deviations of 150 draws about the 92 to 97 % of the long form.
        assert 0.85 <= found.correlation <= 1.0
        assert 0.85 <= found.r_squared <= 1.0
        assert 0 < found.true_correlation < 0.99
