"""The deployment's configuration: what is read, and what is refused with which key."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.settings import Deployment, load_deployment

DATASET = """
datasets:
  - short_name: demo
    derived_scalar_type: mlp_post_act
    user_visible_name: Demo
    neuron_dataset_path: records
    explanation_dataset_paths: [explanations, "gs://bucket/explanations"]
"""


def load(tmp_path: Path, text: str) -> Deployment:
    path = tmp_path / "deployment.yaml"
    path.write_text(text, encoding="utf-8")
    return load_deployment(path)


def refusal(tmp_path: Path, text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    return caught.value


def test_an_empty_file_is_a_deployment_of_defaults(tmp_path: Path) -> None:
    deployment = load(tmp_path, "")
    assert deployment.model is None
    assert deployment.chosen_simulator == "embedding"
    assert deployment.calibration == "linear"
    assert deployment.limits.default_deadline_seconds == 60


def test_json_is_yaml(tmp_path: Path) -> None:
    assert load(tmp_path, '{"limits": {"queue": 7}}').limits.queue == 7


def test_relative_paths_are_relative_to_the_files_folder(tmp_path: Path) -> None:
    dataset = load(tmp_path, DATASET).datasets[0]
    assert dataset.neuron_dataset_path == str(tmp_path / "records")
    assert dataset.explanation_dataset_paths == (
        str(tmp_path / "explanations"),
        "gs://bucket/explanations",
    )


def test_the_environment_wins_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROPIL_LIMITS__QUEUE", "3")
    monkeypatch.setenv("NEUROPIL_SIMULATORS", '[{"name": "other", "kind": "embedding"}]')
    deployment = load(tmp_path, "limits: {queue: 9, message_megabytes: 2}")
    assert (deployment.limits.queue, deployment.limits.message_megabytes) == (3, 2)
    assert deployment.chosen_simulator == "other"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("dataset: []", "dataset"),
        ("limits: {quue: 1}", "limits.quue"),
        ("limits: {queue: many}", "limits.queue"),
        ("limits: {queue: true}", "limits.queue"),
        ("limits: {queue: 0}", "limits.queue"),
        ("limits: {default_deadline_seconds: .nan}", "limits.default_deadline_seconds"),
        ("limits: {default_deadline_seconds: .inf}", "limits.default_deadline_seconds"),
        ("metrics: {port: 70000}", "metrics.port"),
        ("services: {records: nowhere}", "services.records"),
        ("cache: {url: 'http://x'}", "cache.url"),
        ("cache: 3", "cache"),
        ("datasets: [{short_name: a}]", "datasets[0].derived_scalar_type"),
        ("datasets: 3", "datasets"),
        ("model: {name: x}", "model.path"),
        ("model: {name: x, path: missing}", "model.path"),
        ("model: {name: x, path: ., device: tpu}", "model.device"),
        ("model: {name: x, path: ., excluded_tokens: no.json}", "model.excluded_tokens"),
        (
            "model: {name: x, path: ., autoencoders: [{name: a, path: no.safetensors}]}",
            "model.autoencoders[0].path",
        ),
        ("simulators: [{name: a, kind: embedding, url: b}]", "simulators[0].url"),
        ("simulators: [{name: a, kind: oracle}]", "simulators[0]"),
        ("calibration: cubic", "calibration"),
        ("simulation_state: ''", "simulation_state"),
        ("simulation_state: https://a.blob.core.windows.net/box?sig=x", "simulation_state"),
        ("simulation_state: gs://box/state#part", "simulation_state"),
    ],
)
def test_what_is_wrong_is_refused_with_its_key(tmp_path: Path, text: str, key: str) -> None:
    error = refusal(tmp_path, text)
    assert error.key == key
    assert "instance of" not in error.message
    assert "tuple" not in error.message
    assert str(error).startswith(key)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b", "mapping"),
        ("a: ]", "not YAML"),
        (DATASET + DATASET.replace("datasets:\n", ""), "is there twice"),
        ("simulators: []", "empty list"),
        ("default_simulator: nobody", "none of simulators"),
        (
            "simulators: [{name: a, kind: embedding}, {name: a, kind: embedding}]",
            "is there twice",
        ),
        ("auth: {tokens_file: tokens}", "aren't served by this release"),
        ("1: 2", "unknown key"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, text: str, part: str) -> None:
    assert part in str(refusal(tmp_path, text))


def test_a_missing_file_and_one_that_is_not_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't read"):
        load_deployment(tmp_path / "none.yaml")
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="can't read"):
        load_deployment(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEUROPIL_LIMTS__QUEUE", "1"),
        ("NEUROPIL_LIMITS__QUUE", "1"),
        ("NEUROPIL_SIMULATORS", "[{"),
        ("NEUROPIL_LIMITS__QUEUE", "many"),
    ],
)
def test_a_wrong_environment_variable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    refusal(tmp_path, "")


def test_variables_that_a_cluster_sets_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROPIL_RECORDS_SERVICE_HOST", "10.0.0.1")
    assert load(tmp_path, "").model is None
