"""Puts the parts of a scenario together: Redis, blob store, proxy, replicas, clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import yaml

from tests.faults.measuring import Report, run
from tests.faults.processes import REPOSITORY, Redis, Replica
from tests.faults.scenarios import LOCAL, Scenario, World

DEMO = REPOSITORY / "data" / "demo"


async def run_scenario(scenario: Scenario, folder: Path, *, seconds: float, clients: int) -> Report:
    """Start all parts in `folder`, run the scenario, end all parts."""
    async with _world(scenario, folder) as (world, sources, explanations):
        return await run(
            scenario,
            world,
            sources=sources,
            explanations=explanations,
            seconds=seconds,
            clients=clients,
            folder=folder,
        )


@contextlib.asynccontextmanager
async def _world(
    scenario: Scenario, folder: Path
) -> AsyncIterator[tuple[World, list[str], list[str]]]:
    roots = {LOCAL: str(DEMO)}
    async with contextlib.AsyncExitStack() as stack:
        deployment = folder / "deployment.yaml"
        deployment.write_text(yaml.safe_dump(_deployment(scenario, roots)))
        cache = Redis(folder / "redis")
        stack.callback(cache.kill)
        await asyncio.to_thread(cache.start)
        replicas: list[Replica] = []
        for number in range(scenario.num_replicas):
            log = folder / f"replica-{number}.log"
            replica = Replica(deployment, log, {"NEUROPIL_CACHE__URL": cache.url})
            stack.callback(replica.stop)
            replicas.append(replica)
            await asyncio.to_thread(replica.start)
        world = World(cache, replicas)
        yield world, list(roots), [f"{root}/explanations" for root in roots.values()]


def _deployment(scenario: Scenario, roots: dict[str, str]) -> dict[str, object]:
    return {
        "datasets": [
            {
                "short_name": source,
                "derived_scalar_type": scalar_type,
                "user_visible_name": source,
                "neuron_dataset_path": f"{root}/records/{kind}",
                "explanation_dataset_paths": [f"{root}/explanations"],
            }
            for source, root in roots.items()
            for kind, scalar_type in (("mlp", "mlp_post_act"), ("attn", "attn_write_norm"))
        ],
        # Small, so that most reads reach Redis, and a part of them the store.
        "cache": {"memory_megabytes": 1, "ttl_seconds": scenario.ttl_seconds},
    }
