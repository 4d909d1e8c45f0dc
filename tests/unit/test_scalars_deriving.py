"""Derivers, their sources, and the stores they read from and write to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.scalars.catalogue import CATALOGUE, Derivers
from services.scalars.deriving.activations import ActivationsAndMetadata, RawActivationStore
from services.scalars.deriving.config import DstConfig
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.indexing import DerivedScalarIndex, NodeIndex
from services.scalars.deriving.layer_indexers import (
    IDENTITY,
    NO_LAYERS,
    PLACEHOLDER,
    ConstantLayerIndexer,
    OffsetLayerIndexer,
)
from services.scalars.deriving.residual_points import ResidualPoint
from services.scalars.deriving.scalar_types import DerivedScalarType, raw_scalar_type
from services.scalars.deriving.sources import DerivedScalarSource, RawScalarSource
from services.scalars.deriving.store import DerivedScalarStore
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    LocationWithinLayer,
    NodeType,
    PassType,
)
from services.scalars.model.subject import Subject, load_subject
from services.scalars.model.taps import RawTensorId
from tests.unit.scalars_checkpoint import LAYERS, write_checkpoint

FORWARD, BACKWARD = PassType.FORWARD, PassType.BACKWARD
POST_ACT = ActivationLocationType.MLP_POST_ACT
RESIDUAL = ActivationLocationType.RESID_POST_MLP
EMBEDDING = ActivationLocationType.RESID_POST_EMBEDDING


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


@pytest.fixture
def config(subject: Subject) -> DstConfig:
    return DstConfig(subject.model, derive_gradients=True)


@pytest.fixture
def raw_store() -> RawActivationStore:
    tensors: dict[RawTensorId, Tensor] = {
        RawTensorId(POST_ACT, layer, pass_type): torch.full((2, 3), 10.0 * layer + offset)
        for layer in range(LAYERS)
        for offset, pass_type in enumerate(PassType)
    }
    for layer in range(LAYERS):
        tensors[RawTensorId(RESIDUAL, layer, FORWARD)] = torch.full((2, 4), float(layer))
    tensors[RawTensorId(EMBEDDING, None, FORWARD)] = torch.full((2, 4), -1.0)
    return RawActivationStore(tensors, LAYERS)


def activations(name: str = "x", **layers: Tensor) -> ActivationsAndMetadata:
    dst = DerivedScalarType(name, (Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS))
    return ActivationsAndMetadata(
        dst, FORWARD, {int(layer[1:]): tensor for layer, tensor in layers.items()}
    )


def test_layer_indexers() -> None:
    assert IDENTITY([0, 2, None], 3) == [0, 2, None]
    assert OffsetLayerIndexer(-1)([0, 1, 2], 3) == [PLACEHOLDER, 0, 1]
    assert OffsetLayerIndexer(1)([1, 2], 3) == [2, PLACEHOLDER]
    assert ConstantLayerIndexer(2)([0, 1], 3) == [2, 2]
    assert NO_LAYERS([0, 1], 3) == [None, None]
    with pytest.raises(ValueError, match="layers"):
        OffsetLayerIndexer(1)([None], 3)


def test_a_source_has_a_layer_only_where_its_indexer_is_static() -> None:
    assert RawScalarSource(RESIDUAL, BACKWARD, ConstantLayerIndexer(2)).layer_index == 2
    assert RawScalarSource(EMBEDDING, FORWARD, NO_LAYERS).layer_index is None
    for indexer in (IDENTITY, OffsetLayerIndexer(-1)):
        with pytest.raises(ValueError, match="no single layer"):
            _ = RawScalarSource(RESIDUAL, FORWARD, indexer).layer_index


def test_what_has_no_layers_takes_no_other_indexer() -> None:
    with pytest.raises(ValueError, match="has no layers"):
        RawScalarSource(EMBEDDING, FORWARD)


def test_a_source_knows_what_it_needs(config: DstConfig) -> None:
    source = RawScalarSource(RESIDUAL, FORWARD, OffsetLayerIndexer(-1))
    assert source.dst.name == "resid_post_mlp"
    assert source.exists_by_default
    assert source.raw_tensors([0, 1, 2], LAYERS) == {
        RawTensorId(RESIDUAL, 0, FORWARD),
        RawTensorId(RESIDUAL, 1, FORWARD),
    }
    derived = DerivedScalarSource(Derivers(CATALOGUE, config)["mlp_write_norm"], FORWARD)
    assert not derived.exists_by_default
    assert derived.raw_locations == {(POST_ACT, FORWARD)}
    assert derived.location_within_layer is LocationWithinLayer.MLP
    online = RawScalarSource(ActivationLocationType.ONLINE_AUTOENCODER_LATENT, FORWARD)
    assert not online.exists_by_default


def test_a_placeholder_is_empty_and_the_rest_is_shifted(raw_store: RawActivationStore) -> None:
    source = RawScalarSource(RESIDUAL, FORWARD, OffsetLayerIndexer(-1))
    shifted = source.derive_from_raw(raw_store, [0, 1, 2]).activations_by_layer_index
    assert shifted[0].numel() == 0
    assert shifted[2].tolist() == [[1.0] * 4] * 2
    alone = source.derive_from_raw(raw_store, [0]).activations_by_layer_index
    assert alone[0].numel() == 0


def test_the_previous_residual_of_the_first_layer_is_the_embedding(
    config: DstConfig, raw_store: RawActivationStore
) -> None:
    deriver = Derivers(CATALOGUE, config)["previous_layer_resid_post_mlp"]
    found = deriver.derive_from_raw(raw_store, FORWARD).activations_by_layer_index
    assert [float(found[layer][0, 0]) for layer in range(LAYERS)] == [-1.0, 0.0, 1.0]
    assert deriver.n_input_tensors == 2


def test_a_deriver_counts_its_tensors(config: DstConfig) -> None:
    derivers = Derivers(CATALOGUE, config)
    effect = derivers["mlp_write_to_final_residual_grad"]
    assert (effect.n_input_tensors, effect.n_total_required_tensors) == (2, 2)
    assert effect.raw_tensors(FORWARD, [0]) == {
        RawTensorId(POST_ACT, 0, FORWARD),
        RawTensorId(RESIDUAL, LAYERS - 1, BACKWARD),
    }
    pairs = derivers["attn_write_norm"]
    assert (pairs.n_input_tensors, pairs.n_total_required_tensors) == (1, 2)


def test_derivable_pass_types(subject: Subject) -> None:
    def passes(name: str, gradients: bool) -> tuple[PassType, ...]:
        config = DstConfig(subject.model, derive_gradients=gradients)
        return Derivers(CATALOGUE, config)[name].derivable_pass_types

    assert passes("attn_write_norm", gradients=True) == (FORWARD, BACKWARD)
    assert passes("attn_write_norm", gradients=False) == (FORWARD,)
    assert passes("always_one", gradients=True) == (FORWARD,)
    config = DstConfig(subject.model)
    with pytest.raises(ValueError, match="not derived for the backward"):
        Derivers(CATALOGUE, config)["mlp_post_act"].sources_for(BACKWARD)


def test_forward_stays_forward_where_gradients_are_derived_too(
    config: DstConfig, raw_store: RawActivationStore
) -> None:
    deriver = Derivers(CATALOGUE, config)["mlp_post_act"]
    assert (
        float(deriver.derive_from_raw(raw_store, FORWARD, [2]).activations_by_layer_index[2][0, 0])
        == 20
    )
    assert (
        float(deriver.derive_from_raw(raw_store, BACKWARD, [2]).activations_by_layer_index[2][0, 0])
        == 21
    )


def test_a_deriver_checks_what_it_is_given(config: DstConfig) -> None:
    deriver = Derivers(CATALOGUE, config)["mlp_act_times_grad"]
    ones = torch.ones(2, 3)
    post = raw_scalar_type(POST_ACT)
    right = (
        ActivationsAndMetadata(post, FORWARD, {0: ones * 2}),
        ActivationsAndMetadata(post, BACKWARD, {0: ones * 3}),
    )
    found = deriver.calculate(right, FORWARD)
    assert found.dst.name == "mlp_act_times_grad"
    assert found.activations_by_layer_index[0].tolist() == [[6.0] * 3] * 2
    other = ActivationsAndMetadata(raw_scalar_type(RESIDUAL), BACKWARD, {0: ones})
    elsewhere = ActivationsAndMetadata(post, BACKWARD, {1: ones})
    for wrong in (right[:1], right[::-1], (right[0], other), (right[0], elsewhere)):
        with pytest.raises(ValueError, match="mlp_post_act"):
            deriver.calculate(wrong, FORWARD)


def test_a_deriver_can_not_be_changed(config: DstConfig) -> None:
    deriver = Derivers(CATALOGUE, config)["mlp_post_act"]
    with pytest.raises(AttributeError):
        deriver.dst = raw_scalar_type(RESIDUAL)  # type: ignore[misc]


def test_transforms(config: DstConfig, raw_store: RawActivationStore) -> None:
    base = Derivers(CATALOGUE, config)["mlp_post_act"]
    dst = DerivedScalarType("mine", (Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS))
    negated = base.transform(torch.neg, dst)
    assert negated.location_within_layer is LocationWithinLayer.MLP
    assert negated.derivable_pass_types == (FORWARD,)
    both = base.transform(torch.neg, dst, transform_gradient=True)
    assert (
        float(both.derive_from_raw(raw_store, BACKWARD).activations_by_layer_index[1][0, 0]) == -11
    )
    by_layer = base.transform_by_layer(
        lambda tensor, layer, pass_type: tensor + (layer or 0) / 8, dst
    )
    assert (
        float(by_layer.derive_from_raw(raw_store, FORWARD).activations_by_layer_index[2][0, 0])
        == 20.25
    )
    combined = base.combine(
        lambda tensor, other, layer: tensor + other[:, :3],
        RawScalarSource(RESIDUAL, FORWARD, ConstantLayerIndexer(2)),
        dst,
    )
    assert (
        float(combined.derive_from_raw(raw_store, FORWARD).activations_by_layer_index[1][0, 0])
        == 12
    )
    assert combined.n_input_tensors == 2


def test_an_inherited_location_must_agree(config: DstConfig) -> None:
    base = Derivers(CATALOGUE, config)["mlp_post_act"]
    elsewhere = DerivedScalarType(
        "mine",
        (Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS),
        location_within_layer=LocationWithinLayer.ATTN,
    )
    with pytest.raises(ValueError, match="mine is at ATTN"):
        base.transform(torch.neg, elsewhere)


def test_a_shared_source_is_computed_once(config: DstConfig, raw_store: RawActivationStore) -> None:
    calls: list[int | None] = []

    def count(tensors: tuple[Tensor, ...], layer: int | None, pass_type: PassType) -> Tensor:
        calls.append(layer)
        return tensors[0]

    dst = DerivedScalarType("shared", (Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS))
    shared = ScalarDeriver(dst, config, (RawScalarSource(POST_ACT, FORWARD),), count)
    first, second = (shared.transform(torch.neg, dst) for _ in range(2))
    for deriver in (first, second, first):
        deriver.derive_from_raw(raw_store, FORWARD)
    assert calls == [0, 1, 2]


def test_only_wanted_layers_are_derived(subject: Subject, raw_store: RawActivationStore) -> None:
    config = DstConfig(subject.model, layer_indices=(1,))
    deriver = Derivers(CATALOGUE, config)["mlp_write_norm"]
    assert deriver.raw_tensors(FORWARD) == {RawTensorId(POST_ACT, 1, FORWARD)}
    with pytest.raises(KeyError, match=r"attn\.q was not captured"):
        raw_store.get(ActivationLocationType.ATTN_QUERY, FORWARD)


def test_upstream() -> None:
    point = ResidualPoint(RESIDUAL, 2, LocationWithinLayer.RESID_POST_MLP)
    assert point.is_after(None, None)
    assert point.is_after(1, None)
    assert point.is_after(2, LocationWithinLayer.MLP)
    assert not point.is_after(2, LocationWithinLayer.RESID_POST_MLP)
    assert not point.is_after(3, LocationWithinLayer.ATTN)
    assert not ResidualPoint(EMBEDDING, None, None).is_after(0, None)
    with pytest.raises(ValueError, match="unknown"):
        point.is_after(2, None)


def test_activations_are_on_one_device_and_have_the_same_layers() -> None:
    both = activations(l0=torch.ones(1, 1), l1=torch.ones(1, 1))
    with pytest.raises(ValueError, match="has layers"):
        both.apply_transform_fn(lambda a, b, layer: a + b, activations(l0=torch.ones(1, 1)))
    with pytest.raises(ValueError, match="several devices"):
        activations(l0=torch.ones(1, 1), l1=torch.ones(1, 1, device="meta"))
    assert both.filter_layers([1]).layer_indices == [1]
    assert both.filter_layers(None) is both
    assert ActivationsAndMetadata(both.dst, FORWARD, {}).device is None


def test_topk_over_layers_and_scalars() -> None:
    first = activations("first", l0=torch.tensor([[1.0, 9.0]]), l1=torch.tensor([[7.0, -3.0]]))
    second = activations("second", l0=torch.tensor([[8.0, float("nan")]]))
    values, places = first.topk(3)
    assert values.tolist() == [9, 7, 1]
    assert [(place.layer_index, place.tensor_indices) for place in places] == [
        (0, (0, 1)),
        (1, (0, 0)),
        (0, (0, 0)),
    ]
    store = DerivedScalarStore([first, second])
    values, places = store.topk(2)
    assert values.tolist() == [9, 8]
    assert places[1].dst.name == "second"
    assert store.topk(2, largest=False)[0].tolist() == [-3, 1]
    assert store.topk(None)[0].tolist() == [9, 8, 7, 1, -3]
    assert store.topk(5, dsts=[second.dst])[0].tolist() == [8]
    assert store.topk(5, pass_type=BACKWARD)[1] == []


def test_sums_keep_dimensions() -> None:
    one = activations("one", l0=torch.arange(6.0).reshape(2, 3), l1=torch.ones(2, 3))
    store = DerivedScalarStore([one])
    assert float(store.sum()) == 21
    assert store.sum([Dimension.SEQUENCE_TOKENS]).tolist() == [6, 15]
    assert store.sum([Dimension.MLP_ACTS], layer_indices=[0]).tolist() == [3, 5, 7]
    assert store.sum([Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS]).shape == (2, 3)
    with pytest.raises(ValueError, match="one has no dimension attn_heads"):
        store.sum([Dimension.ATTN_HEADS])
    assert float(DerivedScalarStore([]).sum()) == 0


def test_a_store_is_indexed_by_node() -> None:
    one = activations("one", l0=torch.arange(6.0).reshape(2, 3))
    store = DerivedScalarStore([one])
    node = NodeIndex(NodeType.MLP_NEURON, (1, 2), 0)
    assert float(store[DerivedScalarIndex.of_node(node, one.dst)]) == 5
    whole = NodeIndex(NodeType.MLP_NEURON, (None, 2), 0)
    assert store[DerivedScalarIndex.of_node(whole, one.dst)].tolist() == [2, 5]
    with pytest.raises(ValueError, match="not of attention_head"):
        DerivedScalarIndex.of_node(NodeIndex(NodeType.ATTENTION_HEAD, (0, 0, 0), 0), one.dst)
    with pytest.raises(ValueError, match="there twice"):
        DerivedScalarStore([one, one])
    with pytest.raises(ValueError, match="several devices"):
        DerivedScalarStore([one, activations("two", l0=torch.ones(1, 1, device="meta"))])
    assert (len(store), store.numel, store.device) == (1, 6, torch.device("cpu"))
