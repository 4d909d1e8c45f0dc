"""Files of autoencoders: what both layouts say, and how whatever is wrong with one is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from services.scalars.autoencoders import Activation, AutoencoderSet
from services.scalars.autoencoders.loading import load_autoencoders
from services.scalars.autoencoders.probe import reconstruction_errors
from services.scalars.model.locations import ActivationLocationType, NodeType
from services.scalars.model.subject import Subject, load_subject
from shared.errors import ConfigurationError
from shared.settings import Autoencoder
from tests.unit.scalars_autoencoders import (
    Tensors,
    latents_by_definition,
    random_tensors,
    saelens_tensors,
    write_own_layout,
    write_saelens,
)
from tests.unit.scalars_checkpoint import LAYERS, NEURONS, WIDTH, write_checkpoint

LATENTS = 10


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject("tiny", str(write_checkpoint(tmp_path_factory.mktemp("model"))), "cpu")


Load = Callable[..., AutoencoderSet]
Refused = Callable[..., None]


@pytest.fixture
def load(subject: Subject) -> Load:
    def loaded(*configured: Autoencoder) -> AutoencoderSet:
        return load_autoencoders(configured, subject.model, subject.tokenizer)

    return loaded


@pytest.fixture
def refused(load: Load) -> Refused:
    def check(words: str, *configured: Autoencoder) -> None:
        with pytest.raises(ConfigurationError, match=words) as caught:
            load(*configured)
        assert caught.value.key == f"model.autoencoders[{len(configured) - 1}].path"

    return check


def small(activation: str = "relu", width: int = WIDTH, seed: int = 0) -> Tensors:
    return random_tensors(width, LATENTS, seed, activation, scale=0.1)


def own(path: Path, tensors: Tensors | None = None, **more: str) -> Autoencoder:
    """A file on the MLP's output with one layer."""
    given = {"activation": "ReLU", **more}
    dst = given.pop("dst", "resid_delta_mlp")
    return write_own_layout(path, dst, {0: tensors or small()}, **given)


def inputs(width: int = WIDTH) -> Tensor:
    return torch.randn(6, width, generator=torch.Generator().manual_seed(2))


def test_own_layout_says_what_it_is(tmp_path: Path, load: Load) -> None:
    neurons = write_own_layout(
        tmp_path / "a.safetensors",
        "mlp_post_act",
        {layer: random_tensors(NEURONS, 7 - layer) for layer in range(LAYERS)},
    )
    heads = write_own_layout(
        tmp_path / "b.safetensors", "resid_delta_attn", {1: small()}, "TopK", k="3"
    )
    loaded = load(neurons, heads)
    first, second = loaded.all
    assert (first.name, first.activation) == ("a", Activation.RELU)
    assert first.location is ActivationLocationType.MLP_POST_ACT
    assert first.node_type is NodeType.MLP_AUTOENCODER_LATENT
    assert [first.latent_count(layer) for layer in range(LAYERS)] == [7, 6, 5]
    assert second.node_type is NodeType.ATTENTION_AUTOENCODER_LATENT
    assert (second.layers, second.layer(1).k) == ((1,), 3)
    assert load().all == ()


def test_half_precision_is_read_as_single(tmp_path: Path, load: Load) -> None:
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in small().items()}
    autoencoder = load(own(tmp_path / "a.safetensors", halves)).all[0]
    assert autoencoder.encoder(0).dtype is torch.float32
    assert torch.equal(autoencoder.encoder(0), halves["encoder.weight"].float())


def test_statistics_of_training_are_passed_over(tmp_path: Path, load: Load) -> None:
    tensors = small()
    tensors["latents_activation_frequency"] = torch.zeros(LATENTS)
    tensors["stats_last_nonzero"] = torch.zeros(LATENTS)
    assert load(own(tmp_path / "a.safetensors", tensors)).all[0].latent_count(0) == LATENTS


def test_thresholds_come_from_metadata_or_a_tensor(tmp_path: Path, load: Load) -> None:
    one = load(own(tmp_path / "a.safetensors", activation="JumpReLU", threshold="0.25")).all[0]
    assert one.layer(0).threshold is not None
    assert one.layer(0).threshold.tolist() == [0.25] * LATENTS
    each = small() | {"threshold": torch.arange(LATENTS) / 8}
    many = load(own(tmp_path / "b.safetensors", each, activation="jumprelu")).all[0]
    assert many.layer(0).threshold is not None
    assert torch.equal(many.layer(0).threshold, each["threshold"])


def without(tensors: Tensors, name: str) -> Tensors:
    return {each: tensor for each, tensor in tensors.items() if each != name}


def test_faults_of_own_layout(tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "a.safetensors"
    refused("swish", own(file, activation="swish"))
    refused("activation is ''", own(file, activation=""))
    refused("dst is 'logits'", own(file, dst="logits"))
    refused("dst is ''", own(file, dst=""))
    refused(r"\[10, 40\]; \[10, 24\] is needed", own(file, small(width=NEURONS)))
    for name in small():
        refused(f"{name} is missing", own(file, without(small(), name)))
    refused("latent_bias has shape", own(file, small() | {"latent_bias": torch.zeros(3)}))
    refused("latents by channels", own(file, small() | {"encoder.weight": torch.zeros(4)}))
    refused("latents by channels", own(file, small() | {"encoder.weight": torch.zeros(0, WIDTH)}))
    for bad in (float("nan"), float("inf")):
        biases = torch.zeros(LATENTS).index_fill(0, torch.tensor(4), bad)
        refused("latent_bias holds values", own(file, small() | {"latent_bias": biases}))
    whole = torch.zeros(LATENTS, dtype=torch.int64)
    refused("floating point", own(file, small() | {"latent_bias": whole}))
    refused("layers.0.scale is unknown", own(file, small() | {"scale": torch.ones(1)}))
    refused("threshold is unknown for relu", own(file, small() | {"threshold": torch.ones(10)}))
    configured = write_own_layout(file, "resid_delta_mlp", {LAYERS: small()})
    refused(f"layer {LAYERS}; the model has layers 0 to 2", configured)
    refused("is unknown", write_own_layout(file, "resid_delta_mlp", {10**20: small()}))


def test_faults_of_parameters(tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "a.safetensors"
    for k in ("", "0", "11", "-1", "2.5", "five", "١", "9" * 30):
        refused("whole number from 1 to the 10", own(file, activation="topk", k=k))
    for threshold in ("nan", "inf", "-0.1", "high"):
        refused("a number from 0", own(file, activation="jumprelu", threshold=threshold))
    refused("neither is there", own(file, activation="jumprelu"))
    both = small() | {"threshold": torch.ones(LATENTS)}
    refused("both are there", own(file, both, activation="jumprelu", threshold="1"))
    negative = small() | {"threshold": -torch.ones(LATENTS)}
    refused("negative", own(file, negative, activation="jumprelu"))
    refused("gate_bias is missing", own(file, activation="gated"))


def test_faults_of_files(tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "a.safetensors"
    refused("not a safetensors file", Autoencoder(name="a", path=str(file)))
    whole = own(file)
    content = file.read_bytes()
    for length in (0, 4, 30, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        refused("can't be read as safetensors", whole)
    save_file({"x": torch.zeros(1)}, file, metadata={"dst": "mlp_post_act", "activation": "relu"})
    refused("tensor x is unknown", whole)
    save_file({}, file, metadata={"dst": "mlp_post_act", "activation": "relu"})
    refused(r"no layers\.<i>\.encoder\.weight", whole)
    save_file({"x": torch.zeros(1)}, file)
    refused("dst is ''", whole)


def test_two_of_one_kind(tmp_path: Path, load: Load, refused: Refused) -> None:
    output = own(tmp_path / "output.safetensors")
    neurons = own(tmp_path / "neurons.safetensors", small(width=NEURONS), dst="mlp_post_act")
    heads = own(tmp_path / "heads.safetensors", dst="resid_delta_attn")
    assert len(load(output, heads).all) == 2
    refused("neurons is a second autoencoder .* beside output", output, neurons)
    refused("second", output, heads, heads)


def test_a_reconstruction_of_another_scale_is_refused(
    tmp_path: Path, subject: Subject, load: Load, refused: Refused
) -> None:
    tensors = small() | {"latent_bias": torch.ones(LATENTS)}
    autoencoder = load(own(tmp_path / "a.safetensors", tensors)).all[0]
    errors = reconstruction_errors(autoencoder, subject.model, subject.tokenizer)
    assert 0 < errors[0] < 10
    tensors["decoder.weight"] = tensors["decoder.weight"] * 1e6
    refused("times its length", own(tmp_path / "b.safetensors", tensors))
    # Latents that overflow have no error at all.
    tensors["encoder.weight"] = tensors["encoder.weight"] * 1e30
    tensors["decoder.weight"] = tensors["decoder.weight"] * 1e30
    refused("times its length", own(tmp_path / "c.safetensors", tensors))


def test_a_perfect_autoencoder_has_no_error(tmp_path: Path, subject: Subject, load: Load) -> None:
    identity = torch.eye(WIDTH)
    tensors = {
        "pre_bias": torch.zeros(WIDTH),
        "encoder.weight": torch.cat([identity, -identity]),
        "latent_bias": torch.zeros(2 * WIDTH),
        "decoder.weight": torch.cat([identity, -identity], dim=1),
    }
    autoencoder = load(own(tmp_path / "a.safetensors", tensors)).all[0]
    errors = reconstruction_errors(autoencoder, subject.model, subject.tokenizer)
    assert errors[0] < 1e-5


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


def test_faults_of_saelens_configurations(tmp_path: Path, refused: Refused) -> None:
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
        refused(f"hook_name is '{hook}'", with_(hook))
    refused("the model has layers 0 to 2", with_("blocks.3.hook_mlp_out"))
    refused("hook_layer is 2", with_(hook_layer=2))
    refused("hook_name is None", with_(metadata=None))
    for normalization in ("layer_norm", "constant_norm_rescale", "expected_average_only_in", True):
        refused("normalize_activations", with_(normalize_activations=normalization))
    refused("reshape_activations", with_(reshape_activations="hook_z"))
    refused("finetuning_scaling_factor", with_(finetuning_scaling_factor=True))
    refused("single head", with_(hook_head_index=1))
    centred = {"hook_name": "blocks.0.hook_mlp_out"}
    centred["model_from_pretrained_kwargs"] = {"center_writing_weights": True}  # type: ignore[assignment]
    refused("center_writing_weights", with_(metadata=centred))
    for architecture in ("temporal", "", "{}"):
        refused(f"architecture is '{architecture}'", with_(architecture=architecture))
    refused("activation_fn is 'tanh-relu'", with_(activation_fn="tanh-relu"))
    refused("k is None", with_(architecture="topk"))
    refused("k is 0", with_(architecture="topk", k=0))
    refused("k is 11, more than", with_(architecture="topk", k=11))
    refused("d_in is 25", with_(d_in=25))
    refused("d_in is None", with_(d_in=None))
    refused("d_sae is '10'", with_(d_sae="10"))
    refused("apply_b_dec_to_input is 1", with_(apply_b_dec_to_input=1))
    configured = with_()
    stated = json.loads((tmp_path / "a/cfg.json").read_text())
    del stated["architecture"]
    (tmp_path / "a/cfg.json").write_text(json.dumps(stated))
    refused("neither architecture nor activation_fn", configured)
    for named in ({}, [], 0, False):
        stated["architecture"] = named
        (tmp_path / "a/cfg.json").write_text(json.dumps(stated))
        refused("served are standard, topk", configured)
    for content, words in (("", "not JSON"), ("[]", "JSON object"), ('{"d_in"', "not JSON")):
        (tmp_path / "a/cfg.json").write_text(content)
        refused(words, configured)
    (tmp_path / "a/cfg.json").unlink()
    refused("has no cfg.json", configured)


def test_faults_of_saelens_weights(tmp_path: Path, refused: Refused) -> None:
    folder, hook = tmp_path / "a", "blocks.0.hook_mlp_out"
    good = saelens_tensors(small())
    for name in good:
        refused(
            f"{name} is missing",
            write_saelens(folder, hook, without(good, name), d_in=WIDTH, d_sae=LATENTS)
            if name != "W_enc"
            else _without_encoder(folder, hook, good),
        )
    refused("W_enc has shape", write_saelens(folder, hook, good, d_sae=LATENTS + 1))
    nan = good | {"b_dec": torch.full((WIDTH,), float("nan"))}
    refused("b_dec holds values", write_saelens(folder, hook, nan))
    refused("unknown for relu", write_saelens(folder, hook, good | {"extra": torch.zeros(1)}))
    scaled = good | {"scaling_factor": torch.full((LATENTS,), 2.0)}
    refused("scales latents", write_saelens(folder, hook, scaled))
    dead = good | {"W_dec": torch.zeros(LATENTS, WIDTH)}
    refused("rows of zeros", write_saelens(folder, hook, dead, rescale_acts_by_decoder_norm=True))
    refused("threshold is missing", write_saelens(folder, hook, good, "jumprelu"))
    for architecture in ("jumprelu", "gated"):
        scaling = write_saelens(folder, hook, good, architecture, rescale_acts_by_decoder_norm=True)
        refused("standard and topk alone", scaling)
    configured = write_saelens(folder, hook, good)
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    refused("can't be read as safetensors", configured)
    weights.unlink()
    refused("not a safetensors file", configured)


def _without_encoder(folder: Path, hook: str, tensors: Tensors) -> Autoencoder:
    configured = write_saelens(folder, hook, tensors)
    save_file(without(tensors, "W_enc"), folder / "sae_weights.safetensors")
    return configured


def test_saelens_folders_must_agree(tmp_path: Path, refused: Refused) -> None:
    weights = saelens_tensors(small())
    whole = Autoencoder(name="all", path=str(tmp_path))
    write_saelens(tmp_path / "a", "blocks.0.hook_mlp_out", weights)
    write_saelens(tmp_path / "b", "blocks.0.hook_mlp_out", weights)
    refused("are of layer 0", whole)
    write_saelens(tmp_path / "b", "blocks.1.hook_attn_out", weights)
    refused("one autoencoder has one of each", whole)
    write_saelens(tmp_path / "b", "blocks.1.hook_mlp_out", weights, "topk", k=2)
    refused("one autoencoder has one of each", whole)
