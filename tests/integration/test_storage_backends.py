"""Reading, listing and writing on real servers of every kind of storage, with the same answers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.records.storage.blobs import Blobs
from services.records.storage.file_store import FileStore
from services.records.storage.folders import Folder
from services.records.storage.listing import components, layers
from shared.errors import FailedPrecondition, NeuropilError, ResourceExhausted, Unavailable
from shared.settings import Storage
from tests.emulators.azurite import Azurite
from tests.emulators.gcs import FakeGcs

MEBIBYTE = 2**20


@dataclass
class Place:
    """Storage of one kind: a folder of it, what stores a file there, how it is reached."""

    folder: Folder
    put: Callable[[str, bytes], None]
    storage: Storage

    def store(self, **options: int) -> FileStore:
        return FileStore(self.storage, **options)


@pytest.fixture(params=["local", "azure", "azure-https", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    name = f"box-{uuid.uuid4().hex[:8]}"
    if request.param == "local":
        root = tmp_path / name

        def put(relative: str, content: bytes) -> None:
            (root / relative).parent.mkdir(parents=True, exist_ok=True)
            (root / relative).write_bytes(content)

        root.mkdir()
        return Place(Folder.trusted(str(root)), put, Storage())
    if request.param == "gcs":
        gcs: FakeGcs = request.getfixturevalue("gcs")
        gcs.create_bucket(name)
        root_path = f"gs://{name}/set é"
        settings = Storage(gcs_endpoint=gcs.endpoint)
        emulator: Azurite | FakeGcs = gcs
    else:
        azurite: Azurite = request.getfixturevalue("azurite")
        azurite.create_container("acct", name)
        root_path = f"az://acct/{name}/set é"
        settings = Storage(azure_endpoint=azurite.endpoint)
        emulator = azurite
    for variable, value in emulator.environment.items():
        if not variable.startswith("NEUROPIL_"):
            monkeypatch.setenv(variable, value)
    named = root_path
    if request.param == "azure-https":
        named = root_path.replace("az://acct", "https://acct.blob.core.windows.net")
    return Place(
        Folder.trusted(named),
        lambda relative, content: emulator.put(f"{root_path}/{relative}", content),
        settings,
    )


@pytest.fixture
def blobs(place: Place) -> Iterator[Blobs]:
    made = Blobs(place.storage)
    yield made
    made.close()


@pytest.mark.parametrize(
    "size", [0, 1, 4 * MEBIBYTE - 1, 4 * MEBIBYTE, 4 * MEBIBYTE + 1, 9 * MEBIBYTE]
)
def test_a_file_of_any_size_is_read_whole(place: Place, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    place.put("0/1.json", content[:size])
    assert place.store().read(place.folder, "0/1.json") == content[:size]


def test_a_file_that_is_too_large(place: Place) -> None:
    store = place.store(max_bytes=100)
    place.put("0/1.json", b"x" * 100)
    place.put("0/2.json", b"x" * 101)
    assert store.read(place.folder, "0/1.json") == b"x" * 100
    with pytest.raises(ResourceExhausted) as caught:
        store.read(place.folder, "0/2.json")
    assert caught.value.metadata == {
        "file": place.folder.file_name("0/2.json"),
        "bytes": "101",
        "limit": "100",
    }


def test_what_is_missing(place: Place) -> None:
    place.put("0/1.json", b"x")
    store = place.store()
    assert store.read(place.folder, "0/2.json") is None
    assert store.read(place.folder, "0/1.json/2.json") is None
    assert store.files(place.folder, "5") is None
    assert store.folders(place.folder, "5") == []
    parent = place.folder.path.rsplit("/", 2)[0]
    nowhere = Folder.trusted(f"{parent}/no-such-place/set")
    assert store.read(nowhere, "0/1.json") is None
    assert store.files(nowhere, "0") is None
    assert store.folders(nowhere) == []
    assert store.versions(nowhere) == {}


async def test_listing(place: Place, blobs: Blobs) -> None:
    for name in ("0/10.json", "0/9.json", "0/007.json", "0/x", "10/1.json", "9/1.json", "readme"):
        place.put(name, b"x")
    assert await layers(blobs, place.folder) == [0, 9, 10]
    assert list(await components(blobs, place.folder, 0, ".json")) == [9, 10]
    assert sorted(await blobs.files(place.folder, "0") or []) == [
        "007.json",
        "10.json",
        "9.json",
        "x",
    ]
    before = await blobs.versions(place.folder, "0")
    assert sorted(before) == ["007.json", "10.json", "9.json", "x"]
    place.put("0/9.json", b"other")
    after = await blobs.versions(place.folder, "0")
    assert {name for name in after if before[name] != after[name]} == {"9.json"}


async def test_a_listing_of_several_pages(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of Azure's has 5,000 entries."""
    for variable, value in azurite.environment.items():
        monkeypatch.setenv(variable, value)
    azurite.create_container("acct", "many")
    with ThreadPoolExecutor(8) as pool:
        for stored in [
            pool.submit(azurite.put, f"az://acct/many/3/{number}.json", b"")
            for number in range(5100)
        ]:
            stored.result()
    made = Blobs(Storage(azure_endpoint=azurite.endpoint))
    folder = Folder.trusted("az://acct/many")
    assert list(await components(made, folder, 3, ".json")) == [*range(5100)]
    made.close()


async def test_a_new_file_is_made_and_an_old_one_replaced(place: Place, blobs: Blobs) -> None:
    seen: list[bytes | None] = []

    def change(content: bytes | None) -> bytes:
        seen.append(content)
        return (content or b"") + b"more "

    for _ in range(3):
        await blobs.update(place.folder, "7/1.jsonl", change)
    assert seen == [None, b"more ", b"more more "]
    assert await blobs.read(place.folder, "7/1.jsonl") == b"more more more "
    assert await blobs.files(place.folder, "7") == ["1.jsonl"]


async def test_concurrent_writers_in_several_processes_lose_nothing(
    place: Place, blobs: Blobs
) -> None:
    """Two stores share nothing, as two processes do; each has writers that wait for one another."""
    other = Blobs(place.storage)
    try:

        async def add(number: int) -> None:
            def change(content: bytes | None) -> bytes:
                return (content or b"") + f"{number}\n".encode()

            await (blobs if number % 2 else other).update(place.folder, "0/1.jsonl", change)

        await asyncio.gather(*(add(number) for number in range(50)))
    finally:
        other.close()
    content = await blobs.read(place.folder, "0/1.jsonl")
    assert content is not None
    assert sorted(map(int, content.split())) == [*range(50)]


async def test_a_change_that_fails_leaves_the_file(place: Place, blobs: Blobs) -> None:
    place.put("0/1.jsonl", b"old")

    def change(content: bytes | None) -> bytes:
        raise ResourceExhausted("too much")

    with pytest.raises(ResourceExhausted):
        await blobs.update(place.folder, "0/1.jsonl", change)
    assert await blobs.read(place.folder, "0/1.jsonl") == b"old"
    assert await blobs.files(place.folder, "0") == ["1.jsonl"]


async def test_folders_are_made_and_containers_are_not(place: Place, blobs: Blobs) -> None:
    nowhere = Folder.trusted(f"{place.folder.path.rsplit('/', 2)[0]}/no-such-place/set")
    if not place.folder.remote:
        await blobs.update(nowhere, "0/1.jsonl", lambda content: b"x")
        assert await blobs.read(nowhere, "0/1.jsonl") == b"x"
        return
    with pytest.raises(FailedPrecondition) as caught:
        await blobs.update(nowhere, "0/1.jsonl", lambda content: b"x")
    assert caught.value.reason == "NOT_WRITABLE"


@pytest.mark.parametrize("account", ["other", "acct"])
def test_a_store_that_grants_no_access(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    """The credentials are of another account, or their key is wrong."""
    azurite.create_container(account, "private")
    azurite.put(f"az://{account}/private/0/1.json", b"x")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acct")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "c2VjcmV0")
    store = FileStore(Storage(azure_endpoint=azurite.endpoint, retries=0))
    folder = Folder.trusted(f"az://{account}/private-{uuid.uuid4().hex[:6]}")
    calls: list[Callable[[], object]] = [
        lambda: store.read(folder, "0/1.json"),
        lambda: store.files(folder, "0"),
        lambda: store.update(folder, "0/1.json", lambda content: b"y", seconds=5),
    ]
    for call in calls:
        with pytest.raises(FailedPrecondition) as caught:
            call()
        assert caught.value.reason == "STORAGE_ACCESS_DENIED"
        assert_tells_nothing(caught.value)


def test_a_store_that_is_not_there(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in azurite.environment.items():
        monkeypatch.setenv(variable, value)
    nobody = "http://127.0.0.1:9"
    store = FileStore(Storage(azure_endpoint=nobody, gcs_endpoint=nobody, retries=0))
    for path in ("az://acct/box", "gs://box"):
        with pytest.raises(Unavailable) as caught:
            store.read(Folder.trusted(path), "0/1.json")
        assert caught.value.reason == "STORAGE_UNAVAILABLE"
        assert caught.value.retry_after_seconds
        assert_tells_nothing(caught.value)


def assert_tells_nothing(error: NeuropilError) -> None:
    said = f"{error.message} {error.metadata}".lower()
    for secret in ("http", "127.0.0.1", "signature", "sharedkey", "c2vjcmv0", "x-ms-", "host"):
        assert secret not in said, said
