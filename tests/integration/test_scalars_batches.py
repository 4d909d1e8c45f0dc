"""Batches through the service: requests of every kind, and what depends on what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neuropil
from neuropil import names
from neuropil.common import v1 as common
from neuropil.names import component_id
from neuropil.scalars import v1
from neuropil.tensors import to_array
from services.scalars.model.subject import Subject, load_subject
from tests.integration.scalars_batch_requests import (
    PROMPT,
    SCORINGS,
    TYPE,
    attributed,
    batch,
    batch_service,
    inference,
    run,
    scored,
    top,
    top_nodes,
)
from tests.unit.scalars_checkpoint import LAYERS

OTHER = "The dog sat on the log"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployment")


@pytest.fixture(scope="module")
def stub(folder: Path) -> Iterator[v1.DerivedScalarsStub]:
    with batch_service(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def subject(folder: Path, stub: v1.DerivedScalarsStub) -> Subject:
    return load_subject("tiny", str(folder / "model"), "cpu")


def nodes_of(result: v1.NamedResult) -> list[tuple[int, int, tuple[int, ...]]]:
    table = result.top_nodes.nodes
    indices = np.reshape(table.tensor_indices, (-1, 3)).tolist()
    return [
        (kind, layer, tuple(each))
        for kind, layer, each in zip(table.node_types, table.layer_indices, indices, strict=True)
    ]


def tensor(
    stub: v1.DerivedScalarsStub, name: str, spec: v1.InferenceSpec | None = None
) -> np.ndarray[Any, Any]:
    """A type at all layers, with the layer outermost."""
    selection = v1.ScalarSelection(derived_scalar_type=TYPE(name))
    named = v1.NamedSpec(name="x", selection=selection)
    (results,) = run(stub, batch(spec or inference(), named))
    return to_array(results["x"].selection).copy()


def listed_alone(scores: np.ndarray[Any, Any], subject: Subject) -> np.ndarray[Any, Any]:
    """Scores without that of the entry that the deployment leaves out of lists."""
    return np.delete(scores, subject.tokenizer.strings.index(" the"))


def test_every_kind_is_answered_as_alone(stub: v1.DerivedScalarsStub) -> None:
    component = v1.ComponentSpec(component=component_id("mlp_post_act", 1, 3), top_token_count=4)
    pair = v1.ComponentByTokenPairSpec(component=component_id("attn_qk_probs", 0, 1))
    selection = v1.ScalarSelection(derived_scalar_type=TYPE("mlp_act_times_grad"))
    listed = top_nodes("mlp_act_times_grad", "unflattened_attn_act_times_grad")
    (results,) = run(
        stub,
        batch(
            inference(),
            v1.NamedSpec(name="c", component=component),
            v1.NamedSpec(name="p", component_by_token_pair=pair),
            v1.NamedSpec(name="t", top_nodes=listed),
            v1.NamedSpec(name="s", selection=selection),
        ),
    )
    spec = inference()
    alone = stub.DeriveComponent(v1.DeriveComponentRequest(inference=spec, spec=component))
    assert results["c"].component == alone.scalars
    by_pair = stub.DeriveComponentByTokenPair(
        v1.DeriveComponentByTokenPairRequest(inference=spec, spec=pair)
    )
    assert results["p"].component_by_token_pair == by_pair.scalars
    found = stub.ListTopNodes(v1.ListTopNodesRequest(inference=spec, spec=listed))
    assert results["t"].top_nodes == found.top_nodes
    frames = list(stub.Derive(v1.DeriveRequest(inference=spec, selections=[selection])))[1:]
    rows = np.stack([to_array(each.frame.rows) for each in frames])
    np.testing.assert_array_equal(to_array(results["s"].selection), rows)


def test_what_writes_promote(stub: v1.DerivedScalarsStub, subject: Subject) -> None:
    types = ("resid_post_embedding_norm", "mlp_act_times_grad", "unflattened_attn_act_times_grad")
    (results,) = run(stub, batch(inference(), scored("out"), top("top", *types)))
    write, tokenizer = subject.model.write, subject.tokenizer
    post, probs = tensor(stub, "mlp_post_act"), tensor(stub, "attn_qk_probs")
    values, embedding = tensor(stub, "attn_value"), tensor(stub, "resid_post_embedding")[0]
    lists = results["out"].scored_tokens.nodes
    listed = nodes_of(results["top"])
    assert len(lists) == len(listed)
    assert len({kind for kind, _, _ in listed}) == 3
    for found, (_, layer, (a, b, c)) in zip(lists, listed, strict=True):
        if layer < 0:
            vector = torch.from_numpy(embedding[a])
        elif c < 0:
            vector = float(post[layer, a, b]) * write.mlp[layer][b]
        else:
            value = torch.from_numpy(values[layer, b, c])
            vector = float(probs[layer, a, b, c]) * (value @ write.attn[layer][c])
        scores = (write.unembedding @ (vector * write.final_norm_gain)).numpy()
        scores -= scores.mean()
        ordered = np.sort(listed_alone(scores, subject))
        scale = np.abs(ordered).max()
        for entries, wanted in ((found.top, ordered[:-6:-1]), (found.bottom, ordered[:5])):
            given = [each.scalar for each in entries]
            np.testing.assert_allclose(given, wanted, rtol=1e-3, atol=1e-5)
        if scale > 1e-4:
            # Parts of a character share a string.
            named = [n for n, each in enumerate(tokenizer.strings) if each == found.top[0].token]
            assert scores[named].max() == pytest.approx(ordered[-1], rel=1e-3)
            assert found.top[0].normalized_scalar == pytest.approx(ordered[-1] / scale, rel=1e-3)


def test_what_nodes_read(stub: v1.DerivedScalarsStub, subject: Subject) -> None:
    model = subject.model
    types = ("mlp_act_times_grad", "unflattened_attn_act_times_grad")
    specs = (top("top", *types), scored("mlp"), scored("q"), scored("k"))
    (results,) = run(stub, batch(inference(), *specs))
    before_mlp = torch.from_numpy(tensor(stub, "resid_post_attn"))
    before_attention = torch.from_numpy(tensor(stub, "previous_layer_resid_post_mlp"))
    for position, (_, layer, (a, b, c)) in enumerate(nodes_of(results["top"])):
        scales = {}
        if c < 0:
            residual = before_mlp[layer].clone().requires_grad_()
            value = model.mlp_neurons(layer, residual, detach_scale=True).pre_act[a, b]
            (gradient,) = torch.autograd.grad(value, residual)
            scales["mlp"] = gradient[a]
        else:
            residual = before_attention[layer].clone().requires_grad_()
            heads = model.attention_heads(layer, residual, detach_scale=True)
            for name, by in (
                ("q", (heads.query[a, c] * heads.key[b, c].detach()).sum()),
                ("k", (heads.query[a, c].detach() * heads.key[b, c]).sum()),
            ):
                (gradient,) = torch.autograd.grad(by, residual, retain_graph=True)
                scales[name] = gradient[a if name == "q" else b]
        for name in ("mlp", "q", "k"):
            entry = results[name].scored_tokens.nodes[position]
            if name not in scales:
                assert not entry.top
                assert not entry.bottom
                continue
            scores = (model.token_embedding @ scales[name]).detach().numpy()
            ordered = np.sort(listed_alone(scores, subject))
            np.testing.assert_allclose(
                [each.scalar for each in entry.top], ordered[:-6:-1], rtol=2e-3, atol=1e-5
            )
            np.testing.assert_allclose(
                [each.scalar for each in entry.bottom], ordered[:5], rtol=2e-3, atol=1e-5
            )


def test_latents_write_read_and_attend(stub: v1.DerivedScalarsStub) -> None:
    types = ("online_mlp_autoencoder_write_norm", "online_attention_autoencoder_write_norm")
    specs = (top("top", *types), scored("out"), scored("mlp"), attributed(2))
    (results,) = run(stub, batch(inference(), *specs))
    latents = {
        common.NODE_TYPE_MLP_AUTOENCODER_LATENT: tensor(stub, "online_mlp_autoencoder_latent"),
        common.NODE_TYPE_ATTENTION_AUTOENCODER_LATENT: tensor(
            stub, "online_attention_autoencoder_latent"
        ),
    }
    active = 0
    for position, (kind, layer, (token, latent, _)) in enumerate(nodes_of(results["top"])):
        value = latents[kind][layer, token, latent]  # type: ignore[index]
        written = results["out"].scored_tokens.nodes[position]
        assert len(written.top) == 5
        assert (written.top[0].scalar > 0) == (value > 0)
        of_mlp = kind == common.NODE_TYPE_MLP_AUTOENCODER_LATENT
        assert bool(results["mlp"].scored_tokens.nodes[position].top) == of_mlp
        pairs = results["pairs"].token_pair_attribution.nodes[position]
        assert bool(pairs.top_tokens) == (not of_mlp and value > 0)
        if pairs.top_tokens:
            active += 1
            index = common.ActivationIndex(
                location_type=names.ACTIVATION_LOCATION_TYPES.value("online_autoencoder_latent"),
                layer_index=layer,
                tensor_indices=[common.DimensionIndex(), common.DimensionIndex(index=latent)],
            )
            assert list(pairs.top_values) == sorted(pairs.top_values, reverse=True)
            assert list(pairs.bottom_values) == sorted(pairs.bottom_values)
            assert index.layer_index == layer
    assert active > 0


def test_top_nodes_of_a_name_are_united(stub: v1.DerivedScalarsStub) -> None:
    quiet = neuropil.Ablation("mlp.post_act", 0, [None, None], 0.0)
    specs = (top("top", "mlp_act_times_grad"), top("own", "mlp_post_act", count=2), scored("out"))
    asked = [batch(inference(), *specs), batch(inference(PROMPT, quiet), *specs)]
    both = run(stub, *asked)
    alone = [run(stub, each)[0] for each in asked]
    union = list(dict.fromkeys(node for each in alone for node in nodes_of(each["top"])))
    assert len(union) > len(nodes_of(alone[0]["top"]))
    for results, spec in zip(both, asked, strict=True):
        assert nodes_of(results["top"]) == union
        whole = tensor(stub, "mlp_act_times_grad", spec.inference)
        expected = [whole[layer, token, neuron] for _, layer, (token, neuron, _) in union]
        found = to_array(results["top"].top_nodes.groups[0].values)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
        assert len(results["out"].scored_tokens.nodes) == len(union)
        # Sums are of all nodes, listed or not.
        sums = to_array(results["top"].top_nodes.sums[0].values)
        np.testing.assert_allclose(sums, whole.sum(axis=(0, 2)), rtol=1e-3, atol=1e-5)


def test_the_same_again_is_the_same(stub: v1.DerivedScalarsStub) -> None:
    asked = batch(inference(OTHER), top("top", "mlp_act_times_grad"), scored("out"), scored("mlp"))
    assert run(stub, asked) == run(stub, asked)
    fewer = batch(inference(OTHER), top("top", "mlp_act_times_grad"), scored("out", 2))
    (first,), (second,) = run(stub, asked), run(stub, fewer)
    for more, less in zip(
        first["out"].scored_tokens.nodes, second["out"].scored_tokens.nodes, strict=True
    ):
        assert list(more.top[:2]) == list(less.top)


def test_later_layers_alone(stub: v1.DerivedScalarsStub) -> None:
    types = ("resid_post_embedding_norm", "mlp_write_norm")
    (results,) = run(stub, batch(inference(), top("top", *types, first_layer=1)))
    assert {layer for _, layer, _ in nodes_of(results["top"])} == {1, 2}


def test_numbers_that_are_not_finite(stub: v1.DerivedScalarsStub) -> None:
    huge = neuropil.Ablation("resid.post_mlp", 0, [None, None], 3e38)
    spec = v1.InferenceSpec(prompt=PROMPT, ablations=[huge.message()])
    types = ("resid_post_mlp_norm", "mlp_post_act", "attn_qk_probs")
    listed = [top(name, name, count=3) for name in types]
    tokens = [
        v1.NamedSpec(
            name=f"scored {name}",
            scored_tokens=v1.ScoredTokensSpec(
                scoring=SCORINGS["out"], token_count=3, depends_on=name
            ),
        )
        for name in types[1:]
    ]
    (results,) = run(stub, batch(spec, *listed, *tokens))
    for name in types:
        values = to_array(results[name].top_nodes.groups[0].values)
        assert not np.isnan(values).any()
    for name in types[1:]:
        for each in results[f"scored {name}"].scored_tokens.nodes:
            assert all(np.isfinite(entry.scalar) for entry in (*each.top, *each.bottom))


def test_nodes_of_equal_strength(stub: v1.DerivedScalarsStub) -> None:
    silent = [neuropil.Ablation("mlp.post_act", n, [None, None], 0.0) for n in range(LAYERS)]
    asked = batch(inference(PROMPT, *silent), top("top", "mlp_post_act", count=20), scored("out"))
    (results,) = run(stub, asked)
    listed = nodes_of(results["top"])
    assert len(set(listed)) == len(listed) >= 20
    assert set(to_array(results["top"].top_nodes.groups[0].values).tolist()) == {0.0}
    for each in results["out"].scored_tokens.nodes:
        assert [entry.scalar for entry in each.top] == [0.0] * 5
        assert [entry.normalized_scalar for entry in each.bottom] == [0.0] * 5
