"""Prefixes that a deployment allows: what they say, and which are refused at start."""

from __future__ import annotations

from typing import Any

import pytest

from services.records.datasets import DatasetRegistry
from shared.errors import ConfigurationError
from shared.settings import Dataset

MLP = "mlp_post_act"


@pytest.mark.parametrize(
    "prefix",
    [
        *("gs://", "az://", "s3://bucket", "https://example.org/box", "az://acct/../other"),
        *("gs://b?x", "az://acct", "https://acct.blob.core.windows.net/", "ftp://host/box"),
        *("https://acct.blob.core.windows.net/box/set?sv=1&sig=SECRET", "gs://SECRET@bucket/set"),
        *("https://user:SECRET@acct.blob.core.windows.net/box", "az://acct:80/box", "gs://b/\n"),
    ],
)
def test_a_prefix_that_says_nothing_is_refused_at_start(prefix: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        DatasetRegistry([], ["/data", prefix])
    assert caught.value.key == "allowed_path_prefixes[1]"
    assert "SECRET" not in str(caught.value)
    kinds = ("neuron_dataset_path", "explanation_dataset_paths", "cached_explanations_path")
    for kind in kinds:
        paths: dict[str, Any] = {"neuron_dataset_path": "/data"}
        paths[kind] = (prefix,) if kind == "explanation_dataset_paths" else prefix
        dataset = Dataset(
            short_name="set", derived_scalar_type=MLP, user_visible_name="Set", **paths
        )
        with pytest.raises(ConfigurationError) as caught:
            DatasetRegistry([dataset])
        assert caught.value.key.startswith(f"datasets[0].{kind}")
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("configured", "opened"),
    [
        ("https://ACCT.blob.core.windows.net/box/set/", "az://acct/box/set"),
        ("AZ://acct/box/set", "az://acct/box/set"),
        ("GS://bucket/set//", "gs://bucket/set"),
        ("az://acct/box/a?b#c@d:e", "az://acct/box/a?b#c@d:e"),
    ],
)
def test_a_configured_url_is_opened_as_it_is_compared(configured: str, opened: str) -> None:
    dataset = Dataset(
        short_name="set",
        derived_scalar_type=MLP,
        user_visible_name="Set",
        neuron_dataset_path=configured,
        explanation_dataset_paths=(configured,),
    )
    registry = DatasetRegistry([dataset])
    for folder in (
        registry.record_folder("set", MLP, "dataset"),
        registry.explanation_folder(configured),
    ):
        assert (folder.path, folder.name) == (opened, configured)
