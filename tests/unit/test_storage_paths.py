"""Whatever a request names, nothing outside of what is configured is opened or asked for."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.records.datasets import DatasetRegistry
from services.records.storage import local
from services.records.storage.file_store import FileStore
from services.records.storage.folders import Folder
from shared.errors import DataLoss, InvalidArgument, NeuropilError
from shared.settings import Dataset

MLP = "mlp_post_act"
REMOTE = ("gs://bucket/public", "az://acct/box/public", "gs://open")
FILE = "0/1.json"

_WATCHED = ("open", "os.scandir", "os.listdir", "os.mkdir", "os.rename", "os.remove", "os.symlink")
_touched: list[str] | None = None


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if _touched is None or event not in _WATCHED or not isinstance(arguments[0], str | os.PathLike):
        return
    if event == "open" and arguments[2] & os.O_PATH:
        # That looks where a file is, as `os.lstat` does, and opens nothing.
        return
    path = os.path.abspath(arguments[0])
    if path.startswith(f"{local.HANDLES}/"):
        path = os.readlink(path)
    _touched.append(path)


sys.addaudithook(_notice)


@contextmanager
def noticing() -> Iterator[list[str]]:
    """Every path that the process opens, lists, makes, moves or removes meanwhile."""
    global _touched
    _touched = []
    try:
        yield _touched
    finally:
        _touched = None


class World:
    """A root that may be read, with links and odd files in it, beside what may not."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "public"
        self.configured = folder / "configured"
        self.secret = folder / "secret"
        for path in (self.root, self.configured, self.secret, folder / "public-not"):
            (path / "0").mkdir(parents=True)
            (path / FILE).write_text("content")
            (path / "0" / "1.jsonl").write_text("content")
        (self.root / "in").symlink_to("0")
        (self.root / "out").symlink_to(self.secret)
        (self.root / "out0").symlink_to("../secret")
        (self.root / "etc").symlink_to("/etc")
        (self.root / "up").symlink_to("..")
        (self.root / "circle").symlink_to("circle")
        (self.root / "dev").mkdir()
        (self.root / "dev" / "0").symlink_to("/dev")
        os.mkfifo(self.root / "0" / "2.json")
        dataset = Dataset(
            short_name="set",
            derived_scalar_type=MLP,
            user_visible_name="Set",
            neuron_dataset_path=str(self.configured),
            explanation_dataset_paths=(str(self.configured),),
            cached_explanations_path=str(self.configured),
        )
        self.registry = DatasetRegistry([dataset], [str(self.root), *REMOTE])
        self.store = FileStore()
        self.asked: list[str] = []

        def request(method: str, url: str, **options: Any) -> Any:
            self.asked += asked_for(url, options.get("body"))
            return urllib3.HTTPResponse(b"nothing", status=404)

        self.store.transport.request = request  # type: ignore[method-assign]

    def use(self, name: str) -> list[str]:
        """Do with a name all that requests do; the paths that were touched."""
        found: list[Folder] = []
        resolving: list[Callable[[], Folder]] = [
            lambda: self.registry.record_folder(name, MLP, "dataset"),
            lambda: self.registry.explanation_folder(name),
        ]
        with noticing() as touched:
            for resolve in resolving:
                with suppress(NeuropilError):
                    found.append(resolve())
            for folder in found:
                self._use(folder)
            return list(touched)

    def assert_within(self, touched: list[str]) -> None:
        for path in touched:
            real = os.path.realpath(path)
            roots = (str(self.root), str(self.configured))
            assert any(real == root or real.startswith(f"{root}/") for root in roots), path
        for place in self.asked:
            assert any(
                # The container by itself is asked for the right to use it.
                place == root or place.startswith(f"{root}/") or place == "az://acct/box"
                for root in REMOTE
            ), place
        self.asked.clear()

    def _use(self, folder: Folder) -> None:
        actions: list[Callable[[], object]] = [
            lambda: self.store.read(folder, FILE),
            lambda: self.store.indices(folder, "0", ".json"),
            lambda: self.store.folders(folder),
            lambda: self.store.versions(folder, "0"),
            lambda: self.store.update(folder, "0/7.jsonl", lambda _: b"written", seconds=1.0),
        ]
        for act in actions:
            with suppress(NeuropilError):
                act()


def asked_for(url: str, body: bytes | None) -> list[str]:
    """The blobs and beginnings of names that a request to a store is for."""
    parts = urlsplit(url)
    assert parts.scheme == "https", url
    assert parts.netloc == parts.hostname, url
    query = {name: value for name, (value,) in parse_qs(parts.query).items()}
    if parts.hostname == "storage.googleapis.com":
        found = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+))?)?", parts.path)
        assert found, url
        name = unquote(found[2] or "") or query.get("prefix", "")
        if parts.path.startswith("/upload"):
            assert body is not None
            name = msgspec.json.decode(body.splitlines()[4])["name"]
        return [f"gs://{unquote(found[1])}/{name}".rstrip("/")]
    account, _, domain = (parts.hostname or "").partition(".")
    assert domain == "blob.core.windows.net", url
    container, _, name = parts.path.lstrip("/").partition("/")
    assert "/" not in name, url
    name = unquote(name) or query.get("prefix", "")
    return [f"az://{account}/{unquote(container)}/{name}".rstrip("/")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("paths"))
    variables = pytest.MonkeyPatch()
    variables.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    variables.setenv("AZURE_STORAGE_KEY", "a2V5")
    variables.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    # What is imported when it is first needed is opened now.
    for name in (str(made.root), *REMOTE):
        made.use(name)
    made.asked.clear()
    yield made
    variables.undo()


@pytest.fixture
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links are followed one by one, as where a handle does not tell where it is."""
    monkeypatch.setattr(local, "_FIND", None)


PIECES = st.sampled_from(
    [
        *(
            "..",
            ".",
            "",
            "/",
            "//",
            "\\",
            "~",
            "0",
            "in",
            "out",
            "out0",
            "etc",
            "up",
            "dev",
            "circle",
        ),
        *(
            "%2e%2e",
            "%2f",
            "%5c",
            "%00",
            "%252e%252e",
            "\0",
            "\n",
            "‥",
            "／",
            "．．",
            "é",
            "e\u0301",
        ),
        *("secret", "public", "public-not", "passwd", "configured", "?x=1", "#x", "@", ":", ":80"),
        *("*", "[0]", "a b", "+", ";", "\ud800", "\U0001f600", "x" * 300),
    ]
)


def starts(world: World) -> list[str]:
    root = str(world.root)
    https = "https://acct.blob.core.windows.net/box/public"
    return [
        *(root, root + "/", str(world.configured), str(world.secret), "/", "", "set", "/etc"),
        *(root + "/../secret", root + "-not", root.upper(), "file://" + root, "/dev", "/proc/self"),
        *REMOTE,
        *("gs://bucket", "gs://BUCKET/public", "GS://bucket/public", "gs://bucket/publicity"),
        *(
            "az://acct/box",
            "az://acct/other/public",
            "AZ://acct/box/public",
            "az://ACCT/box/public",
        ),
        *(https, https.upper(), https.replace("https", "http"), https.replace("box", "other")),
        *("https://acct.blob.core.windows.net.evil.example/box/public", "https://evil.example"),
        *("https://user:key@acct.blob.core.windows.net/box/public", "az://user@acct/box/public"),
        *("https://acct.blob.core.windows.net:8443/box/public", "gs://bucket:80/public"),
        *("s3://bucket/public", "ftp://bucket/public", "gs:///bucket/public", "az:acct/box/public"),
    ]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_name_leads_outside(world: World, data: st.DataObject) -> None:
    start = data.draw(st.sampled_from(starts(world)))
    separator = data.draw(st.sampled_from(["/", "", "//"]))
    name = separator.join([start, *data.draw(st.lists(PIECES, max_size=5))])
    world.assert_within(world.use(name))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.text(max_size=60))
def test_no_text_leads_outside(world: World, name: str) -> None:
    world.assert_within(world.use(name))


def test_the_watch_sees_what_is_opened(world: World) -> None:
    """Else the tests above would show nothing."""
    touched = world.use(str(world.root))
    assert str(world.root / FILE) in touched
    assert any(path.endswith("7.jsonl") or ".7.jsonl" in path for path in touched)
    world.use("gs://bucket/public")
    with pytest.raises(AssertionError):
        world.assert_within([str(world.secret)])
    assert {place.split(":")[0] for place in world.asked} == {"gs"}
    assert f"gs://bucket/public/{FILE}" in world.asked
    assert "gs://bucket/public/0/7.jsonl" in world.asked
    world.use("az://acct/box/public")
    assert f"az://acct/box/public/{FILE}" in world.asked
    world.assert_within([])
    for place in ("az://acct/other/public", "gs://bucket/publicity", "gs://bucket/secret"):
        world.asked = [place]
        with pytest.raises(AssertionError):
            world.assert_within([])
    world.asked = []


@pytest.mark.parametrize("name", ["out", "out0", "etc", "up", "dev", "out/0", "in/../../secret"])
def test_links_out_of_the_root_are_refused(world: World, name: str) -> None:
    _assert_refused(world, name)


def test_links_out_of_the_root_are_refused_step_by_step(world: World, step_by_step: None) -> None:
    for name in ("out", "out0", "etc", "up", "dev", "in/../../secret"):
        _assert_refused(world, name)
    folder = Folder(str(world.root / "in"), "named", str(world.root))
    assert world.store.read(Folder.trusted(str(world.root)), FILE) == b"content"
    with pytest.raises(DataLoss, match="is no file"):
        world.store.read(folder, "2.json")
    with pytest.raises(DataLoss, match="circle"):
        world.store.read(folder, "../circle")


def _assert_refused(world: World, name: str) -> None:
    folder = Folder(str(world.root / name), "named", str(world.root))
    with noticing() as touched, pytest.raises(InvalidArgument) as caught:
        world.store.read(folder, FILE)
    assert caught.value.reason == "PATH_NOT_ALLOWED"
    assert "secret" not in caught.value.message
    assert touched == []


def test_a_link_that_is_swapped_in_once_a_file_is_found_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    (world.secret / FILE).write_text("secret")
    layer = world.root / "0"
    really = os.readlink

    def looked_up(path: str) -> str:
        found = really(path)
        layer.rename(layer.with_name("away"))
        layer.symlink_to(world.secret / "0")
        return found

    monkeypatch.setattr(os, "readlink", looked_up)
    assert local.read(Folder.trusted(str(world.root)), FILE, 100) == b"content"
    monkeypatch.undo()
    with noticing() as touched, pytest.raises(InvalidArgument):
        local.read(Folder.trusted(str(world.root)), FILE, 100)
    assert touched == []


def test_a_link_that_is_swapped_in_after_the_check_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_by_step: None
) -> None:
    world = World(tmp_path)
    really = local.real_path

    def resolved(folder: Folder, relative: str) -> str:
        path = really(folder, relative)
        layer = Path(path).parent
        if not layer.is_symlink():
            layer.rename(layer.with_name("away"))
            layer.symlink_to(world.secret / "0")
        return path

    folder = Folder.trusted(str(world.root))
    assert world.store.read(folder, FILE) == b"content"
    monkeypatch.setattr(local, "real_path", resolved)
    before = sorted(path.name for path in (world.secret / "0").iterdir())
    calls: list[Callable[[], object]] = [
        lambda: world.store.read(folder, FILE),
        lambda: world.store.update(folder, "0/1.jsonl", lambda _: b"written", seconds=1.0),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert caught.value.reason == "PATH_NOT_ALLOWED"
        (world.root / "0").unlink()
        (world.root / "away").rename(world.root / "0")
    assert (world.secret / "0" / "1.jsonl").read_text() == "content"
    assert set(os.listdir(world.secret / "0")) <= {*before, local.LOCK_FILE}


def test_a_dataset_that_is_a_link_may_be_led_elsewhere_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_by_step: None
) -> None:
    current = tmp_path / "current"
    for name in ("old", "new"):
        (tmp_path / name / "0").mkdir(parents=True)
        (tmp_path / name / FILE).write_text(name)
    current.symlink_to("old")
    really = local.real_path

    def resolved(folder: Folder, relative: str) -> str:
        path = really(folder, relative)
        (tmp_path / "next").symlink_to("new")
        (tmp_path / "next").rename(current)
        return path

    monkeypatch.setattr(local, "real_path", resolved)
    store = FileStore()
    assert store.read(Folder.trusted(str(current)), FILE) == b"old"
    assert store.read(Folder.trusted(str(current)), FILE) == b"new"


def test_what_is_no_file_is_not_even_opened(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.trusted(str(world.root))
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(world.root / "0")
        bound.bind("3.json")
    (world.root / "0" / "4.json").mkdir(exist_ok=True)
    for relative in ("0/2.json", "0/3.json", "0/4.json"):
        with noticing() as touched, pytest.raises(DataLoss, match="is no file"):
            world.store.read(folder, relative)
        assert touched == []
    device = Folder.trusted("/dev")
    with noticing() as touched, pytest.raises(DataLoss, match="is no file"):
        world.store.read(device, "zero")
    assert touched == []
