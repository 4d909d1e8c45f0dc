"""Files of autoencoders in our layout: what they say, and how whatever is wrong is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.scalars.autoencoders import Activation
from services.scalars.autoencoders.probe import reconstruction_errors
from services.scalars.model.locations import ActivationLocationType, NodeType
from services.scalars.model.subject import Subject, load_subject
from shared.settings import Autoencoder
from tests.unit.scalars_autoencoder_loading import LATENTS, Load, small, without
from tests.unit.scalars_autoencoders import Tensors, random_tensors, write_own_layout
from tests.unit.scalars_checkpoint import LAYERS, NEURONS, WIDTH, write_checkpoint


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject("tiny", str(write_checkpoint(tmp_path_factory.mktemp("model"))), "cpu")


@pytest.fixture
def load(subject: Subject) -> Load:
    return Load(subject)


def own(path: Path, tensors: Tensors | None = None, **more: str) -> Autoencoder:
    """A file on the MLP's output with one layer."""
    given = {"activation": "ReLU", **more}
    dst = given.pop("dst", "resid_delta_mlp")
    return write_own_layout(path, dst, {0: tensors or small()}, **given)


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


def test_faults_of_own_layout(tmp_path: Path, load: Load) -> None:
    file = tmp_path / "a.safetensors"
    load.refused("swish", own(file, activation="swish"))
    load.refused("activation is ''", own(file, activation=""))
    load.refused("dst is 'logits'", own(file, dst="logits"))
    load.refused("dst is ''", own(file, dst=""))
    load.refused(r"\[10, 40\]; \[10, 24\] is needed", own(file, small(width=NEURONS)))
    for name in small():
        load.refused(f"{name} is missing", own(file, without(small(), name)))
    load.refused("latent_bias has shape", own(file, small() | {"latent_bias": torch.zeros(3)}))
    load.refused("latents by channels", own(file, small() | {"encoder.weight": torch.zeros(4)}))
    load.refused(
        "latents by channels", own(file, small() | {"encoder.weight": torch.zeros(0, WIDTH)})
    )
    for bad in (float("nan"), float("inf")):
        biases = torch.zeros(LATENTS).index_fill(0, torch.tensor(4), bad)
        load.refused("latent_bias holds values", own(file, small() | {"latent_bias": biases}))
    whole = torch.zeros(LATENTS, dtype=torch.int64)
    load.refused("floating point", own(file, small() | {"latent_bias": whole}))
    load.refused("layers.0.scale is unknown", own(file, small() | {"scale": torch.ones(1)}))
    load.refused(
        "threshold is unknown for relu", own(file, small() | {"threshold": torch.ones(10)})
    )
    configured = write_own_layout(file, "resid_delta_mlp", {LAYERS: small()})
    load.refused(f"layer {LAYERS}; the model has layers 0 to 2", configured)
    load.refused("is unknown", write_own_layout(file, "resid_delta_mlp", {10**20: small()}))


def test_faults_of_parameters(tmp_path: Path, load: Load) -> None:
    file = tmp_path / "a.safetensors"
    for k in ("", "0", "11", "-1", "2.5", "five", "١", "9" * 30):
        load.refused("whole number from 1 to the 10", own(file, activation="topk", k=k))
    for threshold in ("nan", "inf", "-0.1", "high"):
        load.refused("a number from 0", own(file, activation="jumprelu", threshold=threshold))
    load.refused("neither is there", own(file, activation="jumprelu"))
    both = small() | {"threshold": torch.ones(LATENTS)}
    load.refused("both are there", own(file, both, activation="jumprelu", threshold="1"))
    negative = small() | {"threshold": -torch.ones(LATENTS)}
    load.refused("negative", own(file, negative, activation="jumprelu"))
    load.refused("gate_bias is missing", own(file, activation="gated"))


def test_faults_of_files(tmp_path: Path, load: Load) -> None:
    file = tmp_path / "a.safetensors"
    load.refused("not a safetensors file", Autoencoder(name="a", path=str(file)))
    whole = own(file)
    content = file.read_bytes()
    for length in (0, 4, 30, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        load.refused("can't be read as safetensors", whole)
    save_file({"x": torch.zeros(1)}, file, metadata={"dst": "mlp_post_act", "activation": "relu"})
    load.refused("tensor x is unknown", whole)
    save_file({}, file, metadata={"dst": "mlp_post_act", "activation": "relu"})
    load.refused(r"no layers\.<i>\.encoder\.weight", whole)
    save_file({"x": torch.zeros(1)}, file)
    load.refused("dst is ''", whole)


def test_two_of_one_kind(tmp_path: Path, load: Load) -> None:
    output = own(tmp_path / "output.safetensors")
    neurons = own(tmp_path / "neurons.safetensors", small(width=NEURONS), dst="mlp_post_act")
    heads = own(tmp_path / "heads.safetensors", dst="resid_delta_attn")
    assert len(load(output, heads).all) == 2
    load.refused("neurons is a second autoencoder .* beside output", output, neurons)
    load.refused("second", output, heads, heads)


def test_a_reconstruction_of_another_scale_is_refused(
    tmp_path: Path, subject: Subject, load: Load
) -> None:
    tensors = small() | {"latent_bias": torch.ones(LATENTS)}
    autoencoder = load(own(tmp_path / "a.safetensors", tensors)).all[0]
    errors = reconstruction_errors(autoencoder, subject.model, subject.tokenizer)
    assert 0 < errors[0] < 10
    tensors["decoder.weight"] = tensors["decoder.weight"] * 1e6
    load.refused("times its length", own(tmp_path / "b.safetensors", tensors))
    # Latents that overflow have no error at all.
    tensors["encoder.weight"] = tensors["encoder.weight"] * 1e30
    tensors["decoder.weight"] = tensors["decoder.weight"] * 1e30
    load.refused("times its length", own(tmp_path / "c.safetensors", tensors))


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
