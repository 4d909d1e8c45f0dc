"""Reading record and explanation files, of this release and of older ones.

What is written today is decoded straight into its classes. What that refuses goes through a slower
reading that knows the older forms: other class and field names (with or without class names in
the file), layers written as strings, explanations that are null, and numbers written as NaN,
Infinity or null. What neither understands is `DataLoss`, with the file and the field.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect as schema

from shared.errors import DataLoss, ResourceExhausted
from shared.formats.records import CLASS_NAME_FIELD, NeuronId, NeuronRecord
from shared.formats.simulations import (
    AttentionSimulationResults,
    NeuronSimulationResults,
    ScoredAttentionExplanation,
    ScoredExplanation,
    ScoredSequenceSimulation,
    SequenceSimulation,
)
from shared.formats.text import without_surrogates

SimulationResults = NeuronSimulationResults | AttentionSimulationResults

MAX_PARSED_BYTES = 900 * 2**20
"""A file that may take more memory than this while it is parsed is refused before."""

_Class = TypeVar("_Class", bound=msgspec.Struct)

# Field names of older releases, by class. A file may have either; the new name wins.
_OLD_FIELDS: dict[type, dict[str, str]] = {
    NeuronId: {"idx": "neuron_index", "layer": "layer_index"},
    SequenceSimulation: {"unit": "activation_scale"},
    ScoredSequenceSimulation: {"simulation": "sequence_simulation"},
    ScoredExplanation: {"explanation_or_baseline": "explanation"},
    NeuronSimulationResults: {"scored_explanation_or_baseline_list": "scored_explanations"},
    AttentionSimulationResults: {"attention_id": "attention_head_id"},
}
_OLD_CLASSES = {"ScoredExplanationOrBaseline": "ScoredExplanation"}
_EXPLANATIONS = (ScoredExplanation, ScoredAttentionExplanation)

# A file this small can't grow over the bound, whatever is in it.
_SURELY_SMALL = 2**22
# Bytes of memory that a comma, a bracket, a brace and a byte of the file can stand for at most,
# measured on files of nothing else (tests/unit/test_formats_memory.py).
_TYPED_COST = (80, 80, 80, 2)
_LENIENT_COST = (110, 160, 330, 5)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    cls: msgspec.json.Decoder(cls)
    for cls in (NeuronRecord, NeuronSimulationResults, AttentionSimulationResults)
}


def decode_neuron_record(data: bytes, source: str) -> NeuronRecord:
    """Parse the content of a record file; `source` is the file's name in errors.

    Raises DataLoss with metadata `file` and, where one is at fault, `field` (such as
    `random_sample[3].tokens[0]`); ResourceExhausted where parsing may take more memory than
    MAX_PARSED_BYTES. Activations may be NaN or infinite, and their number need not
    be that of the tokens: what a record means is the reader's to say.
    """
    return _decode(data, NeuronRecord, source)


def decode_simulation_results(data: bytes, source: str) -> SimulationResults:
    """Parse the content of an explanation file: one line of JSON, and blank ones.

    Explanations that are null are left out. Raises DataLoss as `decode_neuron_record` does, also
    where the file is empty or has a second line that is not blank.
    """
    check_memory(data, source)
    lines = [line for line in data.split(b"\n") if line.strip()]
    if len(lines) != 1:
        found = f"{len(lines)} lines" if lines else "nothing"
        raise corrupt(source, f"has {found}, where one line of JSON was to be")
    try:
        results: NeuronSimulationResults = _DECODERS[NeuronSimulationResults].decode(lines[0])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return _decode(lines[0], _class_of_results(lines[0], source), source)
    return results


def corrupt(source: str, what: str, field: str = "") -> DataLoss:
    """The error that says that the file `source` can't be read, and at which field."""
    metadata = {"file": source, "field": field} if field else {"file": source}
    where = f"{source}: {field}" if field else source
    return DataLoss(f"{where} {what}.", metadata=metadata)


def _decode(data: bytes, cls: type[_Class], source: str) -> _Class:
    check_memory(data, source)
    try:
        decoded: _Class = _DECODERS[cls].decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return _convert(_parse(data, source), cls, source)
    return decoded


def memory_bound(data: bytes, *, lenient: bool) -> int:
    """Bytes of memory that parsing `data` takes at most, by what is in it.

    `lenient` is the slower reading, of what today's classes do not fit.
    """
    comma, bracket, brace, byte = _LENIENT_COST if lenient else _TYPED_COST
    bound = (
        data.count(b",") * comma
        + data.count(b"[") * bracket
        + data.count(b"{") * brace
        + len(data) * byte
    )
    # Text without halves of surrogate pairs is a copy of what was parsed.
    return 2 * bound if lenient and _SURROGATE.search(data) else bound


def check_memory(data: bytes, source: str, *, lenient: bool = False) -> None:
    """ResourceExhausted where `data` may take more than MAX_PARSED_BYTES once it is parsed."""
    if len(data) <= _SURELY_SMALL:
        return
    bound = memory_bound(data, lenient=lenient)
    if bound > MAX_PARSED_BYTES:
        raise ResourceExhausted(
            f"{source} may take {bound} bytes of memory to read; at most {MAX_PARSED_BYTES} "
            "are used for a file.",
            reason="FILE_TOO_LARGE",
            metadata={"file": source, "bytes": str(bound), "limit": str(MAX_PARSED_BYTES)},
        )


def _parse(data: bytes, source: str) -> Any:
    """The JSON value in `data`, with bare NaN, Infinity and -Infinity as floats."""
    check_memory(data, source, lenient=True)
    if not data.strip():
        raise corrupt(source, "is empty, where a JSON object was to be")
    try:
        value = json.loads(data.decode("utf-8"), parse_int=_parse_int)
        return without_surrogates(value) if _SURROGATE.search(data) else value
    except UnicodeDecodeError as error:
        raise corrupt(source, f"is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise corrupt(source, f"is not JSON: {error}") from error
    except RecursionError as error:
        raise corrupt(source, "is nested too deeply") from error


def _parse_int(digits: str) -> int | float:
    # Python refuses to parse integers of thousands of digits; they are no index, and as an
    # activation they are infinite.
    return int(digits) if len(digits) < 300 else float(digits)


def _convert(value: Any, cls: type[_Class], source: str) -> _Class:
    if not isinstance(value, dict):
        raise corrupt(source, f"holds {_kind(value)}, where an object was to be")
    try:
        return msgspec.convert(_modernize(value, _schema(cls)), cls)
    except msgspec.ValidationError as error:
        field, what = _explain(str(error))
        raise corrupt(source, what, field) from error
    except RecursionError as error:
        raise corrupt(source, "is nested too deeply") from error


def _class_of_results(data: bytes, source: str) -> type[SimulationResults]:
    value = _parse(data, source)
    name = _class_name(value)
    if name == "AttentionSimulationResults":
        return AttentionSimulationResults
    heads = (
        isinstance(value, dict)
        and bool({"attention_head_id", "attention_id"} & value.keys())
        and "neuron_id" not in value
    )
    if heads and name != "NeuronSimulationResults":
        return AttentionSimulationResults
    return NeuronSimulationResults


def _class_name(value: Any) -> str | None:
    name = value.get(CLASS_NAME_FIELD) if isinstance(value, dict) else None
    return _OLD_CLASSES.get(name, name) if isinstance(name, str) else None


@cache
def _schema(cls: type) -> schema.Type:
    return schema.type_info(cls)


@cache
def _classes() -> frozenset[str]:
    """Names of every class that a file may name."""
    found: set[str] = set()
    pending: list[schema.Type] = [_schema(cls) for cls in _DECODERS]
    while pending:
        node = pending.pop()
        if isinstance(node, schema.StructType) and node.cls.__name__ not in found:
            found.add(node.cls.__name__)
            pending.extend(field.type for field in node.fields)
        elif isinstance(node, schema.UnionType):
            pending.extend(node.types)
        elif isinstance(node, schema.ListType):
            pending.append(node.item_type)
    return frozenset(found)


def _modernize(value: Any, node: schema.Type) -> Any:
    """`value`, parsed from an old file, as today's classes have it; wrong types are left as is."""
    if isinstance(node, schema.UnionType):
        chosen = [kind for kind in node.types if not isinstance(kind, schema.NoneType)]
        return value if value is None else _modernize(value, chosen[0])
    if isinstance(node, schema.StructType) and isinstance(value, dict):
        return _modernize_object(value, node)
    if isinstance(node, schema.ListType) and isinstance(value, list):
        return _modernize_list(value, node.item_type)
    if isinstance(node, schema.FloatType):
        return _number(value)
    return value


def _modernize_list(values: list[Any], item: schema.Type) -> list[Any]:
    if isinstance(item, schema.StructType) and item.cls in _EXPLANATIONS:
        values = [value for value in values if not _is_null_explanation(value)]
    return [_modernize(value, item) for value in values]


def _modernize_object(value: dict[str, Any], node: schema.StructType) -> dict[str, Any]:
    renamed = dict(value)
    for old, new in _OLD_FIELDS.get(node.cls, {}).items():
        if old in renamed:
            renamed.setdefault(new, renamed.pop(old))
    name = _class_name(renamed)
    if name in _classes():
        renamed[CLASS_NAME_FIELD] = name
    else:
        # A class that this release does not know is read as the one that belongs here.
        renamed.pop(CLASS_NAME_FIELD, None)
    layer = renamed.get("layer_index")
    if node.cls is NeuronId and isinstance(layer, str) and layer.isascii() and layer.isdigit():
        renamed["layer_index"] = int(layer[:20])
    for field in node.fields:
        if field.encode_name in renamed:
            renamed[field.encode_name] = _modernize(renamed[field.encode_name], field.type)
    return renamed


def _is_null_explanation(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    present = {"explanation", "explanation_or_baseline"} & value.keys()
    return bool(present) and all(value[key] is None for key in present)


def _number(value: Any) -> Any:
    if value is None:
        return math.nan
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _explain(message: str) -> tuple[str, str]:
    """A msgspec message as (path of the field, what is wrong there)."""
    what, _, path = message.partition(" - at ")
    field = path.strip("`").removeprefix("$").removeprefix(".")
    missing = what.removeprefix("Object missing required field `")
    if missing != what:
        field = f"{field}.{missing.rstrip('`')}".removeprefix(".")
        return field, "is missing"
    return field, f"is wrong: {what[:1].lower()}{what[1:]}"


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
