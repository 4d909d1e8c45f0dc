"""Simulators that name the same language model share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.simulation.language_models.pool import LanguageModelPool
from services.simulation.simulators.registry import SimulatorRegistry
from shared.errors import ConfigurationError
from shared.settings import (
    CausalLmSimulator,
    ChatSimulator,
    CompletionsSimulator,
    Deployment,
    Simulator,
)

MODEL = str(Path(__file__).resolve().parents[2] / "data" / "demo" / "model")


def local(name: str, **fields: Any) -> CausalLmSimulator:
    return CausalLmSimulator(name=name, kind="causal_lm", **{"path": MODEL, **fields})


def completions(name: str, **fields: Any) -> CompletionsSimulator:
    given = {"base_url": "http://127.0.0.1:1/v1", "model": "m", **fields}
    return CompletionsSimulator(name=name, kind="completions", **given)


def test_a_folder_on_a_device_is_one_model() -> None:
    settings = (
        local("small", cache_megabytes=16, batch_tokens=512),
        local("large", cache_megabytes=64, batch_tokens=256, method="one_at_a_time"),
        local("half", dtype="bfloat16"),
    )
    pool = LanguageModelPool(settings)
    small, large, half = (pool.local(each) for each in settings)
    assert small is large
    assert half is not small
    # As much as the greediest of those that share it asks for.
    assert small._cache_bytes == 64 * 1024 * 1024
    assert small._batch_tokens == 512


def test_a_server_with_a_model_and_a_key_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROPIL_TEST_KEY", "sk-1")
    settings: tuple[Simulator, ...] = (
        completions("first"),
        completions("second", method="one_at_a_time"),
        completions("other", model="n"),
        completions("keyed", api_key_env="NEUROPIL_TEST_KEY"),
    )
    pool = LanguageModelPool(settings)
    first, second, other, keyed = (pool.remote(each, "completions") for each in settings)  # type: ignore[arg-type]
    assert first is second
    assert len({id(each) for each in (first, other, keyed)}) == 3
    assert "sk-1" not in repr(keyed.server)


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        (local("a", path="."), "simulators[0].path", "no config.json"),
        (local("a", prompt="none-1"), "simulators[0].prompt", "none-1"),
        (
            completions("a", base_url="http://user:secret@host/v1"),
            "simulators[0].base_url",
            "api_key_env",
        ),
        (
            ChatSimulator(
                name="a", kind="chat", base_url="http://host/v1", model="m", prompt="few_shot-1"
            ),
            "simulators[0].prompt",
            "few_shot-1",
        ),
    ],
)
def test_what_can_not_be_built_names_its_key(settings: Simulator, key: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        SimulatorRegistry.from_deployment(Deployment(simulators=(settings,)))
    assert caught.value.key == key
    assert "secret" not in str(caught.value)
