"""Names of folders that a URL has to escape, and of what can be nowhere."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial

import pytest

from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder
from services.records.storage.listing import components, layers
from shared.errors import FailedPrecondition
from shared.settings import Storage
from tests.emulators.azurite import Azurite
from tests.emulators.gcs import FakeGcs

NAMES = [
    "a b",
    "a+b",
    "50%",
    "a%20b",
    "a#b",
    "a?b",
    "a&b=c;d",
    "東 é",
    "e\u0301",
    "a@b:c",
    "[a]*",
    "~'()!$,",
]


@pytest.fixture(params=["azure", "gcs"])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Blobs]:
    name = f"box-{uuid.uuid4().hex[:8]}"
    emulator: Azurite | FakeGcs
    if request.param == "gcs":
        gcs: FakeGcs = request.getfixturevalue("gcs")
        gcs.create_bucket(name)
        emulator, path, settings = gcs, f"gs://{name}", Storage(gcs_endpoint=gcs.endpoint)
    else:
        azurite: Azurite = request.getfixturevalue("azurite")
        azurite.create_container("acct", name)
        emulator, path = azurite, f"az://acct/{name}"
        settings = Storage(azure_endpoint=azurite.endpoint)
    for variable, value in emulator.environment.items():
        if not variable.startswith("NEUROPIL_"):
            monkeypatch.setenv(variable, value)
    return path, Blobs(settings)


@pytest.fixture
def blobs(root: tuple[str, Blobs]) -> Iterator[Blobs]:
    yield root[1]
    root[1].close()


def instead(text: bytes, content: bytes | None) -> bytes:
    return text


@pytest.mark.parametrize("name", NAMES)
async def test_names_that_a_url_escapes(root: tuple[str, Blobs], blobs: Blobs, name: str) -> None:
    folder = Folder.trusted(f"{root[0]}/{name}/set")
    beside = Folder.trusted(f"{root[0]}/{name}x/set")
    await blobs.update(beside, "4/1.json", lambda content: b"beside")
    assert await blobs.read(folder, "3/1.json") is None
    for text in (b"first", b"second"):
        await blobs.update(folder, "3/1.json", partial(instead, text))
        assert await blobs.read(folder, "3/1.json") == text
    assert await layers(blobs, folder) == [3]
    assert list(await components(blobs, folder, 3, ".json")) == [1]
    assert list(await blobs.versions(folder, "3")) == ["1.json"]
    assert await blobs.read(beside, "4/1.json") == b"beside"


async def test_a_name_that_is_too_long_is_no_blobs(root: tuple[str, Blobs], blobs: Blobs) -> None:
    folder = Folder.trusted(f"{root[0]}/" + "é" * 600 + "/" + "x" * 600)
    assert await blobs.read(folder, "3/1.json") is None
    assert await blobs.files(folder, "3") is None
    with pytest.raises(FailedPrecondition) as caught:
        await blobs.update(folder, "3/1.json", lambda content: b"x")
    assert caught.value.reason == "NOT_WRITABLE"
