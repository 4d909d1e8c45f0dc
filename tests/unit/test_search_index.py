"""The index over explanations: what is kept on disk, the order of hits, and pages."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.records.search.columns import Selection
from services.records.search.documents import FileKey, Text, storable
from services.records.search.index import ExplanationIndex
from services.records.search.index_semantic import DIMENSIONS, VectorIndex
from services.records.search.paging import (
    MAX_HITS,
    Position,
    fingerprint,
    folder_key,
    from_token,
    ranked,
    to_token,
)
from shared.errors import InvalidArgument

MODEL = "a model"


def vectors(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, DIMENSIONS))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


def filled(path: Path | None, model: str = MODEL) -> ExplanationIndex:
    index = ExplanationIndex(path, model)
    folder = index.store.folder("/explanations")
    index.replace(FileKey(folder, 0, 1), "v1", [Text("a cat", 0.5), Text("a dog", math.nan)])
    index.replace(FileKey(folder, 2, 3), "v1", [Text("cats", -0.5)])
    index.commit()
    documents = index.pending(10, 10**6)
    index.embed(documents, vectors(len(documents)))
    return index


def found(index: ExplanationIndex, query: str) -> list[str]:
    folders = tuple(index.store.folders().values())
    hits, _ = index.search_text(query, Selection(folders), None, 50)
    documents = index.store.documents([hit.id for hit in hits])
    return [documents[hit.id].text for hit in hits]


def test_a_kept_index_needs_no_file_and_no_vector_again(tmp_path: Path) -> None:
    filled(tmp_path).close()
    again = ExplanationIndex(tmp_path, MODEL)
    again.load()
    assert sorted(found(again, "cat")) == ["a cat", "cats"]
    assert again.pending(10, 10**6) == []
    assert again.count() == (3, 3)
    versions = again.store.versions(again.store.folder("/explanations"))
    assert set(versions.values()) == {"v1"}
    query = vectors(1)[0].astype(np.float32)
    hits, matches = again.search_semantic(query, Selection((1,)), None, 3)
    assert (len(hits), matches) == (3, 3)
    assert hits[0].relevance == pytest.approx(1, abs=2e-3)
    again.close()


def test_vectors_of_another_model_are_not_used(tmp_path: Path) -> None:
    filled(tmp_path).close()
    other = ExplanationIndex(tmp_path, "another model")
    other.load()
    assert len(other.pending(10, 10**6)) == 3
    other.close()


def corrupted(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"x" * 5000)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6000])


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE mine (x)")


def older(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE format SET name = 'neuropil-explanations-0'")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [corrupted, truncated, foreign, older, empty])
def test_a_folder_that_cannot_be_used_is_made_anew(tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    filled(tmp_path).close()
    spoil(tmp_path / "explanations.sqlite3")
    again = ExplanationIndex(tmp_path, MODEL)
    again.load()
    assert again.count() == (0, 0)
    again.close()
    filled(tmp_path).close()
    kept = ExplanationIndex(tmp_path, MODEL)
    kept.load()
    assert kept.count() == (3, 3)
    kept.close()


def test_a_second_process_leaves_the_folder_alone(tmp_path: Path) -> None:
    first = filled(tmp_path)
    second = ExplanationIndex(tmp_path, MODEL)
    second.load()
    assert second.count() == (0, 0)
    second.replace(FileKey(second.store.folder("/other"), 0, 0), "v", [Text("zebra", 0.0)])
    second.close()
    first.close()
    again = ExplanationIndex(tmp_path, MODEL)
    again.load()
    assert again.count() == (3, 3)
    assert found(again, "zebra") == []
    again.close()


def test_a_folder_that_cannot_be_made_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    index = filled(tmp_path / "file" / "below")
    assert index.count() == (3, 3)
    index.close()


def test_replacing_a_file_changes_only_what_changed() -> None:
    index = filled(None)
    file = FileKey(index.store.folder("/explanations"), 0, 1)
    kept = {document.text: document.id for part in index.store.all_documents() for document in part}
    index.replace(file, "v2", [Text("a cat", 0.5), Text("a dog", 0.25), Text("a hen", 0.0)])
    index.commit()
    now = {document.text: document.id for part in index.store.all_documents() for document in part}
    assert now["a cat"] == kept["a cat"]
    assert now["a dog"] != kept["a dog"]
    # The dog's vector is known by its text; only the hen has none.
    assert [document.text for document in index.pending(10, 10**6)] == ["a hen"]
    index.forget(file)
    index.commit()
    assert found(index, "cat dog hen") == ["cats"]
    assert index.count() == (1, 1)
    index.close()


def test_an_inflected_word_is_found_below_the_word_itself() -> None:
    index = ExplanationIndex(None, MODEL)
    folder = index.store.folder("/explanations")
    for number, text in enumerate(["a verb here", "some verbs here", "naïve résumé", "東京 の 塔"]):
        index.replace(FileKey(folder, 0, number), "", [Text(text, 0.0)])
    index.commit()
    assert found(index, "verbs") == ["some verbs here", "a verb here"]
    assert found(index, "Naive RESUME") == ["naïve résumé"]
    assert found(index, "東京") == ["東京 の 塔"]
    index.close()


def test_lone_surrogates_and_long_texts_can_be_stored() -> None:
    assert storable("a\ud800b") == "a?b"
    assert len(storable("x" * 100_000)) == 65_536


@given(
    relevances=st.lists(st.sampled_from([0.0, 0.5, 0.5000001, 1.0, -1.0]), max_size=60),
    size=st.integers(1, 9),
)
def test_pages_are_the_whole_order_cut_up(relevances: list[float], size: int) -> None:
    values = np.array(relevances)

    def best(limit: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(-values, kind="stable")[::1][:limit]
        return order.astype(np.int64), values[order]

    def places(ids: np.ndarray) -> list[tuple[int, int, int, int]]:
        return [(0, -int(number), 0, 0) for number in ids]

    whole = ranked(best, places, None, MAX_HITS)
    assert sorted(hit.id for hit in whole) == list(range(len(relevances)))
    assert [hit.order for hit in whole] == sorted(hit.order for hit in whole)
    paged = []
    after = None
    while page := ranked(best, places, after, size):
        paged += page
        token = to_token(Position(page[-1].order, len(paged)), b"12345678")
        after = from_token(token, b"12345678")
    assert paged == whole


@given(st.text(max_size=120))
def test_no_other_token_is_taken(token: str) -> None:
    request = fingerprint("a", 1)
    if token:
        with pytest.raises(InvalidArgument) as caught:
            from_token(token, request)
        assert caught.value.field == "page_token"
    mine = to_token(Position((-1.0, 0, 1, 2, 3), 7), request)
    assert from_token(mine, request) == Position((-1.0, 0, 1, 2, 3), 7)
    with pytest.raises(InvalidArgument):
        from_token(mine, fingerprint("b", 1))


def test_a_full_disk_never_makes_one_explanation_answer_for_another(tmp_path: Path) -> None:
    index = ExplanationIndex(tmp_path, MODEL)
    folder = index.store.folder("/explanations")
    index.commit()
    index.replace(FileKey(folder, 0, 0), "v1", [Text("apples", 0.9)])
    # As SQLite does by itself where the disk is full in the middle of a transaction.
    index.store._database.rollback()
    index.replace(FileKey(folder, 0, 1), "v1", [Text("submarines", 0.1)])
    index.commit()
    hits, _ = index.search_text("apples", Selection((folder,)), None, 10)
    assert index.store.documents([hit.id for hit in hits]) == {}
    assert found(index, "submarines") == ["submarines"]
    index.close()


def paging(relevances: dict[tuple[int, int, int, int], float]):  # type: ignore[no-untyped-def]
    where = np.array(list(relevances)).reshape(-1, 4)
    values = np.array(list(relevances.values()))

    def best(limit: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(-values, kind="stable")[:limit]
        return order.astype(np.int64), values[order]

    return best, lambda ids: where[ids]


@given(factor=st.sampled_from([0.5, 0.999, 1.0, 1.001, 3.0]), size=st.integers(1, 30))
def test_pages_go_on_after_the_same_hit_where_all_relevances_move(factor: float, size: int) -> None:
    relevances = {(0, 1, number, 0): 1.0 + number // 20 for number in range(60)}
    first = ranked(*paging(relevances), None, size)
    # Something came, better than all: it may be found by who asks anew.
    later = {place: factor * value for place, value in relevances.items()} | {(0, 0, 0, 0): 9.0}
    after = Position(first[-1].order, len(first))
    rest = ranked(*paging(later), after, MAX_HITS)
    whole = ranked(*paging(relevances), None, MAX_HITS)
    assert [hit.order[1:] for hit in first + rest] == [hit.order[1:] for hit in whole]


def test_pages_go_on_where_a_hit_was_that_is_gone() -> None:
    relevances = {(0, 1, number, 0): 1.0 for number in range(9)}
    first = ranked(*paging(relevances), None, 4)
    del relevances[(0, 1, 3, 0)]
    rest = ranked(*paging(relevances), Position(first[-1].order, 4), 9)
    assert [hit.order[3] for hit in rest] == [4, 5, 6, 7, 8]


def test_a_position_stays_in_its_folder_where_others_come_before() -> None:
    a, b, c = (folder_key(name) for name in "abc")
    position = Position((-1.0, 1, 2, 3, 4), 7, c)
    assert position.among([a, b, c]).order == (-1.0, 2, 2, 3, 4)
    assert position.among([c]).order == (-1.0, 0, 2, 3, 4)
    assert position.among([a, b]) == position
    again = from_token(to_token(position, b"12345678"), b"12345678")
    assert again == position


def full(index: ExplanationIndex) -> None:
    """As on a disk without room: SQLite may take no more pages."""
    database = index.store._database
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_leaves_what_was_written_down_searchable(tmp_path: Path) -> None:
    index = filled(tmp_path)
    full(index)
    folder = index.folder("/explanations")
    long = [Text(f"a hen {number} " + "x" * 500, 0.5) for number in range(100)]
    with pytest.raises(sqlite3.Error):
        # Takes away what was there and adds what there is no room for.
        index.replace(FileKey(folder, 0, 1), "v2", [Text("an owl", 0.1)])
        for number in range(100):
            index.replace(FileKey(folder, 5, number), "v1", long)
        index.commit()
    assert sorted(found(index, "cat dog")) == ["a cat", "a dog", "cats"]
    assert found(index, "hen owl") == []
    assert index.count() == (3, 3)
    query = vectors(1)[0].astype(np.float32)
    assert len(index.search_semantic(query, Selection((folder,)), None, 9)[0]) == 3
    # Vectors that can't be kept are searched.
    index.store._database.execute("PRAGMA max_page_count = 100000")
    index.replace(FileKey(folder, 6, 0), "v1", [Text("a cow", 0.5)])
    index.commit()
    assert found(index, "cow") == ["a cow"]
    index.close()
    again = ExplanationIndex(tmp_path, MODEL)
    again.load()
    assert again.count()[0] == 4
    again.close()


def test_vectors_that_find_no_room_are_searched_all_the_same(tmp_path: Path) -> None:
    index = ExplanationIndex(tmp_path, MODEL)
    folder = index.folder("/explanations")
    index.replace(FileKey(folder, 0, 0), "", [Text(f"text {each}", 0.0) for each in range(100)])
    index.commit()
    full(index)
    documents = index.pending(100, 10**6)
    with pytest.raises(sqlite3.Error):
        index.embed(documents, vectors(100))
    assert index.count() == (100, 100)
    assert index.pending(100, 10**6) == []
    index.close()


def test_an_index_that_is_told_to_stop_loads_no_further(tmp_path: Path) -> None:
    filled(tmp_path).close()
    index = ExplanationIndex(tmp_path, MODEL)
    index.stop()
    index.load()
    index.drop_unused_vectors()
    assert index.count() == (0, 0)
    index.close()
    again = ExplanationIndex(tmp_path, MODEL)
    again.load()
    assert again.count() == (3, 3)
    again.close()


def test_long_texts_make_small_batches() -> None:
    index = ExplanationIndex(None, MODEL)
    folder = index.folder("/explanations")
    sizes = (10, 3000, 20, 30)
    index.replace(FileKey(folder, 0, 0), "", [Text("x" * size, 0.0) for size in sizes])
    assert [len(document.text) for document in index.pending(9, 100)] == [30, 20]
    assert [len(document.text) for document in index.pending(1, 100)] == [30]
    index.replace(FileKey(folder, 0, 0), "", [Text("x" * size, 0.0) for size in sizes[:2]])
    assert [len(document.text) for document in index.pending(9, 100)] == [3000]
    index.close()


def test_vectors_that_are_gone_free_their_room_in_time() -> None:
    index = VectorIndex()
    ids = np.arange(3000, dtype=np.int64)
    drawn = vectors(3000)
    index.add(ids, drawn)
    selected = np.ones(3000, bool)
    for number in ids[:2000]:
        index.remove(np.array([number]))
        selected[number] = False
        got, _ = index.search(drawn[number].astype(np.float32), selected, 1)
        assert got[0] != number
    assert index._index.ntotal < 2100
    # One that comes back is there once.
    index.add(ids[1999:2000], drawn[1999:2000])
    selected[1999] = True
    got, cosines = index.search(drawn[1999].astype(np.float32), selected, 3000)
    assert (got == 1999).sum() == 1
    assert got[0] == 1999
    assert len(got) == 1001
    assert np.all(np.diff(cosines) <= 0)


def test_nan_scores_and_signs_alone_are_no_obstacle() -> None:
    index = ExplanationIndex(None, MODEL)
    folder = index.folder("/explanations")
    index.replace(FileKey(folder, 0, 0), "", [Text("cat", math.nan), Text("🙂 ::", math.nan)])
    index.commit()
    assert found(index, "cat") == ["cat"]
    hits, matches = index.search_text("cat", Selection((folder,), (), -1e9), None, 9)
    assert (hits, matches) == ([], 0)
    assert index.search_text("cat", Selection(()), None, 9)[0] == []
    index.embed(index.pending(9, 99), vectors(2))
    query = vectors(1)[0].astype(np.float32)
    assert index.search_semantic(query, Selection((folder,), (), -1e9), None, 9) == ([], 0)
    assert len(index.search_semantic(query, Selection((folder,)), None, 9)[0]) == 2
    index.close()
