"""What becomes of reads where a blob store hangs, lies, stammers or sends garbage."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from services.records.storage import blobs as blobs_module
from services.records.storage import transport
from services.records.storage.blobs import Blobs
from services.records.storage.circuit import FAILURES_IN_A_ROW, PAUSE_SECONDS
from services.records.storage.file_store import FileStore
from services.records.storage.folders import Folder
from shared.errors import FailedPrecondition, NeuropilError, ResourceExhausted, Unavailable
from tests.emulators.failing import BAD, CONTENT, Store

SECONDS = 20
"""Long enough for anything that does not wait for what hangs."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 8 * 2**20)
    made = Store()
    yield made
    made.close()


FOLDER = Folder.trusted("az://fails/box/mlp")


def test_a_good_answer_and_its_host(store: Store) -> None:
    files = FileStore(store.settings())
    assert files.read(FOLDER, "good") == CONTENT
    assert files.read(Folder.trusted("gs://box/mlp"), "good") == CONTENT
    assert store.hosts == {"fails.blob.core.windows.net", "storage.googleapis.com"}
    assert store.seen["good"] == 2, "a size that nobody needs was asked for"


@pytest.mark.parametrize("scheme", ["az://fails/box", "gs://box"])
@pytest.mark.parametrize("behaviour", [*BAD, "hangs"])
def test_a_bad_answer_is_unavailable(store: Store, scheme: str, behaviour: str) -> None:
    options = store.settings(read_timeout_seconds=0.2, timeout_seconds=1.0, retries=1)
    files = FileStore(options, max_bytes=2**20)
    with pytest.raises(Unavailable) as caught:
        files.read(Folder.trusted(f"{scheme}/mlp"), behaviour)
    assert caught.value.reason == "STORAGE_UNAVAILABLE"
    assert caught.value.metadata == {"file": f"{scheme}/mlp/{behaviour}"}
    assert_tells_nothing(caught.value)


@pytest.mark.parametrize("scheme", ["az://fails/box", "gs://box"])
def test_a_blob_that_is_too_large_is_not_read(store: Store, scheme: str) -> None:
    files = FileStore(store.settings(read_timeout_seconds=60))
    with pytest.raises(ResourceExhausted) as caught:
        files.read(Folder.trusted(f"{scheme}/mlp"), "says-it-is-large")
    assert caught.value.metadata["bytes"] == str(10**12)


def test_a_bad_answer_is_asked_for_again(store: Store) -> None:
    files = FileStore(store.settings(retries=2))
    for behaviour in ("truncated", "too-short-a-range", "babbling"):
        with pytest.raises(Unavailable):
            files.read(FOLDER, behaviour)
        assert store.seen[behaviour] == 3
        assert files.read(FOLDER, "good") == CONTENT
    with pytest.raises(Unavailable):
        files.read(FOLDER, "teapot")
    assert store.seen["teapot"] == 1, "what a store refuses is not asked for again"


@pytest.mark.parametrize("drops", [1, 2])
def test_the_very_first_request_is_sent_again_too(store: Store, drops: int) -> None:
    store.drops = drops
    assert FileStore(store.settings(retries=2)).read(FOLDER, "good") == CONTENT


def test_blobs_that_are_asked_for_too_often_do_not_stop_the_others(store: Store) -> None:
    files = FileStore(store.settings(retries=0))
    for path in ("gs://box/mlp", "az://throttled/box/mlp"):
        folder = Folder.trusted(path)
        assert files.read(folder, "good") == CONTENT
        store.throttled = True
        for _ in range(2 * FAILURES_IN_A_ROW):
            with pytest.raises(Unavailable) as caught:
                files.read(folder, "good")
            assert_tells_nothing(caught.value)
        store.throttled = False
        assert files.read(folder, "good") == CONTENT


def test_a_container_without_access_is_not_asked_each_time(store: Store) -> None:
    """blobfile asks under a lock, which the readers of all accounts need."""
    files = FileStore(store.settings(retries=0))
    store.denied = {"private"}
    private = Folder.trusted("az://denied/private/mlp")
    for _ in range(20):
        with pytest.raises(FailedPrecondition) as caught:
            files.read(private, "good")
        assert_tells_nothing(caught.value)
    assert store.seen["private"] <= 6
    assert files.read(Folder.trusted("az://denied/public/mlp"), "good") == CONTENT
    store.denied = set()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with suppress(FailedPrecondition):
            assert files.read(private, "good") == CONTENT
            return
        time.sleep(0.1)
    raise AssertionError("it never answered again")


def test_what_is_packed_is_bounded_as_it_is_unpacked(store: Store) -> None:
    files = FileStore(store.settings(retries=0), max_bytes=16 * 2**20)
    tracemalloc.start()
    with pytest.raises(Unavailable):
        files.read(FOLDER, "bomb")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20


@pytest.fixture
def encrypted(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store behind https://, with a certificate that the system trusts."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    options += ["-addext", "subjectAltName=IP:127.0.0.1"]
    made_of = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *options, *made_of], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    made = Store(context)
    yield made
    made.close()


async def test_who_gives_up_frees_the_thread_of_an_encrypted_store(encrypted: Store) -> None:
    blobs = Blobs(encrypted.settings(requests_per_store=2))
    assert await blobs.read(FOLDER, "good") == CONTENT
    for _ in range(2):
        reads = [asyncio.create_task(blobs.read(FOLDER, "hangs")) for _ in range(4)]
        await asyncio.sleep(0.2)
        for read in reads:
            read.cancel()
        await asyncio.wait(reads)
        assert await asyncio.wait_for(blobs.read(FOLDER, "good"), SECONDS) == CONTENT
    await asyncio.wait_for(asyncio.to_thread(blobs.close), SECONDS)


def test_a_certificate_that_nobody_knows(encrypted: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(Unavailable) as caught:
        FileStore(encrypted.settings(retries=0)).read(FOLDER, "good")
    assert_tells_nothing(caught.value)
    assert encrypted.seen == {}


@pytest.mark.parametrize("path", ["az://fails/box", "gs://box"])
def test_a_listing_of_garbage(store: Store, path: str) -> None:
    files = FileStore(store.settings())
    for call in (files.files, files.folders, files.versions):
        with pytest.raises(Unavailable) as caught:
            call(Folder.trusted(path), "0")
        assert_tells_nothing(caught.value)


async def test_a_store_that_hangs_holds_up_no_other(store: Store, tmp_path: Path) -> None:
    """Not even at its first use, when blobfile asks under a lock what its credentials are for."""
    (tmp_path / "1.json").write_bytes(b"local")
    store.hanging_hosts = {"hangs1"}
    blobs = Blobs(store.settings())
    hanging = Folder.trusted("az://hangs1/box")
    reads = [asyncio.create_task(blobs.read(hanging, f"{number}")) for number in range(100)]
    for _ in range(SECONDS * 100):
        await asyncio.sleep(0.01)
        if store.seen["box"] >= 16:
            break
    others = [Folder.trusted("az://fine1/box"), Folder.trusted("gs://box/mlp")]
    for folder in others:
        assert await asyncio.wait_for(blobs.read(folder, "good"), SECONDS) == CONTENT
    local = Folder.trusted(str(tmp_path))
    assert await asyncio.wait_for(blobs.read(local, "1.json"), SECONDS) == b"local"
    assert not any(read.done() for read in reads)
    for read in reads:
        read.cancel()
    await asyncio.wait(reads)
    await asyncio.wait_for(asyncio.to_thread(blobs.close), SECONDS)


async def test_who_gives_up_frees_the_thread(store: Store) -> None:
    blobs = Blobs(store.settings(requests_per_store=2))
    assert await blobs.read(FOLDER, "good") == CONTENT
    for _ in range(3):
        reads = [asyncio.create_task(blobs.read(FOLDER, "hangs")) for _ in range(8)]
        await asyncio.sleep(0.2)
        for read in reads:
            read.cancel()
        await asyncio.wait(reads)
        assert await asyncio.wait_for(blobs.read(FOLDER, "good"), SECONDS) == CONTENT
    blobs.close()


async def test_an_operation_ends_with_its_time(store: Store) -> None:
    blobs = Blobs(store.settings(timeout_seconds=0.5, retries=10))
    for name in ("hangs", "dripping"):
        with pytest.raises(Unavailable, match="took too long"):
            await asyncio.wait_for(blobs.read(FOLDER, name), SECONDS)
    await asyncio.wait_for(asyncio.to_thread(blobs.close), SECONDS)


async def test_one_caller_alone_does_not_wait_for_a_store_that_hangs(store: Store) -> None:
    """Each of its calls is a trial, which must not take the time of a usual read."""
    store.hanging_hosts = {"fails"}
    blobs = Blobs(store.settings(connect_timeout_seconds=0.1))
    circuit = blobs.store.transport.circuit("fails.blob.core.windows.net")
    for _ in range(FAILURES_IN_A_ROW):
        circuit.failed()
    await asyncio.sleep(PAUSE_SECONDS)
    assert circuit.admits()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(blobs.read(FOLDER, "hangs"), SECONDS)
    assert store.seen.total() == 1
    blobs.close()


async def test_the_time_counts_in_the_queue(store: Store) -> None:
    blobs = Blobs(store.settings(timeout_seconds=1.0, requests_per_store=1))
    outcomes = await asyncio.wait_for(
        asyncio.gather(*(blobs.read(FOLDER, "hangs") for _ in range(9)), return_exceptions=True),
        SECONDS,
    )
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    blobs.close()


async def test_a_store_that_fails_is_left_alone_and_found_again(store: Store) -> None:
    blobs = Blobs(store.settings(retries=0))
    assert await blobs.read(FOLDER, "good") == CONTENT
    store.broken = True
    for _ in range(FAILURES_IN_A_ROW):
        with pytest.raises(Unavailable):
            await blobs.read(FOLDER, "asked")
    for _ in range(50):
        with pytest.raises(Unavailable) as caught:
            await blobs.read(FOLDER, "asked")
        assert_tells_nothing(caught.value)
    assert store.seen["asked"] < FAILURES_IN_A_ROW + 10
    store.broken = False
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                assert await blobs.read(FOLDER, "good") == CONTENT
                break
            except Unavailable:
                await asyncio.sleep(0.05)
    assert await blobs.read(FOLDER, "good") == CONTENT
    blobs.close()


async def test_the_folders_of_a_store_are_remembered_while_it_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = Blobs(store.settings(retries=0))
    folder = Folder.trusted("gs://listed/mlp")
    store.folders = ["0", "1"]
    assert sorted(await blobs.folders(folder)) == ["0", "1"]
    store.folders = None
    assert sorted(await blobs.folders(folder)) == ["0", "1"]
    assert store.seen["o"] == 1
    monkeypatch.setattr(blobs_module, "LISTING_SECONDS", 0.0)
    assert sorted(await blobs.folders(folder)) == ["0", "1"]
    assert store.seen["o"] == 2
    with pytest.raises(Unavailable):
        await blobs.folders(Folder.trusted("gs://listed/other"))
    store.folders = ["2"]
    assert await blobs.folders(folder) == ["2"]
    blobs.close()


def assert_tells_nothing(error: NeuropilError) -> None:
    said = f"{error.message} {error.metadata}".lower()
    for secret in ("http", "127.0.0.1", "secret", "signature", "sharedkey", "x-ms-"):
        assert secret not in said, said
