"""What reading and attributing many listed nodes takes: part by part, within the estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from services.scalars.answers import token_pair_attribution
from services.scalars.answers.node_lists import NodeList
from services.scalars.answers.token_pair_attribution import (
    TokenPairAttribution,
    TokenPairAttributionSpec,
)
from services.scalars.autoencoders import Activation, Autoencoder, AutoencoderSet
from services.scalars.data_plane import DataPlane
from services.scalars.engine.worker import Engine
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    LayerIndex,
    NodeType,
)
from services.scalars.model.subject import Subject, load_subject
from services.scalars.passes.inference import InferenceSpec
from services.scalars.requests.batches import MAX_LISTED, BatchInference, NamedSpec
from services.scalars.requests.components import ComponentSpec
from services.scalars.requests.top_nodes import ScalarGroup, TopNodesSpec
from services.scalars.vocabulary import read_directions
from services.scalars.vocabulary.node_directions import NodeDirections
from services.scalars.vocabulary.scored_tokens import TokenScoring
from shared.errors import ResourceExhausted
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_derived import make_autoencoder
from tests.unit.test_scalars_run_memory import peak_bytes

T = 24
Location = ActivationLocationType
TOKEN, LATENTS = Dimension.SEQUENCE_TOKENS, Dimension.AUTOENCODER_LATENTS


class Stopped(Exception):
    """Raised by a check."""


def never() -> None:
    """Nobody gives up."""


def third() -> Callable[[], None]:
    """A check that raises when it is called for the third time."""
    calls = iter(range(2))

    def check() -> None:
        if next(calls, None) is None:
            raise Stopped

    return check


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


def wide(
    model: SubjectModel, location: Location, activation: Activation = Activation.RELU
) -> Autoencoder:
    """An autoencoder with many latents in layer 0."""
    few = make_autoencoder(model, location, activation, [0])
    layer = few.layer(0)
    times = 200

    def repeated(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.repeat(times, *[1] * (tensor.dim() - 1))

    encoder, bias, decoder, threshold = map(
        repeated, (layer.encoder, layer.encoder_bias, layer.decoder, layer.threshold)
    )
    assert encoder is not None
    assert bias is not None
    assert decoder is not None
    made = replace(layer, encoder=encoder, encoder_bias=bias, decoder=decoder, threshold=threshold)
    return Autoencoder("wide", location, activation, {0: made})


def every_node(node_type: NodeType, *sizes: int) -> NodeList:
    """All nodes of layer 0 of a type."""
    indices = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1)
    indices = indices.reshape(-1, len(sizes))
    table = np.full((len(indices), 3), -1, dtype=np.int64)
    table[:, : len(sizes)] = indices
    zeros = np.zeros(len(indices), dtype=np.int64)
    return NodeList((node_type,), zeros, zeros, table)


def captured(model: SubjectModel) -> Callable[[Location, LayerIndex], Tensor]:
    """Random tensors of a run."""
    shape = model.shape
    generator = torch.Generator().manual_seed(4)
    sizes = {
        Location.ATTN_QK_PROBS: (T, T, shape.attn_heads),
        Location.ATTN_VALUE: (T, shape.attn_heads, shape.value_channels),
    }
    tensors = {
        each: torch.rand(*sizes.get(each, (T, shape.residual_stream_channels)), generator=generator)
        for each in Location
    }
    return lambda location, layer: tensors[location]


@pytest.mark.parametrize("activation", Activation)
def test_attribution_part_by_part(
    subject: Subject, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = subject.model
    autoencoder = wide(model, Location.RESID_DELTA_ATTN, activation)
    nodes = every_node(autoencoder.node_type, T, autoencoder.latent_count(0))
    attribution = TokenPairAttribution(model, AutoencoderSet([autoencoder]))
    spec = TokenPairAttributionSpec(2, "")
    layout = {autoencoder.node_type: (TOKEN, LATENTS)}
    run = captured(model)
    whole = attribution.of(spec, nodes, layout, run, never)
    assert whole.attributed.any()
    monkeypatch.setattr(token_pair_attribution, "_PART_BYTES", 1 << 18)
    parts = attribution.of(spec, nodes, layout, run, never)
    for name, array in vars(whole).items():
        np.testing.assert_allclose(getattr(parts, name), array, rtol=1e-5, atol=1e-6)
    peak = peak_bytes(lambda: attribution.of(spec, nodes, layout, run, never))
    # Arrays of the answer and its positions are numpy's, which torch does not count.
    estimate = attribution.n_bytes(len(nodes), 2, T)
    assert 0 < peak <= estimate - len(nodes) * 24 * 2 < 4 << 20
    few = nodes.ordered(np.arange(5))
    peak = peak_bytes(lambda: attribution.of(spec, few, layout, run, never))
    assert 0 < peak <= attribution.n_bytes(len(few), 2, T) < estimate
    with pytest.raises(Stopped):
        attribution.of(spec, nodes, layout, run, third())


@pytest.mark.parametrize(
    ("scoring", "node_type", "place"),
    [
        (TokenScoring.INPUT_TOKENS_THAT_UPVOTE_MLP, NodeType.MLP_NEURON, None),
        (
            TokenScoring.INPUT_TOKENS_THAT_UPVOTE_MLP,
            NodeType.MLP_AUTOENCODER_LATENT,
            Location.MLP_POST_ACT,
        ),
        (
            TokenScoring.INPUT_TOKENS_THAT_UPVOTE_MLP,
            NodeType.MLP_AUTOENCODER_LATENT,
            Location.RESID_DELTA_MLP,
        ),
        (TokenScoring.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q, NodeType.ATTENTION_HEAD, None),
        (TokenScoring.INPUT_TOKENS_THAT_UPVOTE_ATTN_K, NodeType.ATTENTION_HEAD, None),
    ],
)
def test_reads_part_by_part(
    subject: Subject,
    scoring: TokenScoring,
    node_type: NodeType,
    place: Location | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = subject.model
    autoencoders = AutoencoderSet([wide(model, place)] if place else [])
    dimensions: tuple[Dimension, ...] = (TOKEN, LATENTS if place else Dimension.MLP_ACTS)
    sizes: tuple[int, ...] = (T, 1400 if place else model.shape.mlp_acts)
    if node_type is NodeType.ATTENTION_HEAD:
        dimensions = (TOKEN, Dimension.ATTENDED_TO_SEQUENCE_TOKENS, Dimension.ATTN_HEADS)
        sizes = (T, T, model.shape.attn_heads)
    nodes = every_node(node_type, *sizes)
    directions = NodeDirections(model, autoencoders)
    run = captured(model)

    def read(check: Callable[[], None] = never) -> tuple[Tensor, Tensor]:
        (found,) = directions.of(scoring, nodes, {node_type: dimensions}, run, check)
        # Of equal keys one vector is asked for.
        first = {key: at for at, key in enumerate(found.keys)}
        return found.factors, found.vectors(np.array(list(first.values())))

    whole = read()
    monkeypatch.setattr(read_directions, "_MOST", 32)
    parts = read()
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other)
    estimate = directions.n_bytes(len(nodes)) + directions.finding_bytes(scoring, len(nodes), T)
    assert 0 < peak_bytes(read) <= estimate
    with pytest.raises(Stopped):
        read(third())


async def test_attributions_have_a_bound(subject: Subject) -> None:
    place = Location.RESID_DELTA_ATTN
    autoencoders = AutoencoderSet([wide(subject.model, place)])
    group = ScalarGroup("activation", ("online_autoencoder_latent",))
    specs = (
        NamedSpec("top", TopNodesSpec((group,)), "specs[0].top_nodes"),
        NamedSpec("a", TokenPairAttributionSpec(99, "top"), "specs[1].token_pair_attribution"),
    )
    inference = BatchInference(InferenceSpec("a" * T), specs, "inference")
    engine = Engine(subject.model, autoencoders)
    try:
        with pytest.raises(ResourceExhausted) as caught:
            await DataPlane(replace(subject, autoencoders=autoencoders), engine).derive_batch(
                [inference]
            )
    finally:
        engine.close()
    assert caught.value.field == "specs[1].token_pair_attribution.attended_to_token_count"
    assert caught.value.reason == "REQUEST_TOO_LARGE"


async def test_top_tokens_of_components_have_a_bound(subject: Subject) -> None:
    """Of all components of a call together."""
    of_one = 2 * min(10_000, subject.model.shape.vocab_size)
    number = MAX_LISTED // of_one
    engine = Engine(subject.model, subject.autoencoders)
    plane = DataPlane(subject, engine)

    spec = ComponentSpec("mlp_post_act", 0, 1, top_token_count=10_000)
    inferences = [
        BatchInference(InferenceSpec("a"), (NamedSpec("c", spec, f"[{at}].component"),), f"[{at}]")
        for at in range(number + 2)
    ]
    try:
        with pytest.raises(ResourceExhausted) as caught:
            await plane.derive_batch(inferences)
    finally:
        engine.close()
    # A few entries of the vocabulary are padding.
    assert caught.value.field.endswith("component.top_token_count")
    assert caught.value.reason == "REQUEST_TOO_LARGE"
