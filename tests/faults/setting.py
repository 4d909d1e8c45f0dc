"""Puts the parts of a scenario together: Redis, blob store, proxy, replicas, clients."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import yaml

from tests.emulators.azurite import ACCOUNT, Azurite, install
from tests.faults.measuring import Report, run
from tests.faults.mix import EXPLAINED, NEURONS, NUM_HEADS
from tests.faults.processes import REPOSITORY, Proxy, Redis, Replica
from tests.faults.scenarios import BLOB, LOCAL, Scenario, World
from tests.faults.writing import WRITTEN

DEMO = REPOSITORY / "data" / "demo"
BLOB_ROOT = f"az://{ACCOUNT}/demo"


async def run_scenario(scenario: Scenario, folder: Path, *, seconds: float, clients: int) -> Report:
    """Start all parts in `folder`, run the scenario, end all parts."""
    async with _world(scenario, folder) as (world, roots):
        return await run(
            scenario, world, roots=roots, seconds=seconds, clients=clients, folder=folder
        )


@contextlib.asynccontextmanager
async def _world(scenario: Scenario, folder: Path) -> AsyncIterator[tuple[World, dict[str, str]]]:
    roots = {LOCAL: str(folder / "demo")}
    await asyncio.to_thread(_copy, folder / "demo")
    async with contextlib.AsyncExitStack() as stack:
        environment: dict[str, str] = {}
        world = World(Redis(folder / "redis"), [])
        if BLOB in scenario.sources:
            environment = await _add_store(world, stack, folder)
            roots[BLOB] = BLOB_ROOT
        deployment = folder / "deployment.yaml"
        deployment.write_text(yaml.safe_dump(_deployment(scenario, roots)))
        stack.callback(world.redis.kill)
        await asyncio.to_thread(world.redis.start)
        redis_port = world.redis.port
        if scenario.redis_behind_proxy:
            world.redis_proxy = Proxy(redis_port)
            await world.redis_proxy.start()
            stack.push_async_callback(world.redis_proxy.stop)
            redis_port = world.redis_proxy.port
        environment["NEUROPIL_CACHE__URL"] = f"redis://127.0.0.1:{redis_port}/0"
        for number in range(scenario.num_replicas):
            replica = Replica(deployment, folder / f"replica-{number}.log", environment)
            stack.callback(replica.stop)
            world.replicas.append(replica)
            await asyncio.to_thread(replica.start)
        yield world, roots


async def _add_store(
    world: World, stack: contextlib.AsyncExitStack, folder: Path
) -> dict[str, str]:
    """Start Azurite with the mix's files behind a proxy; gives the replicas' environment."""
    store = await asyncio.to_thread(new_store, folder / "azurite")
    stack.callback(store.kill)
    await asyncio.to_thread(store.start)
    await asyncio.to_thread(upload, store)
    world.store = store
    world.proxy = Proxy(store.port)
    await world.proxy.start()
    stack.push_async_callback(world.proxy.stop)
    endpoint = f"http://127.0.0.1:{world.proxy.port}"
    return {**store.environment, "NEUROPIL_STORAGE__AZURE_ENDPOINT": endpoint}


def new_store(folder: Path) -> Azurite:
    """An Azurite that is to be started; installs its program where it isn't yet."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is needed to install Azurite")
    return Azurite(install(npm), folder)


FILES = (
    *(f"records/mlp/0/{index}.json" for index in range(NEURONS)),
    *(f"records/attn/0/{index}.json" for index in range(NUM_HEADS)),
    *(f"explanations/0/{index}.jsonl" for index in EXPLAINED),
)
"""What both datasets hold."""


def _copy(folder: Path) -> None:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(DEMO / name, folder / name)
    (folder / WRITTEN).mkdir()


def upload(store: Azurite) -> None:
    """Store the files of the mix under BLOB_ROOT, so that a kill loses none."""
    store.create_container(ACCOUNT, "demo")
    for name in FILES:
        store.put(f"{BLOB_ROOT}/{name}", (DEMO / name).read_bytes())
    # It writes down what it was given some seconds later.
    store.flush()


def _deployment(scenario: Scenario, roots: dict[str, str]) -> dict[str, object]:
    return {
        "datasets": [
            {
                "short_name": source,
                "derived_scalar_type": scalar_type,
                "user_visible_name": source,
                "neuron_dataset_path": f"{root}/records/{kind}",
                "explanation_dataset_paths": [f"{root}/explanations", f"{root}/{WRITTEN}"],
            }
            for source, root in roots.items()
            for kind, scalar_type in (("mlp", "mlp_post_act"), ("attn", "attn_write_norm"))
        ],
        # Small, so that most reads reach Redis, and a part of them the store.
        "cache": {"memory_megabytes": 1, "ttl_seconds": scenario.ttl_seconds},
    }
