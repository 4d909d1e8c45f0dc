"""Runs kept for later requests: what serves whom, and the bound in bytes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from services.scalars.answers.node_lists import NodeList
from services.scalars.deriving.activations import RawActivationStore
from services.scalars.engine.reuse import (
    RUN_BYTES,
    TENSOR_BYTES,
    Memo,
    RunCache,
    RunKey,
    key_bytes,
    run_key,
)
from services.scalars.model.locations import ActivationLocationType, NodeType, PassType
from services.scalars.model.taps import Overwrite, RawTensorId
from services.scalars.passes.inference import PreparedInference, RunResult
from services.scalars.passes.losses import Loss, LossKind

POST = RawTensorId(ActivationLocationType.MLP_POST_ACT, 0, PassType.FORWARD)
PRE = RawTensorId(ActivationLocationType.MLP_PRE_ACT, 0, PassType.FORWARD)
GRADIENT = RawTensorId(ActivationLocationType.MLP_POST_ACT, 0, PassType.BACKWARD)
ROW_BYTES = 4 * 8
"""Of a tensor's elements."""


def run(*targets: RawTensorId, packed: bool = False) -> RunResult:
    """A run with a tensor of `ROW_BYTES` for each target."""
    tensors = {
        target: torch.randn(4, 8)[1] if packed else torch.randn(8) for target in targets or (POST,)
    }
    return RunResult(RawActivationStore(tensors, 2), 0.5, 0.1, None, None)


def key(*tokens: int) -> RunKey:
    return run_key(PreparedInference(tokens, (), None))


KEY_BYTES = key_bytes(key(1))
ONE_RUN = RUN_BYTES + KEY_BYTES + TENSOR_BYTES + ROW_BYTES
"""Of a run of one tensor, with nothing derived from it."""


def overwriting(*index: int | slice, value: float = 0.0) -> RunKey:
    return run_key(PreparedInference((1, 2), (Overwrite(POST, index, value),), None))


def test_inferences_that_differ_have_different_keys() -> None:
    losses = [
        None,
        Loss(LossKind.LOGIT_DIFF, (1,), (2,), 1),
        Loss(LossKind.LOGIT_DIFF, (1,), (2,), 0),
    ]
    different = [
        key(1, 2),
        key(1, 2, 3),
        overwriting(0, slice(None)),
        overwriting(0, slice(1, 2)),
        overwriting(slice(None), 0),
        overwriting(0, slice(None), value=-0.0),
        overwriting(0, slice(None), value=1.0),
        *(run_key(PreparedInference((1, 2), (), loss)) for loss in losses[1:]),
    ]
    assert len(set(different)) == len(different)
    assert overwriting(0, slice(None)) == overwriting(0, slice(None))
    assert key(1, 2) == key(1, 2)


def test_a_run_serves_what_it_holds() -> None:
    cache = RunCache()
    kept = cache.keep(key(1), run(POST, PRE))
    found = cache.get(key(1), [POST])
    assert found is not None
    assert found.raw_store.tensors[POST] is kept.raw_store.tensors[POST]
    assert (found.loss, found.seconds) == (kept.loss, kept.seconds)
    assert found.memo is kept.memo
    assert cache.get(key(1), [POST, GRADIENT]) is None
    assert cache.get(key(2), [POST]) is None


def test_a_second_run_adds_to_the_first() -> None:
    cache = RunCache()
    first = cache.keep(key(1), run(POST, PRE))
    first.memo.put("derived", "value", 1)
    second = cache.keep(key(1), run(POST, GRADIENT))
    assert set(second.raw_store.tensors) == {POST, PRE, GRADIENT}
    assert second.memo.get("derived") == "value"
    tensors = 3 * (TENSOR_BYTES + ROW_BYTES)
    assert cache.n_bytes == RUN_BYTES + KEY_BYTES + tensors + second.memo.n_bytes
    assert len(cache) == 1


def test_what_one_request_derives_is_not_kept() -> None:
    cache = RunCache()
    stores = [
        cache.keep(key(1), run()).raw_store,
        *(cache.get(key(1), [POST]).raw_store for _ in range(2)),  # type: ignore[union-attr]
    ]
    derived = [
        store.derived_once("deriver", PassType.FORWARD, 0, lambda: torch.zeros(1))
        for store in stores
    ]
    assert len({id(each) for each in derived}) == 3


def test_rows_of_a_batch_leave_its_memory() -> None:
    kept = RunCache().keep(key(1), run(packed=True))
    assert kept.raw_store.tensors[POST].untyped_storage().nbytes() == ROW_BYTES


def test_the_bound_holds_and_the_oldest_go_first() -> None:
    cache = RunCache(3 * ONE_RUN)
    for token in range(3):
        cache.keep(key(token), run())
    assert cache.get(key(0), [POST]) is not None
    cache.keep(key(3), run())
    assert cache.n_bytes == 3 * ONE_RUN
    found = [token for token in range(4) if cache.get(key(token), [POST]) is not None]
    assert found == [0, 2, 3]


def test_memos_count_too() -> None:
    cache = RunCache(3 * ONE_RUN)
    runs = [cache.keep(key(token), run()) for token in range(2)]
    half = ONE_RUN // 2
    derived = half - key_bytes("a")
    runs[1].memo.put("a", "value", derived)
    assert runs[1].memo.n_bytes == half
    assert len(cache) == 2
    runs[1].memo.put("b", "value", derived)
    runs[1].memo.put("c", "value", derived)
    assert cache.get(key(0), [POST]) is None
    assert cache.n_bytes == ONE_RUN + 3 * half
    # It was forgotten; what is derived from it still is no longer counted.
    runs[0].memo.put("a", "value", derived)
    assert cache.n_bytes == ONE_RUN + 3 * half
    assert runs[0].memo.get("a") == "value"
    # Too large together with its run.
    runs[1].memo.put("d", "value", ONE_RUN)
    assert cache.n_bytes == len(cache) == 0


def test_a_run_over_the_bound_is_not_kept() -> None:
    cache = RunCache(ONE_RUN)
    large = run(POST, PRE)
    assert cache.keep(key(1), large) is large
    assert cache.n_bytes == len(cache) == 0
    nothing = RunCache(0)
    nothing.keep(key(1), run())
    assert nothing.n_bytes == len(nothing) == 0
    cache.keep(key(1), run(POST))
    united = cache.keep(key(1), run(PRE))
    assert set(united.raw_store.tensors) == {PRE}
    assert cache.n_bytes == ONE_RUN


def test_runs_that_captured_nothing_are_bounded_too() -> None:
    def uncaptured(*tokens: int) -> RunResult:
        empty = RunResult(RawActivationStore({}, 2), 0.5, 0.1, None, None)
        return cache.keep(key(*tokens), empty)

    cache = RunCache(0)
    uncaptured(1)
    assert cache.n_bytes == len(cache) == 0
    cache = RunCache(100_000)
    for token in range(100):
        uncaptured(token)
    few = len(cache)
    assert 10 < few < 100
    # A longer prompt takes more, and so does an ablation.
    for token in range(100):
        uncaptured(token, *range(300))
    assert 1 <= len(cache) < few / 2
    assert cache.n_bytes <= 100_000
    assert key_bytes(overwriting(0, slice(None))) > key_bytes(key(1, 2)) + 200


def test_memory_is_given_back() -> None:
    cache = RunCache()
    for token in range(4):
        cache.keep(key(token), run())
    assert cache.release(ONE_RUN + 1) == 2 * ONE_RUN
    assert cache.get(key(1), [POST]) is None
    assert cache.get(key(2), [POST]) is not None
    assert cache.clear() == 2 * ONE_RUN
    assert cache.n_bytes == len(cache) == 0


def test_a_memo_forgets_what_was_not_used_for_longest() -> None:
    entry = key_bytes("a")
    memo = Memo(10 + 2 * entry)
    memo.put("a", 1, 4)
    memo.put("b", 2, 4)
    assert memo.get("a") == 1
    memo.put("c", 3, 4)
    assert [memo.get(each) for each in "abc"] == [1, None, 3]
    memo.put("a", 4, 1)
    assert (memo.get("a"), memo.n_bytes) == (4, 5 + 2 * entry)
    memo.put("a", 5, 11 + entry)
    assert (memo.get("a"), memo.n_bytes) == (None, 4 + entry)


def test_a_memo_is_bounded_where_keys_are_all_there_is() -> None:
    memo = Memo(10_000)
    for number in range(100):
        memo.put(("strongest", b"x" * 1000, number), "nothing", 0)
    assert memo.n_bytes <= 10_000
    assert sum(memo.get(("strongest", b"x" * 1000, each)) is not None for each in range(100)) < 10


def test_a_key_of_a_list_of_nodes_is_small_and_tells_lists_apart() -> None:
    def listed(first: int, n: int) -> NodeList:
        zeros = np.zeros(n, dtype=np.int64)
        indices = np.arange(first, first + 3 * n).reshape(n, 3)
        return NodeList((NodeType.MLP_NEURON,), zeros, zeros, indices)

    assert key_bytes(listed(0, 100_000).key) < 1000
    assert listed(0, 5).key == listed(0, 5).key
    assert len({listed(first, n).key for first in range(3) for n in range(3, 6)}) == 9


@pytest.mark.parametrize("limit", [ONE_RUN + 500, 10 * ONE_RUN])
def test_memos_are_used_by_several_threads(limit: int) -> None:
    cache = RunCache(limit)
    runs = [cache.keep(key(token), run()) for token in range(2)]

    def put(number: int) -> None:
        for position in range(200):
            runs[position % 2].memo.put((number, position % 7), position, position % 5)
            runs[position % 2].memo.get((number, position % 3))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.n_bytes <= limit
    alive = [each for token, each in enumerate(runs) if cache.get(key(token), [POST]) is not None]
    assert cache.n_bytes == sum(ONE_RUN + each.memo.n_bytes for each in alive)
