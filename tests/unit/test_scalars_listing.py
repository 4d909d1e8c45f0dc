"""What is listed: top nodes, top tokens, and summaries of token pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.scalars.answers.ranking import NodeScalars, strongest_nodes, sums_of, values_of
from services.scalars.answers.token_pairs import summarize
from services.scalars.deriving.activations import ActivationsAndMetadata
from services.scalars.model.locations import PassType
from services.scalars.model.subject import Subject, load_subject
from services.scalars.passes.inference import PreparedInference
from services.scalars.passes.losses import Loss, LossKind
from services.scalars.requests.selections import ResolvedSelection
from services.scalars.requests.top_nodes import ScalarGroup, TopNodesSpec, resolve_top_nodes
from services.scalars.vocabulary.top_tokens import VocabularyProjection, excluded_entries
from tests.unit.scalars_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


def ranked(subject: Subject, spec: TopNodesSpec, **tensors: torch.Tensor) -> NodeScalars:
    prepared = PreparedInference((1, 2), (), Loss(LossKind.ZERO, (), (), 1))
    resolved = resolve_top_nodes(spec, subject, prepared, field="", inference_field="")
    # The model has more layers; here each tensor stands for all of them.
    groups = tuple(tuple(replace(each, layers=(0,)) for each in group) for group in resolved.groups)
    resolved = replace(resolved, groups=groups)

    def scalars(each: ResolvedSelection) -> ActivationsAndMetadata:
        return ActivationsAndMetadata(each.dst, PassType.FORWARD, {0: tensors[each.dst.name]})

    nodes = strongest_nodes(resolved, scalars)
    return NodeScalars(nodes, values_of(nodes, resolved, scalars), sums_of(resolved, scalars))


def test_ranking_unites_groups(subject: Subject) -> None:
    neurons = torch.tensor([[5.0, 1.0, -4.0], [0.0, 2.0, 3.0]])
    products = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, -9.0]])
    spec = TopNodesSpec(
        (ScalarGroup("write_norm", ("mlp_write_norm",)), ScalarGroup("x", ("mlp_act_times_grad",))),
        count=1,
    )
    found = ranked(subject, spec, mlp_write_norm=neurons, mlp_act_times_grad=products)
    assert [node.tensor_indices for node in found.nodes] == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert found.values["write_norm"].tolist() == [5, -4, 0, 3]
    assert found.values["x"].tolist() == [0, 0, 9, -9]
    assert found.sums["write_norm", "mlp_write_norm"].tolist() == [2, 5]
    at_token = ranked(
        subject,
        TopNodesSpec(spec.groups[:1], token_index=-1, count=2, exclude_bottom=True),
        mlp_write_norm=neurons,
    )
    assert [node.tensor_indices for node in at_token.nodes] == [(1, 2), (1, 1)]
    everything = ranked(subject, TopNodesSpec(spec.groups[:1]), mlp_write_norm=neurons)
    assert everything.values["write_norm"].tolist() == [5, 3, 2, 1, 0, -4]


def test_top_tokens(subject: Subject) -> None:
    model, tokenizer = subject.model, subject.tokenizer
    direction = torch.randn(
        model.shape.residual_stream_channels, generator=torch.Generator().manual_seed(1)
    )
    write = model.write
    scores = (write.unembedding.double() @ (direction * write.final_norm_gain).double()).numpy()
    scores -= scores.mean()
    best = int(scores.argmax())
    everything = VocabularyProjection(model, tokenizer).top_tokens(direction, 3)
    assert everything.top[0].token == tokenizer.strings[best]
    assert everything.top[0].scalar == pytest.approx(scores.max(), rel=1e-4)
    assert everything.bottom[0].scalar == pytest.approx(scores.min(), rel=1e-4)
    largest = max(abs(scores.max()), abs(scores.min()))
    assert everything.top[0].normalized_scalar == pytest.approx(scores.max() / largest, rel=1e-4)
    without = VocabularyProjection(model, tokenizer, {best})
    second = int(np.argsort(scores)[-2])
    assert without.top_tokens(direction, 9).top[0].token == tokenizer.strings[second]
    swapped = VocabularyProjection(model, tokenizer).top_tokens(direction, 3, swapped=True)
    assert (swapped.top, swapped.bottom) == (everything.bottom, everything.top)
    nothing = VocabularyProjection(model, tokenizer).top_tokens(torch.zeros_like(direction), 2)
    assert {each.normalized_scalar for each in (*nothing.top, *nothing.bottom)} == {0.0}


def test_token_pairs() -> None:
    nan = float("nan")
    pairs = summarize(np.array([[2, 99, 99], [-1, nan, 99], [1, 4, 0]], dtype=np.float32))
    np.testing.assert_array_equal(pairs.activations, np.float32([2, -1, nan, 1, 4, 0]))
    np.testing.assert_allclose(pairs.normalized, [0.5, 0, nan, 0.25, 1, 0], atol=1e-5)
    assert pairs.total_in.values.tolist() == [2, -1, 5]
    assert pairs.max_in.values.tolist() == [2, -1, 4]
    assert pairs.total_out.values.tolist() == [2, 4, 0]
    assert pairs.max_out.values.tolist() == [2, 4, 0]
    nothing = summarize(np.full((1, 1), -3, dtype=np.float32))
    assert nothing.normalized.tolist() == [0]


def test_strings_that_are_left_out_stand_for_the_entries_they_encode_to(subject: Subject) -> None:
    tokenizer = subject.tokenizer
    encoded = {text: tokenizer.encode(text) for text in tokenizer.strings}
    alone = next(text for text, ids in encoded.items() if len(ids) == 1)
    assert excluded_entries(tokenizer, [alone]) == {encoded[alone][0]}
    for text in [each for each, ids in encoded.items() if len(ids) > 1][:3]:
        expected = {token for token, each in enumerate(tokenizer.strings) if each == text}
        assert excluded_entries(tokenizer, [text]) == expected
    assert excluded_entries(tokenizer, []) == frozenset()
