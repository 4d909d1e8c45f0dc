"""Files of autoencoders in SAELens's layout: what they compute, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from services.scalars.autoencoders import Activation
from services.scalars.model.locations import ActivationLocationType
from services.scalars.model.subject import Subject, load_subject
from shared.settings import Autoencoder
from tests.unit.scalars_autoencoder_loading import LATENTS, Load, small, without
from tests.unit.scalars_autoencoders import (
    Tensors,
    latents_by_definition,
    saelens_tensors,
    write_saelens,
)
from tests.unit.scalars_checkpoint import NEURONS, WIDTH, write_checkpoint


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject("tiny", str(write_checkpoint(tmp_path_factory.mktemp("model"))), "cpu")


@pytest.fixture
def load(subject: Subject) -> Load:
    return Load(subject)


def inputs(width: int = WIDTH) -> Tensor:
    return torch.randn(6, width, generator=torch.Generator().manual_seed(2))


HOOKS = {
    "mlp.hook_post": (ActivationLocationType.MLP_POST_ACT, NEURONS),
    "hook_mlp_out": (ActivationLocationType.RESID_DELTA_MLP, WIDTH),
    "hook_attn_out": (ActivationLocationType.RESID_DELTA_ATTN, WIDTH),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_saelens_layout_computes_what_it_says(
    tmp_path: Path, load: Load, hook: str, architecture: str
) -> None:
    location, width = HOOKS[hook]
    activation = "relu" if architecture == "standard" else architecture
    for layer in (2, 0):
        tensors = small(activation, width, layer)
        if architecture == "jumprelu":
            tensors["threshold"] = torch.full((LATENTS,), 0.05)
        configured = write_saelens(
            tmp_path / "all" / f"layer_{layer}",
            f"blocks.{layer}.{hook}",
            saelens_tensors(tensors),
            architecture,
            k=4 if architecture == "topk" else None,
        )
    alone = load(configured).all[0]
    assert alone.layers == (0,)
    autoencoder = load(Autoencoder(name="all", path=str(tmp_path / "all"))).all[0]
    assert (autoencoder.location, autoencoder.activation) == (location, Activation(activation))
    assert (autoencoder.name, autoencoder.layers) == ("all", (0, 2))
    x = inputs(width)
    for layer in (0, 2):
        tensors = small(activation, width, layer)
        expected = latents_by_definition(x, tensors, activation, k=4, threshold=0.05)
        latents = autoencoder.encode(layer, x)
        torch.testing.assert_close(latents.double(), expected, rtol=1e-4, atol=1e-6)
        decoded = expected @ tensors["decoder.weight"].double().T + tensors["pre_bias"].double()
        torch.testing.assert_close(
            autoencoder.decode(layer, latents).double(), decoded, rtol=1e-4, atol=1e-6
        )


def test_saelens_without_bias_at_the_input(tmp_path: Path, load: Load) -> None:
    tensors = small()
    configured = write_saelens(
        tmp_path / "a",
        "blocks.0.hook_mlp_out",
        saelens_tensors(tensors),
        apply_b_dec_to_input=False,
    )
    autoencoder, x = load(configured).all[0], inputs()
    unbiased = tensors | {"pre_bias": torch.zeros(WIDTH)}
    expected = latents_by_definition(x, unbiased, "relu")
    torch.testing.assert_close(autoencoder.encode(0, x).double(), expected, rtol=1e-4, atol=1e-6)
    zero = autoencoder.decode(0, torch.zeros(1, LATENTS))[0]
    assert torch.equal(zero, tensors["pre_bias"])


def test_saelens_latents_in_units_of_their_write(tmp_path: Path, load: Load) -> None:
    tensors = small()
    configured = write_saelens(
        tmp_path / "a",
        "blocks.0.hook_mlp_out",
        saelens_tensors(tensors),
        "topk",
        k=3,
        rescale_acts_by_decoder_norm=True,
    )
    autoencoder, x = load(configured).all[0], inputs()
    # Pre-activations are multiplied by the length of what is written before the best are chosen.
    lengths = tensors["decoder.weight"].double().norm(dim=0)
    products = (x.double() - tensors["pre_bias"]) @ tensors["encoder.weight"].double().T
    pre = (products + tensors["latent_bias"]) * lengths
    best = pre.topk(3, dim=1)
    expected = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
    latents = autoencoder.encode(0, x)
    torch.testing.assert_close(latents.double(), expected, rtol=1e-4, atol=1e-6)
    decoded = (expected / lengths) @ tensors["decoder.weight"].double().T + tensors["pre_bias"]
    torch.testing.assert_close(
        autoencoder.decode(0, latents).double(), decoded, rtol=1e-4, atol=1e-6
    )


def test_saelens_of_older_versions(tmp_path: Path, load: Load) -> None:
    weights = saelens_tensors(small())
    old = {"metadata": None, "hook_name": "blocks.1.hook_mlp_out", "hook_layer": 1}
    relu = write_saelens(tmp_path / "a", "", weights, activation_fn_str="relu", **old)
    assert load(relu).all[0].layers == (1,)
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    autoencoder = load(write_saelens(tmp_path / "b", "", weights, **topk, **old)).all[0]
    assert (autoencoder.activation, autoencoder.layer(1).k) == (Activation.TOPK, 4)
    oldest = {"hook_point": "blocks.2.hook_mlp_out", "hook_point_layer": 2, "metadata": None}
    weights["scaling_factor"] = torch.ones(LATENTS)
    named = write_saelens(tmp_path / "c", "", weights, activation_fn="relu", **oldest)
    assert load(named).all[0].layers == (2,)


def test_faults_of_saelens_configurations(tmp_path: Path, load: Load) -> None:
    weights = saelens_tensors(small())

    def with_(hook: str = "blocks.0.hook_mlp_out", **changes: object) -> Autoencoder:
        architecture = str(changes.pop("architecture", "standard"))
        return write_saelens(tmp_path / "a", hook, weights, architecture, **changes)

    for hook in (
        "blocks.0.hook_resid_post",
        "blocks.0.attn.hook_z",
        "blocks.0.hook_resid_pre",
        "hook_embed",
        "blocks.x.hook_mlp_out",
        "blocks.01.hook_mlp_out",
        f"blocks.{10**20}.hook_mlp_out",
        "",
    ):
        load.refused(f"hook_name is '{hook}'", with_(hook))
    load.refused("the model has layers 0 to 2", with_("blocks.3.hook_mlp_out"))
    load.refused("hook_layer is 2", with_(hook_layer=2))
    load.refused("hook_name is None", with_(metadata=None))
    for normalization in ("layer_norm", "constant_norm_rescale", "expected_average_only_in", True):
        load.refused("normalize_activations", with_(normalize_activations=normalization))
    load.refused("reshape_activations", with_(reshape_activations="hook_z"))
    load.refused("finetuning_scaling_factor", with_(finetuning_scaling_factor=True))
    load.refused("single head", with_(hook_head_index=1))
    centred = {"hook_name": "blocks.0.hook_mlp_out"}
    centred["model_from_pretrained_kwargs"] = {"center_writing_weights": True}  # type: ignore[assignment]
    load.refused("center_writing_weights", with_(metadata=centred))
    for architecture in ("temporal", "", "{}"):
        load.refused(f"architecture is '{architecture}'", with_(architecture=architecture))
    load.refused("activation_fn is 'tanh-relu'", with_(activation_fn="tanh-relu"))
    load.refused("k is None", with_(architecture="topk"))
    load.refused("k is 0", with_(architecture="topk", k=0))
    load.refused("k is 11, more than", with_(architecture="topk", k=11))
    load.refused("d_in is 25", with_(d_in=25))
    load.refused("d_in is None", with_(d_in=None))
    load.refused("d_sae is '10'", with_(d_sae="10"))
    load.refused("apply_b_dec_to_input is 1", with_(apply_b_dec_to_input=1))
    configured = with_()
    stated = json.loads((tmp_path / "a/cfg.json").read_text())
    del stated["architecture"]
    (tmp_path / "a/cfg.json").write_text(json.dumps(stated))
    load.refused("neither architecture nor activation_fn", configured)
    for named in ({}, [], 0, False):
        stated["architecture"] = named
        (tmp_path / "a/cfg.json").write_text(json.dumps(stated))
        load.refused("served are standard, topk", configured)
    torn = ("", '{"d_in"', "[" * 100_000)
    for content, words in (("[]", "JSON object"), *((each, "not JSON") for each in torn)):
        (tmp_path / "a/cfg.json").write_text(content)
        load.refused(words, configured)
    (tmp_path / "a/cfg.json").unlink()
    load.refused("has no cfg.json", configured)


def test_faults_of_saelens_weights(tmp_path: Path, load: Load) -> None:
    folder, hook = tmp_path / "a", "blocks.0.hook_mlp_out"
    good = saelens_tensors(small())
    for name in good:
        load.refused(
            f"{name} is missing",
            write_saelens(folder, hook, without(good, name), d_in=WIDTH, d_sae=LATENTS)
            if name != "W_enc"
            else _without_encoder(folder, hook, good),
        )
    load.refused("W_enc has shape", write_saelens(folder, hook, good, d_sae=LATENTS + 1))
    nan = good | {"b_dec": torch.full((WIDTH,), float("nan"))}
    load.refused("b_dec holds values", write_saelens(folder, hook, nan))
    load.refused("unknown for relu", write_saelens(folder, hook, good | {"extra": torch.zeros(1)}))
    scaled = good | {"scaling_factor": torch.full((LATENTS,), 2.0)}
    load.refused("scales latents", write_saelens(folder, hook, scaled))
    dead = good | {"W_dec": torch.zeros(LATENTS, WIDTH)}
    load.refused(
        "rows of zeros", write_saelens(folder, hook, dead, rescale_acts_by_decoder_norm=True)
    )
    load.refused("threshold is missing", write_saelens(folder, hook, good, "jumprelu"))
    for architecture in ("jumprelu", "gated"):
        scaling = write_saelens(folder, hook, good, architecture, rescale_acts_by_decoder_norm=True)
        load.refused("standard and topk alone", scaling)
    configured = write_saelens(folder, hook, good)
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    load.refused("can't be read as safetensors", configured)
    weights.unlink()
    load.refused("not a safetensors file", configured)


def _without_encoder(folder: Path, hook: str, tensors: Tensors) -> Autoencoder:
    configured = write_saelens(folder, hook, tensors)
    save_file(without(tensors, "W_enc"), folder / "sae_weights.safetensors")
    return configured


def test_saelens_folders_must_agree(tmp_path: Path, load: Load) -> None:
    weights = saelens_tensors(small())
    whole = Autoencoder(name="all", path=str(tmp_path))
    write_saelens(tmp_path / "a", "blocks.0.hook_mlp_out", weights)
    write_saelens(tmp_path / "b", "blocks.0.hook_mlp_out", weights)
    load.refused("are of layer 0", whole)
    write_saelens(tmp_path / "b", "blocks.1.hook_attn_out", weights)
    load.refused("one autoencoder has one of each", whole)
    write_saelens(tmp_path / "b", "blocks.1.hook_mlp_out", weights, "topk", k=2)
    load.refused("one autoencoder has one of each", whole)
