"""What autoencoders compute: against their definitions, finite differences and identities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from services.scalars.autoencoders import (
    NO_AUTOENCODERS,
    Activation,
    Autoencoder,
    AutoencoderLayer,
    AutoencoderSet,
)
from services.scalars.autoencoders.autoencoder_set import sizes_at
from services.scalars.autoencoders.own_layout import read_own_layout
from services.scalars.autoencoders.within_layer import (
    WithinLayerLatent,
    resolve_within_layer_latent,
)
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    ModelShape,
    NodeType,
    PassType,
)
from services.scalars.model.weights import WriteWeights
from shared.errors import InvalidArgument
from tests.unit.scalars_autoencoders import (
    latents_by_definition,
    random_tensors,
    write_own_layout,
)

SHAPE = ModelShape(
    layers=3,
    residual_stream_channels=12,
    attn_heads=3,
    query_and_key_channels=4,
    value_channels=4,
    mlp_acts=20,
    vocab_size=50,
    context=16,
)
CPU = torch.device("cpu")
PARAMETERS: dict[str, dict[str, str]] = {
    "relu": {},
    "topk": {"k": "5"},
    "jumprelu": {"threshold": "0.3"},
    "gated": {},
}
Location = ActivationLocationType


def made(path: Path, activation: str, dst: str = "resid_delta_mlp") -> Autoencoder:
    width = 20 if dst == "mlp_post_act" else 12
    layers = {layer: random_tensors(width, 16 + layer, layer, activation) for layer in (0, 2)}
    write_own_layout(path / "a.safetensors", dst, layers, activation, **PARAMETERS[activation])
    return read_own_layout("a", path / "a.safetensors", "key", SHAPE, CPU)


def inputs(width: int = 12) -> Tensor:
    return torch.randn(7, width, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("activation", PARAMETERS)
@pytest.mark.parametrize("layer", [0, 2])
def test_latents_are_those_of_the_definition(tmp_path: Path, activation: str, layer: int) -> None:
    autoencoder = made(tmp_path, activation)
    assert autoencoder.activation is Activation(activation)
    x, tensors = inputs(), random_tensors(12, 16 + layer, layer, activation)
    expected = latents_by_definition(x, tensors, activation, k=5, threshold=0.3)
    latents = autoencoder.encode(layer, x)
    torch.testing.assert_close(latents.double(), expected, rtol=1e-5, atol=1e-6)
    assert 0 < int((latents > 0).sum()) < latents.numel()
    if activation == "topk":
        assert int((latents > 0).sum(dim=1).max()) <= 5
    decoded = expected @ tensors["decoder.weight"].double().T + tensors["pre_bias"].double()
    torch.testing.assert_close(
        autoencoder.decode(layer, latents).double(), decoded, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("activation", PARAMETERS)
def test_gradients_are_those_of_finite_differences(tmp_path: Path, activation: str) -> None:
    autoencoder = made(tmp_path, activation)
    tensors = random_tensors(12, 16, 0, activation)
    x = inputs()
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(7, 16, generator=generator)
    direction = torch.randn(7, 12, generator=generator)
    attached = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((autoencoder.encode(0, attached) * weights).sum(), attached)
    _, forward = jvp(lambda at: autoencoder.encode(0, at), (x,), (direction,))

    def by_definition(at: Tensor) -> Tensor:
        return latents_by_definition(at, tensors, activation, k=5, threshold=0.3)

    step = 1e-6
    ahead = by_definition(x.double() + step * direction.double())
    behind = by_definition(x.double() - step * direction.double())
    slopes = (ahead - behind) / (2 * step)
    torch.testing.assert_close(forward.double(), slopes, rtol=1e-4, atol=1e-4)
    expected = float((slopes * weights.double()).sum())
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("activation", PARAMETERS)
def test_the_gradient_of_one_latent_is_that_of_autograd(tmp_path: Path, activation: str) -> None:
    autoencoder = made(tmp_path, activation)
    x = inputs().requires_grad_()
    latents = autoencoder.encode(2, x)
    for latent in range(18):
        (expected,) = torch.autograd.grad(latents[:, latent].sum(), x, retain_graph=True)
        found = autoencoder.gradient(2, x.detach(), latent)
        torch.testing.assert_close(found, expected)


def test_topk_keeps_k_latents_where_all_are_alike() -> None:
    layer = AutoencoderLayer(
        encoder=torch.zeros(6, 4),
        encoder_bias=torch.ones(6),
        decoder=torch.zeros(6, 4),
        input_bias=torch.zeros(4),
        output_bias=torch.zeros(4),
        k=2,
    )
    autoencoder = Autoencoder("a", Location.RESID_DELTA_MLP, Activation.TOPK, {0: layer})
    assert autoencoder.encode(0, torch.zeros(3, 4)).sum(dim=1).tolist() == [2, 2, 2]
    # Fewer than k where pre-activations are negative: what is not positive is not active.
    assert autoencoder.activate(0, torch.tensor([[1.0, -1, -2, -3, -4, -5]])).sum() == 1
    with pytest.raises(ValueError, match="all latents"):
        autoencoder.activate(0, torch.zeros(1, 1), slice(0, 1))


def write_weights() -> WriteWeights:
    generator = torch.Generator().manual_seed(5)
    return WriteWeights(
        mlp=[torch.randn(20, 12, generator=generator) for _ in range(3)],
        attn=[torch.randn(3, 4, 12, generator=generator) for _ in range(3)],
        mlp_bias=[None] * 3,
        attn_bias=[None] * 3,
        unembedding=torch.randn(50, 12, generator=generator),
        final_norm_gain=torch.ones(12),
    )


@pytest.mark.parametrize("dst", ["mlp_post_act", "resid_delta_mlp", "resid_delta_attn"])
def test_writes_reach_the_residual_stream(tmp_path: Path, dst: str) -> None:
    autoencoder = made(tmp_path, "relu", dst)
    write = write_weights()
    directions = autoencoder.write_directions(2, write)
    decoder = random_tensors(20 if dst == "mlp_post_act" else 12, 18, 2)["decoder.weight"]
    expected = decoder.T @ write.mlp[2] if dst == "mlp_post_act" else decoder.T
    torch.testing.assert_close(directions, expected)
    torch.testing.assert_close(autoencoder.write_norms(2, write), expected.norm(dim=1))
    vectors = inputs()
    torch.testing.assert_close(
        autoencoder.write_products(2, write, vectors), vectors @ expected.T, rtol=1e-4, atol=1e-4
    )
    some = torch.tensor([3, 0])
    torch.testing.assert_close(autoencoder.write_directions(2, write, some), expected[some])


def test_a_write_norm_first_asked_for_in_inference_mode_can_be_used_for_gradients(
    tmp_path: Path,
) -> None:
    autoencoder, write = made(tmp_path, "relu"), write_weights()
    with torch.inference_mode():
        autoencoder.write_norms(0, write)
    latents = torch.ones(1, 16, requires_grad=True)
    (latents * autoencoder.write_norms(0, write)).sum().backward()
    assert latents.grad is not None


def test_some_latents_alone_are_encoded_as_all_are(tmp_path: Path) -> None:
    for activation in ("relu", "jumprelu", "gated"):
        autoencoder, x = made(tmp_path, activation), inputs()
        some = torch.tensor([4, 1, 9])
        pre = autoencoder.encode_pre(0, x, some)
        torch.testing.assert_close(pre, autoencoder.encode_pre(0, x)[:, some])
        torch.testing.assert_close(
            autoencoder.activate(0, pre, some), autoencoder.encode(0, x)[:, some]
        )


def test_what_does_not_fit_an_activation_is_refused() -> None:
    def layer(**more: object) -> AutoencoderLayer:
        return AutoencoderLayer(*(torch.zeros(2, 2) for _ in range(5)), **more)  # type: ignore[arg-type]

    place = Location.MLP_POST_ACT
    for activation, more in (
        (Activation.TOPK, {}),
        (Activation.RELU, {"k": 3}),
        (Activation.JUMPRELU, {}),
        (Activation.GATED, {}),
        (Activation.RELU, {"threshold": torch.zeros(2)}),
    ):
        with pytest.raises(ValueError, match="layer 0"):
            Autoencoder("a", place, activation, {0: layer(**more)})
    with pytest.raises(ValueError, match=r"resid\.post_mlp"):
        Autoencoder("a", Location.RESID_POST_MLP, Activation.RELU, {0: layer()})


def test_a_set_says_whose_latents_are_meant(tmp_path: Path) -> None:
    neurons = made(tmp_path / "n", "relu", "mlp_post_act")
    output = made(tmp_path / "o", "relu", "resid_delta_mlp")
    heads = made(tmp_path / "h", "relu", "resid_delta_attn")
    generic = Location.ONLINE_AUTOENCODER_LATENT
    alone, both = AutoencoderSet([neurons]), AutoencoderSet([heads, output])
    assert alone.single is alone.mlp is neurons
    assert (alone.attention, both.single) == (None, None)
    assert (both.mlp, both.attention) == (output, heads)
    assert alone.for_node_type(NodeType.AUTOENCODER_LATENT) is neurons
    assert both.for_node_type(NodeType.AUTOENCODER_LATENT) is None
    assert both.for_node_type(NodeType.ATTENTION_AUTOENCODER_LATENT) is heads
    assert alone.for_location(generic) is neurons
    assert alone.canonical(generic) is Location.ONLINE_MLP_AUTOENCODER_LATENT
    assert both.canonical(generic) is generic
    assert both.for_location(Location.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR) is output
    assert alone.for_location(Location.ONLINE_RESIDUAL_MLP_AUTOENCODER_ERROR) is None
    assert both.at(Location.RESID_DELTA_MLP, 2) is output
    assert both.at(Location.RESID_DELTA_MLP, 1) is None
    assert both.at(Location.MLP_POST_ACT, 0) is None
    assert both.weight_bytes == heads.weight_bytes + output.weight_bytes > 0
    assert [heads.latent_count(layer) for layer in range(3)] == [16, 0, 18]
    assert (heads.layers, 1 in heads, 2 in heads) == ((0, 2), False, True)
    assert NO_AUTOENCODERS.all == ()
    with pytest.raises(ValueError, match="one kind"):
        AutoencoderSet([neurons, output])


def test_sizes_depend_on_the_layer(tmp_path: Path) -> None:
    autoencoder = made(tmp_path, "relu")
    dimensions = (Dimension.SEQUENCE_TOKENS, Dimension.AUTOENCODER_LATENTS)
    assert sizes_at(dimensions, SHAPE, 5, autoencoder, 0) == (5, 16)
    assert sizes_at(dimensions, SHAPE, 5, autoencoder, 2) == (5, 18)
    assert sizes_at((Dimension.SEQUENCE_TOKENS,), SHAPE, 5) == (5,)
    with pytest.raises(KeyError):
        sizes_at(dimensions, SHAPE, 5)


def test_the_latent_within_its_layer_is_checked(tmp_path: Path) -> None:
    neurons = made(tmp_path / "n", "relu", "mlp_post_act")
    heads = made(tmp_path / "h", "relu", "resid_delta_attn")
    alone, both = AutoencoderSet([heads]), AutoencoderSet([neurons, heads])
    generic = Location.ONLINE_AUTOENCODER_LATENT
    typed = Location.ONLINE_ATTENTION_AUTOENCODER_LATENT
    expected = WithinLayerLatent(NodeType.ATTENTION_AUTOENCODER_LATENT, 2, 17)
    for location in (generic, typed):
        for autoencoders in (alone, both):
            index = ActivationIndex(location, (None, 17), 2)
            assert resolve_within_layer_latent(index, autoencoders, "at") == expected

    def refused(
        field: str,
        words: str,
        autoencoders: AutoencoderSet = alone,
        location: Location = generic,
        indices: tuple[int | None, ...] = (None, 3),
        layer: int | None = 2,
        pass_type: PassType = PassType.FORWARD,
    ) -> None:
        index = ActivationIndex(location, indices, layer, pass_type)
        with pytest.raises(InvalidArgument, match=words) as caught:
            resolve_within_layer_latent(index, autoencoders, "at")
        assert caught.value.field == f"at.{field}"

    refused("location_type", "no autoencoder is configured", NO_AUTOENCODERS)
    refused("location_type", "another autoencoder", location=Location.ONLINE_MLP_AUTOENCODER_LATENT)
    refused("location_type", "no latents", location=Location.MLP_POST_ACT)
    refused("location_type", "no latents", location=Location.ONLINE_MLP_AUTOENCODER_ERROR)
    refused("layer_index", "needs a layer", layer=None)
    refused("layer_index", "layers 0, 2", layer=1)
    refused("layer_index", "layers 0, 2", layer=9)
    refused("tensor_indices[1]", "which has 18", indices=(None, 18))
    refused("tensor_indices[1]", "which has 18", indices=(None, -1))
    refused("tensor_indices", "all tokens", indices=(0, 3))
    refused("tensor_indices", "all tokens", indices=(None, None))
    refused("tensor_indices", "all tokens", indices=(None,))
    refused("pass_type", "gradient", pass_type=PassType.BACKWARD)
