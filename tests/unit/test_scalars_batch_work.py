"""Calls of several inferences: in one turn or two, shared or not, the answers are the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import neuropil
from neuropil import names
from neuropil.scalars import v1
from neuropil.tensors import to_array
from services.scalars import convert
from services.scalars.answers import batch_work
from services.scalars.answers.batch_work import HELD_BYTES, BatchWork
from services.scalars.data_plane import DataPlane
from services.scalars.deriving.activations import RawActivationStore
from services.scalars.engine.worker import Engine
from services.scalars.model.subject import Subject, load_subject
from services.scalars.passes.inference import run_inference
from shared.errors import InvalidArgument, ResourceExhausted
from tests.unit.scalars_checkpoint import write_checkpoint

PROMPTS = ("The cat sat on the mat", "The dog sat on the log")
LOSS = neuropil.Loss("logit_diff", [" cat"], [" dog"])
GROUPS = {
    "act_times_grad": ("token_attribution", "mlp_act_times_grad"),
    "activation": ("always_one", "mlp_post_act"),
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


@asynccontextmanager
async def plane(
    subject: Subject, held_bytes: int = HELD_BYTES, reuse_bytes: int = 0
) -> AsyncIterator[DataPlane]:
    engine = Engine(subject.model, subject.autoencoders, reuse_bytes=reuse_bytes)
    try:
        yield DataPlane(subject, engine, held_bytes=held_bytes)
    finally:
        engine.close()


def groups(names_by_group: Mapping[str, tuple[str, ...]]) -> list[v1.ScalarGroup]:
    return [
        v1.ScalarGroup(
            group_id=names.GROUP_IDS.value(group),
            derived_scalar_types=[names.DERIVED_SCALAR_TYPES.value(each) for each in types],
        )
        for group, types in names_by_group.items()
    ]


def request(*prompts: str, token_index: int = -1) -> v1.BatchDeriveRequest:
    specs = [
        v1.NamedSpec(
            name="top",
            top_nodes=v1.TopNodesSpec(groups=groups(GROUPS), top_and_bottom_count=4),
        ),
        v1.NamedSpec(
            name="tokens",
            scored_tokens=v1.ScoredTokensSpec(
                scoring=v1.TOKEN_SCORING_UPVOTED_OUTPUT_TOKENS, token_count=3, depends_on="top"
            ),
        ),
        v1.NamedSpec(
            name="logits",
            top_nodes=v1.TopNodesSpec(
                groups=groups({"logits": ("logits",)}),
                top_and_bottom_count=5,
                token_index=token_index,
            ),
        ),
    ]
    return v1.BatchDeriveRequest(
        inferences=[
            v1.BatchInference(
                inference=v1.InferenceSpec(prompt=prompt, loss=LOSS.message()), specs=specs
            )
            for prompt in prompts
        ]
    )


async def answers(
    data_plane: DataPlane, asked: v1.BatchDeriveRequest
) -> list[v1.BatchDeriveResponse]:
    found = await data_plane.derive_batch(convert.batch_inferences(asked))
    strings = data_plane.subject.tokenizer.strings
    messages = []
    for position, each in enumerate(found):
        message = convert.batch_response(position, each, strings, 1 << 24)
        message.inference.ClearField("seconds")
        messages.append(message)
    return messages


def check_alike(
    found: Sequence[v1.BatchDeriveResponse], expected: Sequence[v1.BatchDeriveResponse]
) -> None:
    """The same nodes and tokens; numbers may be rounded otherwise in another batch."""
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.inference.token_ids == theirs.inference.token_ids
        for name in (0, 2):
            ours, others = mine.results[name].top_nodes, theirs.results[name].top_nodes
            assert ours.nodes == others.nodes
            for one, other in zip(ours.groups, others.groups, strict=True):
                assert to_array(one.values) == pytest.approx(
                    to_array(other.values), rel=1e-4, abs=1e-6
                )
        pairs = zip(
            mine.results[1].scored_tokens.nodes, theirs.results[1].scored_tokens.nodes, strict=True
        )
        for one_node, other_node in pairs:
            assert [each.scalar for each in one_node.top] == pytest.approx(
                [each.scalar for each in other_node.top], rel=1e-4, abs=1e-6
            )


@pytest.mark.parametrize("reuse_bytes", [0, 1 << 26])
async def test_one_turn_or_two(subject: Subject, reuse_bytes: int) -> None:
    asked = request(*PROMPTS)
    async with plane(subject) as one, plane(subject, 0, reuse_bytes) as two:
        expected = await answers(one, asked)
        assert len(expected) == 2
        check_alike(await answers(two, asked), expected)
        check_alike(await answers(two, asked), expected)


class _HeldUp(dict[int, Any]):
    """Holds a thread that puts something in until another one did, or for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._both = threading.Barrier(2)

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        with contextlib.suppress(threading.BrokenBarrierError):
            self._both.wait(0.5)


class _Counted(BatchWork):
    """Counts how often results are completed."""

    completions = 0

    def complete(self, *args: Any) -> None:
        self.completions += 1
        super().complete(*args)


async def test_what_is_derived_side_by_side_is_completed_once(subject: Subject) -> None:
    async with plane(subject) as data_plane:
        plans = data_plane._plan(convert.batch_inferences(request(*PROMPTS)))
        work = _Counted(plans, data_plane._tools, _waiting=_HeldUp())
        runs = [run_inference(subject.model, each.prepared, each.captures) for each in plans]
        await asyncio.gather(
            *(
                asyncio.to_thread(work.derive, position, run, lambda: None)
                for position, run in enumerate(runs)
            )
        )
    assert work.completions == 1
    assert sorted(work.results) == [0, 1]


async def test_the_same_inference_twice(subject: Subject) -> None:
    async with plane(subject, reuse_bytes=1 << 26) as data_plane:
        first, second = await answers(data_plane, request(PROMPTS[0], PROMPTS[0]))
        (alone,) = await answers(data_plane, request(PROMPTS[0]))
    assert first.results == second.results == alone.results


async def test_one_tokens_logits_are_those_of_all(subject: Subject) -> None:
    """What follows from the final layer norm is what the forward pass would have given."""
    whole = v1.BatchDeriveRequest(
        inferences=[
            v1.BatchInference(
                inference=v1.InferenceSpec(prompt=PROMPTS[0]),
                specs=[
                    v1.NamedSpec(
                        name="x",
                        selection=v1.ScalarSelection(
                            derived_scalar_type=names.DERIVED_SCALAR_TYPES.value("logits")
                        ),
                    )
                ],
            )
        ]
    )
    async with plane(subject) as data_plane:
        (tensor,) = await answers(data_plane, whole)
        (listed,) = await answers(data_plane, request(PROMPTS[0], token_index=2))
    logits = to_array(tensor.results[0].selection)[0]
    found = listed.results[2].top_nodes
    table = found.nodes.tensor_indices
    assert set(table[::3]) == {2}
    values = to_array(found.groups[0].values)
    assert values == pytest.approx(logits[2][list(table[1::3])], rel=1e-4, abs=1e-5)
    ordered = sorted(logits[2].tolist(), reverse=True)
    assert values.tolist() == pytest.approx([*ordered[:5], *ordered[-5:]], rel=1e-4, abs=1e-5)
    assert to_array(found.sums[0].values) == pytest.approx(logits.sum(axis=1), rel=1e-3, abs=1e-3)
    strings = subject.tokenizer.strings
    assert list(found.vocabulary_tokens) == [strings[each] for each in table[1::3]]


async def test_all_are_given_up_where_one_fails(subject: Subject) -> None:
    async with plane(subject) as data_plane:
        with pytest.raises(InvalidArgument):
            await answers(data_plane, request(PROMPTS[0], "The cat"))
        engine = Engine(subject.model, subject.autoencoders, memory_limit=1000)
        try:
            with pytest.raises(ResourceExhausted):
                await answers(DataPlane(subject, engine), request(*PROMPTS))
            assert engine.waiting == 0
        finally:
            engine.close()


def scored(
    scalar_type: str, scoring: v1.TokenScoring, *ablations: neuropil.Ablation
) -> v1.BatchDeriveRequest:
    """Tokens scored for the nodes of one type that a single token has."""
    specs = [
        v1.NamedSpec(
            name="top",
            top_nodes=v1.TopNodesSpec(groups=groups({"activation": (scalar_type,)})),
        ),
        v1.NamedSpec(
            name="tokens",
            scored_tokens=v1.ScoredTokensSpec(scoring=scoring, token_count=3, depends_on="top"),
        ),
    ]
    inference = v1.InferenceSpec(prompt="a", ablations=[each.message() for each in ablations])
    return v1.BatchDeriveRequest(inferences=[v1.BatchInference(inference=inference, specs=specs)])


@pytest.mark.parametrize(
    "scoring",
    [v1.TOKEN_SCORING_UPVOTED_OUTPUT_TOKENS, v1.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_ATTN_Q],
)
async def test_equal_indices_may_count_different_things(
    subject: Subject, scoring: v1.TokenScoring
) -> None:
    """(0, 1) is a head at the first token, or at the first token pair."""
    types = ("attn_write_norm", "attn_write_norm_per_sequence_token")
    async with plane(subject) as alone:
        expected = {
            each: (await answers(alone, scored(each, scoring)))[0].results for each in types
        }
    tables = [set(each[0].top_nodes.nodes.tensor_indices) for each in expected.values()]
    assert tables[0] == tables[1]
    lists = [[len(node.top) for node in each[1].scored_tokens.nodes] for each in expected.values()]
    read = scoring != v1.TOKEN_SCORING_UPVOTED_OUTPUT_TOKENS
    assert (lists[0] != lists[1]) == read
    for order in (types, types[::-1]):
        async with plane(subject, reuse_bytes=1 << 26) as data_plane:
            for each in order:
                (found,) = await answers(data_plane, scored(each, scoring))
                assert found.results == expected[each]


@pytest.mark.parametrize("value", [1e10, 1e18, 1e20, 3e38])
async def test_a_huge_residual_stream_spoils_no_later_call(subject: Subject, value: float) -> None:
    """What neurons read is remembered for all prompts, whichever prompt asked for it first."""
    scoring = v1.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_MLP
    huge = neuropil.Ablation("resid.post_emb", None, [0, 0], value)
    # What is not finite would not be listed.
    finite = [
        neuropil.Ablation("mlp.post_act", layer, [0, None], 1.0)
        for layer in range(subject.model.shape.layers)
    ]
    async with plane(subject) as clean:
        (expected,) = await answers(clean, scored("mlp_post_act", scoring))
    async with plane(subject) as data_plane:
        await answers(data_plane, scored("mlp_post_act", scoring, huge, *finite))
        (found,) = await answers(data_plane, scored("mlp_post_act", scoring))
    assert found.results == expected.results


async def test_what_was_derived_is_gone_when_tokens_are_scored(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    derived: list[weakref.ref[Any]] = []
    alive: list[int] = []
    derive_once, score = RawActivationStore.derived_once, batch_work.score

    def derived_once(self: RawActivationStore, *arguments: Any) -> Any:
        found = derive_once(self, *arguments)
        if all(found is not each for each in self.tensors.values()):
            derived.append(weakref.ref(found))
        return found

    def scored(*arguments: Any) -> Any:
        alive.append(sum(each() is not None for each in derived))
        return score(*arguments)

    monkeypatch.setattr(RawActivationStore, "derived_once", derived_once)
    monkeypatch.setattr(batch_work, "score", scored)
    async with plane(subject) as data_plane:
        await answers(data_plane, request(PROMPTS[0]))
    assert derived
    assert alive == [0]
