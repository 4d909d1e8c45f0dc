"""The shipped demo: model, tokenizer, autoencoders, corpus, records and explanations agree."""

from __future__ import annotations

import gzip
import json
import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from services.collate.writing import value_count
from shared.formats.decoding import decode_neuron_record, decode_simulation_results
from shared.formats.records import ActivationRecord, NeuronRecord
from shared.formats.simulations import NeuronSimulationResults
from shared.settings import load_deployment

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"
MODEL = DEMO / "model"
LAYERS, NEURONS, HEADS, WIDTH = 4, 256, 4, 64
LONGEST = 32


@cache
def record(dataset: str, layer: int, index: int) -> NeuronRecord:
    path = DEMO / "records" / dataset / str(layer) / f"{index}.json"
    return decode_neuron_record(path.read_bytes(), str(path))


def sequences(found: NeuronRecord) -> list[ActivationRecord]:
    by_quantile = found.random_sample_by_quantile or []
    return [
        *found.most_positive_activation_records,
        *found.random_sample,
        *(kept for sample in by_quantile for kept in sample),
    ]


def test_sizes() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert max(path.stat().st_size for path in files) < 2e6


def test_deployment_names_what_is_there() -> None:
    deployment = load_deployment(DEMO / "deployment.yaml")
    assert [dataset.short_name for dataset in deployment.datasets] == ["demo", "demo"]
    for dataset in deployment.datasets:
        assert Path(dataset.neuron_dataset_path).is_dir()
        assert all(Path(path).is_dir() for path in dataset.explanation_dataset_paths)
    assert deployment.model is not None
    assert len(deployment.model.autoencoders) == 2


@pytest.mark.torch
def test_model_has_the_shapes_of_its_configuration() -> None:
    from safetensors import safe_open

    config = json.loads((MODEL / "config.json").read_text())
    assert (config["n_layer"], config["n_embd"], config["n_inner"]) == (LAYERS, WIDTH, NEURONS)
    assert config["n_head"] == HEADS
    assert config["activation_function"] == "gelu_new"
    with safe_open(MODEL / "model.safetensors", "np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        types = {weights.get_slice(name).get_dtype() for name in shapes}
        for name in shapes:
            assert np.isfinite(weights.get_tensor(name)).all(), name
    assert types == {"F16"}
    assert shapes["transformer.wte.weight"] == [config["vocab_size"], WIDTH]
    assert shapes["transformer.wpe.weight"] == [config["n_positions"], WIDTH]
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}."
        assert shapes[block + "attn.c_attn.weight"] == [WIDTH, 3 * WIDTH]
        assert shapes[block + "mlp.c_fc.weight"] == [WIDTH, NEURONS]
        assert shapes[block + "mlp.c_proj.weight"] == [NEURONS, WIDTH]
    assert len(shapes) == 4 + 12 * LAYERS


@pytest.mark.torch
@pytest.mark.parametrize(
    ("dst", "activation", "k"),
    [("resid_delta_mlp", "topk", "12"), ("resid_delta_attn", "relu", "")],
)
def test_autoencoders_have_their_layout(dst: str, activation: str, k: str) -> None:
    from safetensors import safe_open

    with safe_open(MODEL / f"autoencoder_{dst}.safetensors", "np") as weights:
        metadata = weights.metadata()
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    assert metadata == {"dst": dst, "activation": activation, "k": k, "threshold": ""}
    assert len(tensors) == 4 * LAYERS
    for layer in range(LAYERS):
        prefix = f"layers.{layer}."
        latents = len(tensors[prefix + "latent_bias"])
        assert latents == 128
        assert tensors[prefix + "pre_bias"].shape == (WIDTH,)
        assert tensors[prefix + "encoder.weight"].shape == (latents, WIDTH)
        assert tensors[prefix + "decoder.weight"].shape == (WIDTH, latents)
        assert all(np.isfinite(tensors[name]).all() for name in tensors)


def test_autoencoder_figures_are_worth_showing() -> None:
    report = json.loads((MODEL / "autoencoders.json").read_text())
    for layers in report.values():
        assert len(layers) == LAYERS
        for figures in layers:
            assert 0.5 < figures["variance_explained"] < 1
            assert 1 < figures["latents_active"] < 64
            assert figures["dead_latents"] < 64


def test_training_curve_goes_down() -> None:
    lines = (MODEL / "training_curve.csv").read_text().splitlines()
    losses = [float(line.split(",")[3]) for line in lines[1:]]
    assert losses[-1] < losses[0] / 2
    assert (MODEL / "training_curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.torch
def test_tokenizer_goes_round() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    config = json.loads((MODEL / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id("<|endoftext|>") == config["eos_token_id"]
    for text in (
        "In the beginning God created",
        "naïve 日本 🧠\n\n  x = 1\t\r\0",
        "",
        " ",
        "\ud7ff",
    ):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.torch
def test_corpus_was_held_out() -> None:
    from data.recipe.layout import HELD_OUT
    from data.recipe.text import Passage

    lines = gzip.decompress((DEMO / "corpus.jsonl.gz").read_bytes()).decode().splitlines()
    assert len(lines) > 500
    for line in lines:
        assert Passage(**json.loads(line)).split == HELD_OUT


def test_every_component_has_its_record() -> None:
    for dataset, size in (("mlp", NEURONS), ("attn", HEADS)):
        for layer in range(LAYERS):
            names = os.listdir(DEMO / "records" / dataset / str(layer))
            assert sorted(names) == sorted(f"{index}.json" for index in range(size))


def check_record(found: NeuronRecord, layer: int, index: int, by_pair: bool) -> None:
    assert (found.neuron_id.layer_index, found.neuron_id.neuron_index) == (layer, index)
    top = [max(kept.activations) for kept in found.most_positive_activation_records]
    assert len(top) == 12
    assert top == sorted(top, reverse=True)
    assert len(found.random_sample) == 12
    cuts = found.quantile_boundaries
    samples = found.random_sample_by_quantile
    assert cuts is not None
    assert samples is not None
    assert cuts == sorted(cuts)
    assert len(samples) == len(cuts) + 1
    assert top[-1] >= cuts[-1]
    for kept in sequences(found):
        assert 16 <= len(kept.tokens) <= LONGEST
        assert len(kept.activations) == value_count(len(kept.tokens), by_pair, None)
        assert all(math.isfinite(value) for value in kept.activations)
    assert found.mean is not None
    assert found.variance is not None
    assert found.kurtosis is not None
    assert found.mean < top[0]
    assert found.variance >= 0
    assert math.isnan(found.kurtosis) or found.kurtosis >= 1


@pytest.mark.parametrize("layer", range(LAYERS))
def test_records_are_whole(layer: int) -> None:
    for index in range(NEURONS):
        check_record(record("mlp", layer, index), layer, index, by_pair=False)
    for index in range(HEADS):
        check_record(record("attn", layer, index), layer, index, by_pair=True)


@pytest.mark.torch
@pytest.mark.parametrize(("layer", "index"), [(0, 3), (1, 77), (2, 128), (3, 255)])
def test_recorded_activations_are_the_models(layer: int, index: int) -> None:
    import torch
    from tokenizers import Tokenizer

    from data.recipe.model import load

    network = load(MODEL)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    checked = 0
    for kept in sequences(record("mlp", layer, index)):
        text = "".join(kept.tokens)
        if "\ufffd" in text:
            continue
        encoded = tokenizer.encode(text)
        assert [tokenizer.decode([token]) for token in encoded.ids] == kept.tokens
        with torch.no_grad():
            _, layers = network(torch.tensor([encoded.ids]))
        true = layers[layer]["mlp_post_act"][0, :, index].double().numpy()
        # Half a unit of the fourth digit, and what float32 leaves open.
        np.testing.assert_allclose(kept.activations, true, rtol=5.1e-4, atol=2e-5)
        checked += 1
    assert checked > 20


@pytest.mark.torch
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 3), (3, 2)])
def test_recorded_head_writes_are_the_models(layer: int, head: int) -> None:
    """P times the norm of v W_O, computed here from the weights and the block's input alone."""
    import torch
    from tokenizers import Tokenizer

    from data.recipe.model import load

    network = load(MODEL)
    block = network.blocks[layer]
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    size = WIDTH // HEADS
    mine = slice(head * size, (head + 1) * size)
    for kept in record("attn", layer, head).most_positive_activation_records[:6]:
        text = "".join(kept.tokens)
        if "\ufffd" in text:
            continue
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            residual = network.wte(ids) + network.wpe.weight[: ids.shape[1]]
            for before in network.blocks[:layer]:
                residual, _ = before(residual)
            q, k, v = block.c_attn(block.ln_1(residual))[0].double().split(WIDTH, dim=1)
            logits = q[:, mine] @ k[:, mine].T / size**0.5
            future = torch.ones_like(logits, dtype=torch.bool).triu(1)
            probabilities = logits.masked_fill(future, -torch.inf).softmax(1)
            norms = (v[:, mine] @ block.attn_proj.weight.double()[:, mine].T).norm(dim=1)
            true = (probabilities * norms)[~future].numpy()
        np.testing.assert_allclose(kept.activations, true, rtol=5.5e-4, atol=2e-5)


def explained() -> list[Path]:
    return sorted((DEMO / "explanations").glob("*/*.jsonl"))


def test_a_dozen_components_are_explained() -> None:
    assert len(explained()) >= 12


@pytest.mark.parametrize("path", explained(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_explanations_hold_scores_of_their_component(path: Path) -> None:
    results = decode_simulation_results(path.read_bytes(), str(path))
    assert isinstance(results, NeuronSimulationResults)
    layer, index = results.neuron_id.layer_index, results.neuron_id.neuron_index
    assert (str(layer), str(index)) == (path.parent.name, path.stem)
    known = {tuple(kept.tokens): kept for kept in sequences(record("mlp", layer, index))}
    for scored in results.scored_explanations:
        assert 5 < len(scored.explanation) < 300
        expected: list[float] = []
        true: list[float] = []
        for sequence in scored.scored_simulation.scored_sequence_simulations:
            simulation = sequence.sequence_simulation
            recorded = known[tuple(simulation.tokens)]
            np.testing.assert_allclose(sequence.true_activations, recorded.activations, rtol=1e-3)
            expected += simulation.expected_activations
            true += sequence.true_activations
        score = scored.get_preferred_score()
        assert score is not None
        # Stored numbers have four digits; the score was computed before.
        assert score == pytest.approx(np.corrcoef(expected, true)[0, 1], abs=5e-3)
