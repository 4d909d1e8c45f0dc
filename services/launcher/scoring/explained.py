"""The components and explanations that are scored: from a file, a dataset, or an explainer."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from google.protobuf import json_format
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

import neuropil
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.simulation import v1
from shared.errors import ConfigurationError

COLUMNS = ("derived_scalar_type", "layer", "component", "dataset", "explanation")
MOST_ROWS = 100_000
"""Of one run, as the contract has it."""
LOADING_SECONDS = 600.0
"""How long a model that explains is waited for."""

_PAUSE_SECONDS = 0.2
_SUFFIXES = ".yaml, .yml, .json, .jsonl or .csv"
_Proposal = tuple[str, v1.ExplanationProvenance]


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


_Index = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, lt=2**31)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    explanation: str
    layer: _Index
    component: _Index
    derived_scalar_type: str = ""
    dataset: str = ""


@dataclass(frozen=True)
class Explained:
    """A component with an explanation of it."""

    derived_scalar_type: str
    layer: int
    component: int
    dataset: str
    """Of records."""
    explanation: str
    provenance: v1.ExplanationProvenance | None = field(default=None, compare=False)
    """Of one that was proposed."""

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"{self.derived_scalar_type} {self.layer}:{self.component}"


@dataclass(frozen=True)
class Defaults:
    """What the command line says for rows that don't say it themselves."""

    derived_scalar_type: str
    dataset: str


@dataclass(frozen=True)
class Selection:
    """Components of a dataset."""

    dataset: str
    derived_scalar_type: str
    layers: tuple[int, ...]
    """None named means all."""
    limit: int
    """Most components that have explanations, or of which some are proposed; 0 means all."""


@dataclass(frozen=True)
class Proposing:
    """How explanations are proposed."""

    explainer: str
    count: int
    seed: int


Tell = Callable[[int, int], None]
"""Called with how many components were looked at, and how many there are."""


def read_file(path: Path, defaults: Defaults) -> list[Explained]:
    """The rows of a YAML, JSON, JSONL or CSV file.

    Raises:
        ConfigurationError: naming the row and the column that can't be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError("", f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError("", f"{path} is not UTF-8: {error.reason}") from error
    rows = [_explained(path, place, row, defaults) for place, row in _rows(path, text)]
    if not rows:
        raise ConfigurationError("", f"{path} has no explanations")
    if len(rows) > MOST_ROWS:
        raise ConfigurationError(
            "", f"{path} has {len(rows)} rows; a run takes {MOST_ROWS} at most: split the file"
        )
    return rows


def from_dataset(client: neuropil.Client, selection: Selection, tell: Tell) -> list[Explained]:
    """The explanations that a dataset has of its components, each text of a component once.

    Raises:
        neuropil.NeuropilError: if they can't be read.
    """
    components = list(_components(client, selection))
    found: dict[Explained, None] = {}
    explained_components = 0
    scalar = selection.derived_scalar_type
    for done, (layer, index) in enumerate(components):
        tell(done, len(components))
        listed = client.records.explanations(scalar, layer, index, dataset=selection.dataset)
        for each in listed:
            found.setdefault(Explained(scalar, layer, index, selection.dataset, each.text))
        explained_components += bool(listed)
        if explained_components == selection.limit > 0:
            break
    tell(len(components), len(components))
    return list(found)


def proposed(
    client: neuropil.Client, selection: Selection, how: Proposing, kept: Path, tell: Tell
) -> tuple[list[Explained], list[str]]:
    """Explanations that an explainer proposes, and a sentence for each component without any.

    Each component's are kept in a folder as soon as they are there: who begins again asks the
    same explainer, with the same model and prompt, for none of them twice.

    Raises:
        neuropil.NeuropilError: if the explainer or the records can't be asked.
        OSError: if they can't be kept.
    """
    components = list(_components(client, selection))
    if selection.limit:
        components = components[: selection.limit]
    scalar = selection.derived_scalar_type
    identity = [selection.dataset, scalar, *_explainer(client, how.explainer), how.count, how.seed]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = kept / f"proposed-{name}.jsonl"
    known = _kept(path)
    failures: list[str] = []
    found: list[Explained] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for done, (layer, index) in enumerate(components):
            tell(done, len(components))
            ours = known.get((layer, index))
            if ours is None:
                try:
                    proposals = client.simulation.propose(
                        scalar,
                        layer,
                        index,
                        selection.dataset,
                        explainer=how.explainer,
                        count=how.count,
                        seed=how.seed,
                    )
                except neuropil.NeuropilError as error:
                    if error.code not in {"NOT_FOUND", "DATA_LOSS", "FAILED_PRECONDITION"}:
                        raise
                    failures.append(f"{scalar} {layer}:{index}: {error.message}")
                    continue
                ours = [(each.explanation, each.provenance) for each in proposals.explanations]
                # A line that a crash cut off must not take the next one with it.
                file.write(f"\n{_line(layer, index, ours)}\n")
                file.flush()
            found += [
                Explained(scalar, layer, index, selection.dataset, text, provenance)
                for text, provenance in ours
            ]
    tell(len(components), len(components))
    return found, failures


def _explainer(client: neuropil.Client, name: str) -> tuple[str, str, str]:
    """Name, model and prompt version of an explainer; an empty name is the default one's."""
    end = time.monotonic() + LOADING_SECONDS
    while True:
        listed = client.simulation.explainers()
        found = [each for each in listed if (each.name == name if name else each.is_default)]
        if not found:
            # Asking for a proposal says what is wrong.
            return name, "", ""
        if found[0].state != "loading" or time.monotonic() > end:
            return found[0].name, found[0].model, found[0].prompt_version
        # Which weights a model has is known once it is there.
        time.sleep(_PAUSE_SECONDS)


def _line(layer: int, index: int, ours: list[_Proposal]) -> str:
    explanations = [
        {"text": text, "provenance": json_format.MessageToDict(provenance)}
        for text, provenance in ours
    ]
    row = {"layer": layer, "component": index, "explanations": explanations}
    return json.dumps(row, ensure_ascii=False)


def _kept(path: Path) -> dict[tuple[int, int], list[_Proposal]]:
    known: dict[tuple[int, int], list[_Proposal]] = {}
    if not path.exists():
        return known
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
            known[row["layer"], row["component"]] = [
                (
                    str(each["text"]),
                    json_format.ParseDict(each["provenance"], v1.ExplanationProvenance()),
                )
                for each in row["explanations"]
            ]
        except (ValueError, KeyError, TypeError, json_format.ParseError):
            # Cut off by a crash: that component is asked for again.
            continue
    return known


def _components(client: neuropil.Client, selection: Selection) -> Iterator[tuple[int, int]]:
    dataset, scalar = selection.dataset, selection.derived_scalar_type
    for layer in list(selection.layers or client.records.layers(dataset, scalar)):
        for index in client.records.components(dataset, scalar, layer):
            yield layer, index


def _rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Each row with the words for its place."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".jsonl":
            # Not `splitlines`: JSON allows other line separators inside strings.
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    yield f"line {number}", _json_line(path, number, line)
        elif suffix == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            for row in reader:
                if None in row:
                    raise ConfigurationError(
                        "", f"{path}, line {reader.line_num}: more cells than columns"
                    )
                # An empty cell of a column that may be left out is one that was left out.
                given = {column: cell for column, cell in row.items() if cell not in (None, "")}
                yield f"line {reader.line_num}", given
        elif suffix in (".yaml", ".yml", ".json"):
            content = yaml.safe_load(text) if suffix != ".json" else json.loads(text)
            if not isinstance(content, list):
                raise ConfigurationError("", f"{path} must hold a list of explanations")
            for number, row in enumerate(content, 1):
                yield f"entry {number}", row
        else:
            raise ConfigurationError("", f"{path} must end in {_SUFFIXES}")
    except (csv.Error, yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ConfigurationError("", f"{path} can't be read: {words}") from error


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        words = str(error)
        if isinstance(error, json.JSONDecodeError):
            # Its own words count lines from the one that it was given.
            words = f"{error.msg} at column {error.colno}"
        raise ConfigurationError("", f"{path}, line {number} can't be read: {words}") from error


def _explained(path: Path, place: str, row: Any, defaults: Defaults) -> Explained:
    try:
        read = _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(str(part) for part in first["loc"]) or "it"
        words = {"missing": "is missing", "extra_forbidden": "is no column"}.get(
            first["type"], f"can't be used: {first['msg'].lower()}"
        )
        raise ConfigurationError(
            "", f"{path}, {place}: {column} {words}; the columns are {', '.join(COLUMNS)}"
        ) from error
    if not read.explanation.strip():
        raise ConfigurationError("", f"{path}, {place}: explanation is empty")
    scalar = read.derived_scalar_type or defaults.derived_scalar_type
    try:
        DERIVED_SCALAR_TYPES.value(scalar)
    except ValueError as error:
        raise ConfigurationError("", f"{path}, {place}: {error}") from error
    dataset = read.dataset or defaults.dataset
    if not dataset:
        raise ConfigurationError("", f"{path}, {place}: dataset is missing; give it, or --dataset")
    return Explained(scalar, read.layer, read.component, dataset, read.explanation)
