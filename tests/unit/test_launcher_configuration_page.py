"""`docs/configuration.md` says what `shared/settings` does: every key, default, error."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from shared.errors import ConfigurationError
from shared.settings import ENV_PREFIX, Deployment, load_deployment

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a key's type holds, also within unions, lists and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_of(part)]


def is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple


def is_optional(annotation: Any) -> bool:
    union = typing.get_origin(annotation) in (Union, types.UnionType)
    return union and type(None) in typing.get_args(annotation)


def keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """Every key with its default as the page writes it."""
    for name, field in model.model_fields.items():
        key = f"{path}{name}"
        sections = models_of(field.annotation)
        if not sections or is_list(field.annotation) or is_optional(field.annotation):
            yield key, default_of(field.default)
        inner = f"{key}[]." if is_list(field.annotation) else f"{key}."
        for section in sections:
            yield from keys(section, inner)


def default_of(value: Any) -> str:
    if value is PydanticUndefined:
        return "needed"
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`{json.dumps([json.loads(each.model_dump_json()) for each in value])}`"
    # As YAML writes it.
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def test_every_key_is_on_the_page_once_with_its_default() -> None:
    expected = dict(keys(Deployment))
    listed = [row[0].strip("`") for row in rows("Keys")]
    assert sorted(listed) == sorted(expected)
    assert {row[0].strip("`"): row[2] for row in rows("Keys")} == expected


def test_every_variable_is_the_one_that_is_read() -> None:
    for row in rows("Keys"):
        key = row[0].strip("`")
        if "[]" in key:
            assert row[3] == "", "an entry of a list has no variable of its own"
        else:
            assert row[3] == f"`{ENV_PREFIX}{key.upper().replace('.', '__')}`"


def test_every_key_has_a_type_and_a_meaning() -> None:
    for row in rows("Keys"):
        assert len(row) == 5, row
        assert row[1]
        assert row[4].endswith(".")


def test_the_example_is_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "autoencoder_resid_delta_mlp.safetensors").touch()
    path = tmp_path / "deployment.yaml"
    path.write_text(example)
    deployment = load_deployment(path)
    assert deployment.model is not None
    assert deployment.datasets[0].neuron_dataset_path == str(tmp_path / "records" / "mlp")
    # Every section but those that this release refuses is in the example.
    assert set(yaml.safe_load(example)) == set(Deployment.model_fields) - {"auth", "tls"}


@pytest.mark.parametrize("row", rows("Errors"), ids=lambda row: row[0])
def test_every_error_is_what_is_said(tmp_path: Path, row: list[str]) -> None:
    path = tmp_path / "deployment.yaml"
    path.write_text(row[0].strip("`"))
    with pytest.raises(ConfigurationError) as caught:
        load_deployment(path)
    assert row[1].strip("`") in str(caught.value)


def test_the_variables_of_the_example_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exports = re.findall(r"^export (\w+)=(.*)$", PAGE, re.MULTILINE)
    assert len(exports) == 2
    for name, value in exports:
        monkeypatch.setenv(name, value.strip("'"))
    path = tmp_path / "deployment.yaml"
    path.write_text('cache: {url: "redis://elsewhere:1/0"}\nsimulators: []')
    deployment = load_deployment(path)
    assert deployment.cache.url == "redis://cache:6379/0"
    assert [each.name for each in deployment.simulators] == ["embedding"]
