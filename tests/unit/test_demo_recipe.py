"""The recipe of the demo: text, network, training and its resumption."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from data.recipe import packages
from data.recipe.corpus import pack
from data.recipe.layout import HELD_OUT, SPLITS, TRAIN
from data.recipe.packages import RecipeError, fetch
from data.recipe.text import Passage, clean, passages, unwrap


def test_wrapped_prose_is_joined_and_nothing_else() -> None:
    prose = (
        "Wrapped prose goes on to the right margin of the page, and\n"
        "then on the next line, until it ends before the margin."
    )
    assert "\n" not in unwrap(prose)
    assert unwrap(prose).split() == prose.split()
    code = "for index in range(10):\n    print(index)"
    assert unwrap(code) == code
    assert unwrap("one line") == "one line"


def test_cleaning_drops_rules_and_trailing_blanks() -> None:
    text = "Title\n=====\r\n\r\nBody\u00a0text  \n\n\n\n    -----\n\tindented\n"
    assert clean(text) == "Title\n\nBody text\n\n    indented"
    assert clean("") == ""


def test_passages_hold_all_of_a_text_in_order() -> None:
    text = "\n\n".join(f"Paragraph {number} " + "x" * number for number in range(200))
    cut = list(passages("somewhere", text, size=500))
    assert "\n\n".join(passage.text for passage in cut) == text
    assert all(500 <= len(passage.text) + 2 < 900 for passage in cut[:-1])
    assert list(passages("nowhere", "\n\n\n")) == []


def test_splits_follow_from_the_text_alone() -> None:
    found = [Passage("a", f"text {number}").split for number in range(3000)]
    assert found == [Passage("b", f"text {number}").split for number in range(3000)]
    shares = {split: found.count(split) / len(found) for split in SPLITS}
    assert shares[TRAIN] == pytest.approx(0.88, abs=0.03)
    assert shares[HELD_OUT] == pytest.approx(0.10, abs=0.03)


def test_packing_has_no_time_in_it() -> None:
    assert gzip.decompress(pack(b"text")) == b"text"
    assert pack(b"text") == pack(b"text")
    assert pack(b"text")[4:8] == b"\0\0\0\0"


def test_without_apt_the_recipe_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="apt-get is not installed"):
        fetch(tmp_path / "cache")


def test_a_package_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "dpkg-deb"):
        (programs / name).write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(RecipeError, match=r"bible-kjv-text .*no network"):
        fetch(tmp_path / "cache")
    assert {package.licence for package in packages.PACKAGES}


@pytest.mark.torch
def test_chunked_cross_entropy_is_cross_entropy() -> None:
    import torch
    from torch.nn.functional import cross_entropy as reference

    from data.recipe.network import cross_entropy

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 8, generator=generator, requires_grad=True)
    embedding = torch.randn(50, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (37,), generator=generator)
    expected = reference(hidden @ embedding.T, targets)
    wanted = torch.autograd.grad(expected, (hidden, embedding))
    for rows in (5, 37, 100):
        loss = cross_entropy(hidden, embedding, targets, rows=rows)
        torch.testing.assert_close(loss, expected)
        for gradient, true in zip(
            torch.autograd.grad(2 * loss, (hidden, embedding)), wanted, strict=True
        ):
            torch.testing.assert_close(gradient, 2 * true)


@pytest.mark.torch
def test_checkpoint_goes_round_and_is_what_transformers_reads(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    from data.recipe.model import load, save
    from data.recipe.network import Network, Shape
    from data.recipe.tokenizer import train

    tokenizer = train(iter(["a small text to learn letters from"] * 3), size=300)
    shape = Shape(tokenizer.get_vocab_size(), 24, 16, 2, 2, 20)
    save(Network(shape, seed=3), tokenizer, tmp_path)
    network = load(tmp_path)
    ids = torch.randint(0, shape.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden, layers = network(ids)
        theirs = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
        torch.testing.assert_close(hidden @ network.wte.weight.T, theirs(ids).logits)
    assert layers[1]["mlp_post_act"].shape == (2, 24, 20)
    (tmp_path / "again").mkdir()
    save(network, tokenizer, tmp_path / "again")
    again = load(tmp_path / "again")
    for name, tensor in network.hugging_face_state().items():
        assert torch.equal(tensor, again.hugging_face_state()[name])


@pytest.mark.torch
def test_training_stopped_and_resumed_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from rich.console import Console

    from data.recipe import model

    small = model.Shape(40, 8, 8, 1, 2, 8)
    monkeypatch.setattr(model, "Shape", lambda: small)
    monkeypatch.setattr(model, "CHECKPOINT_EVERY", 4)
    stream = np.random.default_rng(0).integers(0, 40, size=400).astype(np.uint16)
    schedule = model.Schedule(steps=10, batch=3, warmup=2)
    console = Console(quiet=True)

    def train(checkpoint: Path, batches: type[model.Batches] = model.Batches) -> model.Network:
        monkeypatch.setattr(model, "Batches", batches)
        network, curve = model.train(
            stream, stream[:100], schedule, checkpoint, torch.device("cpu"), console
        )
        assert curve[-1]["step"] == 10
        assert curve[-1]["validation_loss"] > 0
        return network

    original = model.Batches

    class Stops(original):  # type: ignore[misc, valid-type]
        def at(self, step: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
            if step == 6:
                raise KeyboardInterrupt
            return super().at(step, batch)

    whole = train(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped.pt", Stops)
    assert torch.load(tmp_path / "stopped.pt", weights_only=True)["step"] == 4
    resumed = train(tmp_path / "stopped.pt", original)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.torch
def test_autoencoder_file_computes_what_was_trained() -> None:
    import torch

    from data.recipe.autoencoders import Design, SparseAutoencoder

    generator = torch.Generator().manual_seed(0)
    inputs = 3 + 5 * torch.randn(2, 60, 6, generator=generator)
    for design in (Design("resid_delta_mlp", "topk", 10, k=3), Design("x", "relu", 10)):
        autoencoder = SparseAutoencoder(design, inputs, seed=1)
        scaled = inputs / autoencoder.scale
        with torch.no_grad():
            expected = autoencoder.decode(autoencoder.encode(scaled)) * autoencoder.scale
        state = autoencoder.state()
        for layer in range(2):
            weights = {
                name.removeprefix(f"layers.{layer}."): tensor
                for name, tensor in state.items()
                if name.startswith(f"layers.{layer}.")
            }
            centred = inputs[layer] - weights["pre_bias"]
            pre = centred @ weights["encoder.weight"].T + weights["latent_bias"]
            latents = pre.relu()
            if design.k:
                cut = latents.topk(design.k, dim=1).values[:, -1:]
                latents = torch.where(latents >= cut, latents, 0.0)
            decoded = latents @ weights["decoder.weight"].T + weights["pre_bias"]
            torch.testing.assert_close(decoded, expected[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.torch
def test_every_explained_neuron_is_listed_once() -> None:
    from data.recipe.score import chosen

    found = chosen()
    assert len({(each.layer, each.neuron) for each in found}) >= 12
    assert len(set(found)) == len(found)
    stored = Path(__file__).resolve().parents[2] / "data" / "demo" / "explanations"
    for each in found:
        path = stored / str(each.layer) / f"{each.neuron}.jsonl"
        results = json.loads(path.read_text(encoding="utf-8"))
        assert each.explanation in [s["explanation"] for s in results["scored_explanations"]]
