"""Runs kept for later requests: what serves whom, and the bound in bytes."""

from __future__ import annotations

import threading

import pytest
import torch

from services.scalars.deriving.activations import RawActivationStore
from services.scalars.engine.reuse import Memo, RunCache, RunKey, run_key
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.taps import Overwrite, RawTensorId
from services.scalars.passes.inference import PreparedInference, RunResult
from services.scalars.passes.losses import Loss, LossKind

POST = RawTensorId(ActivationLocationType.MLP_POST_ACT, 0, PassType.FORWARD)
PRE = RawTensorId(ActivationLocationType.MLP_PRE_ACT, 0, PassType.FORWARD)
GRADIENT = RawTensorId(ActivationLocationType.MLP_POST_ACT, 0, PassType.BACKWARD)
ROW_BYTES = 4 * 8


def run(*targets: RawTensorId, packed: bool = False) -> RunResult:
    """A run with a tensor of `ROW_BYTES` for each target."""
    tensors = {
        target: torch.randn(4, 8)[1] if packed else torch.randn(8) for target in targets or (POST,)
    }
    return RunResult(RawActivationStore(tensors, 2), 0.5, 0.1, None, None)


def key(*tokens: int) -> RunKey:
    return run_key(PreparedInference(tokens, (), None))


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
    assert cache.n_bytes == 3 * ROW_BYTES + 1
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
    cache = RunCache(3 * ROW_BYTES)
    for token in range(3):
        cache.keep(key(token), run())
    assert cache.get(key(0), [POST]) is not None
    cache.keep(key(3), run())
    assert cache.n_bytes == 3 * ROW_BYTES
    found = [token for token in range(4) if cache.get(key(token), [POST]) is not None]
    assert found == [0, 2, 3]


def test_memos_count_too() -> None:
    cache = RunCache(3 * ROW_BYTES)
    runs = [cache.keep(key(token), run()) for token in range(2)]
    runs[1].memo.put("a", "value", ROW_BYTES)
    assert len(cache) == 2
    runs[1].memo.put("b", "value", ROW_BYTES)
    assert cache.get(key(0), [POST]) is None
    assert cache.n_bytes == 3 * ROW_BYTES
    # It was forgotten; what is derived from it still is no longer counted.
    runs[0].memo.put("a", "value", ROW_BYTES)
    assert cache.n_bytes == 3 * ROW_BYTES
    assert runs[0].memo.get("a") == "value"
    # Too large together with its run.
    runs[1].memo.put("c", "value", ROW_BYTES)
    assert cache.n_bytes == len(cache) == 0


def test_a_run_over_the_bound_is_not_kept() -> None:
    cache = RunCache(ROW_BYTES)
    large = run(POST, PRE)
    assert cache.keep(key(1), large) is large
    assert cache.n_bytes == len(cache) == 0
    nothing = RunCache(0)
    nothing.keep(key(1), run())
    assert nothing.n_bytes == len(nothing) == 0
    cache.keep(key(1), run(POST))
    united = cache.keep(key(1), run(PRE))
    assert set(united.raw_store.tensors) == {PRE}
    assert cache.n_bytes == ROW_BYTES


def test_memory_is_given_back() -> None:
    cache = RunCache()
    for token in range(4):
        cache.keep(key(token), run())
    assert cache.release(ROW_BYTES + 1) == 2 * ROW_BYTES
    assert cache.get(key(1), [POST]) is None
    assert cache.get(key(2), [POST]) is not None
    assert cache.clear() == 2 * ROW_BYTES
    assert cache.n_bytes == len(cache) == 0


def test_a_memo_forgets_what_was_not_used_for_longest() -> None:
    memo = Memo(10)
    memo.put("a", 1, 4)
    memo.put("b", 2, 4)
    assert memo.get("a") == 1
    memo.put("c", 3, 4)
    assert [memo.get(each) for each in "abc"] == [1, None, 3]
    memo.put("a", 4, 1)
    assert (memo.get("a"), memo.n_bytes) == (4, 5)
    memo.put("a", 5, 11)
    assert (memo.get("a"), memo.n_bytes) == (None, 4)


@pytest.mark.parametrize("limit", [100, 10_000])
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
    assert cache.n_bytes == sum(ROW_BYTES + each.memo.n_bytes for each in alive)
