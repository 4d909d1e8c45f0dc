"""What is fuzzed. Each target takes any bytes and fails where something is wrong with the answer.

Only the errors of the domain may escape what is called; what they let through is compared with
another way to the same answer. Nothing here needs atheris.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import protovalidate
from google.protobuf.message import DecodeError, Message

from neuropil.records import v1
from neuropil.tensors import to_array
from services.records.components import Component, View
from services.records.convert import (
    component_of,
    encoders,
    scalar_type_of,
    view_of,
)
from services.records.datasets import DatasetRegistry
from services.records.fast_reading import read_usual_record
from services.records.loading import token_pair_record, token_record
from services.records.storage import listing
from services.records.storage.folders import Folder
from services.records.stored import StoredRecord
from services.records.stored_explanations import stored_explanation
from shared.errors import DataLoss, InvalidArgument, NeuropilError, ResourceExhausted
from shared.formats import token_pairs
from shared.formats.decoding import decode_neuron_record, decode_simulation_results
from shared.formats.encoding import encode
from shared.formats.records import ActivationRecord, NeuronId
from shared.formats.simulations import (
    AttentionSimulationResults,
    NeuronSimulationResults,
    ScoredAttentionExplanation,
    ScoredExplanation,
)
from shared.rpc.interceptors.validation import field_path
from shared.settings import Dataset
from tests.fuzz import slow_reading
from tests.fuzz.gateway_bodies import bodies
from tests.fuzz.searching import changes, queries

_FILE = "set/1/2.json"
_VIEW = View(quantile_samples=True, moments=True)

REQUESTS: list[type[Message]] = [
    v1.ListDatasetsRequest,
    v1.ListLayersRequest,
    v1.ListComponentsRequest,
    v1.GetTokenRecordRequest,
    v1.GetTokenPairRecordRequest,
    v1.BatchGetRecordsRequest,
    v1.ListExplanationsRequest,
    v1.GetScoredSimulationsRequest,
    v1.PutExplanationRequest,
    v1.SearchExplanationsRequest,
]

_ROOTS = ("/data/mlp", "/data/attn", "/data/expl", "/data/cached", "/allowed", "az://acc/box/in")
_REGISTRY = DatasetRegistry(
    [
        Dataset(
            short_name="demo",
            user_visible_name="Demo",
            derived_scalar_type="mlp_post_act",
            neuron_dataset_path="/data/mlp",
            explanation_dataset_paths=("/data/expl",),
            cached_explanations_path="/data/cached",
        ),
        Dataset(
            short_name="demo",
            user_visible_name="Demo",
            derived_scalar_type="attn_write_norm",
            neuron_dataset_path="/data/attn",
        ),
    ],
    ["/allowed", "https://acc.blob.core.windows.net/box/in"],
)
_VALIDATOR = protovalidate.Validator()


def records(data: bytes) -> None:
    """The record parser, the fast one, the writer, and both ways to columns and messages."""
    stored = _compared(data, decode_neuron_record, slow_reading.record)
    usual = read_usual_record(data)
    if usual is not None:
        assert stored is not None, "read, where it is not to be"
        assert _columns(usual) == _columns(StoredRecord.of(stored, with_quantiles=True))
    if stored is None:
        return
    groups = [
        stored.most_positive_activation_records,
        stored.random_sample,
        *(stored.random_sample_by_quantile or []),
    ]
    encode_as = encoders()
    try:
        by_token = token_record(data, "set", Component("mlp_post_act", 1, 2), _VIEW, _FILE)
    except (DataLoss, InvalidArgument):
        assert any(len(each.tokens) != len(each.activations) for group in groups for each in group)
    else:
        message: Any = v1.GetTokenRecordResponse.FromString(encode_as.token_record(by_token))
        _check_message(message, by_token, groups)
    try:
        by_pair = token_pair_record(data, "set", Component("attn_write", 1, 2), _VIEW, _FILE)
    except DataLoss:
        return
    message = v1.GetTokenPairRecordResponse.FromString(encode_as.token_pair_record(by_pair))
    _check_message(message, by_pair, groups)
    for part, group in zip((by_pair.top, by_pair.random, *by_pair.quantiles), groups, strict=True):
        _check_summaries(part, group)


def explanations(data: bytes) -> None:
    """The parser of explanation files, and the writer."""
    stored = _compared(data, decode_simulation_results, slow_reading.results)
    for scored in stored.scored_explanations if stored is not None else ():
        score = scored.get_preferred_score()
        assert score is None or math.isfinite(score)


def requests(data: bytes) -> None:
    """Any bytes as a request: parsed, validated, resolved; no path leads out of the roots."""
    if not data:
        return
    request = REQUESTS[data[0] % len(REQUESTS)]()
    try:
        request.ParseFromString(data[1:])
    except (DecodeError, UnicodeDecodeError):
        return
    violations = _VALIDATOR.collect_violations(request, fail_fast=True)
    if violations:
        field_path(violations[0])
        return
    try:
        for folder in _resolve(request):
            _check_within(folder)
    except NeuropilError as error:
        error.message.encode()
        error.field.encode()


def shapes(data: bytes) -> None:
    """The shape of token pairs, against counting the rows."""
    num_tokens = int.from_bytes(data[:1], "little") % 80
    num_values = int.from_bytes(data[1:3], "little") % 3500
    fitting = [
        cap
        for cap in range(1, num_tokens + 1)
        if sum(min(row + 1, cap) for row in range(num_tokens)) == num_values
    ]
    cap = token_pairs.attended_cap(num_tokens, num_values)
    if num_tokens == 0:
        assert cap == (0 if num_values == 0 else None)
        return
    assert cap == (fitting[0] if fitting else None)
    if cap is None:
        return
    pairs = [(row, column) for row in range(num_tokens) for column in range(min(row + 1, cap))]
    rows, columns = token_pairs.coordinates(num_tokens, cap)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == pairs
    index = int.from_bytes(data[3:5], "little") % num_values
    assert token_pairs.pair_at(index, num_tokens, num_values) == pairs[index]
    assert token_pairs.flat_index(token_pairs.TokenPair(*pairs[index]), num_tokens, cap) == index


TARGETS: dict[str, Callable[[bytes], None]] = {
    "records": records,
    "explanations": explanations,
    "requests": requests,
    "shapes": shapes,
    "bodies": bodies,
    "queries": queries,
    "changes": changes,
}


def plain(value: Any) -> Any:
    """A decoded class as nested lists of its fields, as `slow_reading` gives them."""
    if isinstance(value, msgspec.Struct):
        return [plain(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def same(one: Any, other: Any) -> bool:
    """Equality of nested values where NaN equals NaN, and 0.0 is not -0.0."""
    return repr(one) == repr(other)


def without_infinity(value: Any) -> Any:
    """What the writer makes of nested values: an infinite number is null, and reads as NaN."""
    if isinstance(value, list):
        return [without_infinity(item) for item in value]
    return math.nan if isinstance(value, float) and not math.isfinite(value) else value


def _compared(data: bytes, fast: Callable[[bytes, str], Any], slow: Callable[[bytes], Any]) -> Any:
    """What `fast` reads, if anything: equal to what `slow` reads, and to itself once written."""
    try:
        expected = slow(data)
    except slow_reading.Unreadable:
        expected = None
    refusal: NeuropilError | None = None
    try:
        stored = fast(data, _FILE)
    except (DataLoss, ResourceExhausted) as error:
        refusal = error
    if refusal is not None:
        assert refusal.metadata["file"] == _FILE
        assert refusal.message.encode()
        assert expected is None, f"refused: {refusal.message}"
        return None
    if expected is not None or _is_text(data):
        assert expected is not None, "read, where it is not to be"
        assert same(plain(stored), expected)
    again = fast(encode(stored), _FILE)
    assert same(_nulls_as_nan(plain(again)), _nulls_as_nan(without_infinity(plain(stored))))
    return stored


def _is_text(data: bytes) -> bool:
    # What is no UTF-8 is passed over in fields that nobody reads.
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _columns(stored: StoredRecord) -> str:
    """All of a record, where NaN equals NaN and 0.0 is not -0.0."""
    return repr(
        [
            [
                (part.part, part.tokens, part.lengths, part.values.tolist(), part.counts)
                for part in (stored.top, stored.random, *stored.quantiles)
            ],
            stored.quantile_boundaries,
            stored.moments,
        ]
    )


def _check_message(message: Any, columns: Any, groups: list[list[ActivationRecord]]) -> None:
    """The parsed message, and the columns that it was made from, say what the file says."""
    finite = [value for each in groups[0] for value in each.activations if math.isfinite(value)]
    assert columns.max_activation == max(finite, default=0.0)
    assert same(message.max_activation, float(columns.max_activation))
    parts = [columns.top, columns.random, *columns.quantiles]
    sent = [message.top_sequences, message.random_sequences, *message.quantile_sequences]
    for part, got, group in zip(parts, sent, groups, strict=True):
        assert list(got.tokens) == part.tokens == [t for each in group for t in each.tokens]
        assert list(got.sequence_lengths) == part.lengths == [len(each.tokens) for each in group]
        values = np.array([value for each in group for value in each.activations], dtype=float)
        with np.errstate(over="ignore"):
            wanted = values.astype(part.activations.dtype)
        np.testing.assert_array_equal(to_array(got.activations), wanted)
        assert np.isfinite(wanted).tolist() == np.isfinite(values).tolist()
        scaled = to_array(got.normalized_activations)
        assert np.isfinite(scaled).tolist() == np.isfinite(values).tolist()
        scaled = scaled[np.isfinite(scaled)]
        assert ((scaled >= 0) & (scaled <= 1)).all()


def _check_summaries(part: Any, group: list[ActivationRecord]) -> None:
    """Largest values of rows and columns, against one pair after the other."""
    rows: list[float] = []
    columns: list[float] = []
    for each, cap in zip(group, part.caps, strict=True):
        row_of, column_of = token_pairs.coordinates(len(each.tokens), cap)
        for index in range(len(each.tokens)):
            for places, largest in ((row_of, rows), (column_of, columns)):
                found = [
                    value
                    for place, value in zip(places.tolist(), each.activations, strict=True)
                    if place == index and math.isfinite(value)
                ]
                largest.append(max(found, default=0.0))
    for summary, wanted in ((part.max_in, rows), (part.max_out, columns)):
        np.testing.assert_array_equal(summary.values, np.array(wanted).astype(summary.values.dtype))


def _nulls_as_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_nulls_as_nan(item) for item in value]
    return math.nan if value is None else value


def _resolve(request: Any) -> list[Folder]:
    if isinstance(request, v1.ListLayersRequest | v1.ListComponentsRequest):
        listing.page([1, 5, 9], request.page_size, request.page_token)
    if isinstance(
        request,
        v1.SearchExplanationsRequest | v1.ListLayersRequest | v1.ListComponentsRequest,
    ):
        kind = scalar_type_of(request.dataset.derived_scalar_type, "dataset.derived_scalar_type")
        return [_REGISTRY.record_folder(request.dataset.dataset, kind, "dataset.dataset")]
    if isinstance(request, v1.BatchGetRecordsRequest):
        found = [component_of(each) for each in request.components]
        view_of(request.view)
        kinds = {each.derived_scalar_type for each in found}
        return [
            folder
            for kind in sorted(kinds)
            for folder in _REGISTRY.record_folders(request.datasets, kind).folders
        ]
    if isinstance(request, v1.GetTokenRecordRequest | v1.GetTokenPairRecordRequest):
        component = component_of(request.component)
        _check_relative(component.record_file)
        view_of(request.view)
        return _REGISTRY.record_folders(request.datasets, component.derived_scalar_type).folders
    if isinstance(request, v1.ListExplanationsRequest):
        component = component_of(request.component)
        if request.WhichOneof("source") == "neuron_dataset":
            _REGISTRY.neuron_dataset(request.neuron_dataset, component.derived_scalar_type)
            return []
        return _REGISTRY.explanation_folders(list(request.explanation_datasets.paths)).folders
    if isinstance(request, v1.GetScoredSimulationsRequest | v1.PutExplanationRequest):
        component = component_of(request.component)
        _check_relative(component.explanation_file)
        folder = _REGISTRY.explanation_folder(request.explanation_dataset)
        if isinstance(request, v1.PutExplanationRequest):
            _check_storable(component, stored_explanation(request, component.by_token_pair))
        return [folder]
    return []


def _check_storable(
    component: Component, scored: ScoredExplanation | ScoredAttentionExplanation
) -> None:
    """What is to be written can be read again."""
    place = NeuronId(component.layer_index, component.component_index)
    results = (
        NeuronSimulationResults(place, [scored])
        if isinstance(scored, ScoredExplanation)
        else AttentionSimulationResults(place, [scored])
    )
    again = decode_simulation_results(encode(results), _FILE)
    assert same(_nulls_as_nan(plain(again)), _nulls_as_nan(without_infinity(plain(results))))


def _check_relative(path: str) -> None:
    layer, name = path.split("/")
    assert layer.isdigit()
    assert name.rpartition(".")[0].isdigit()


def _check_within(folder: Folder) -> None:
    path = folder.path
    if path.startswith("/"):
        assert posixpath.normpath(path) == path, path
    assert not {"..", "."} & set(path.split("/")), path
    marks = ("%2e", "%2f", "\\", "\0", *(() if path.startswith("/") else ("?", "#", "@")))
    assert not any(mark in path.lower() for mark in marks), path
    assert any(path == root or path.startswith(f"{root}/") for root in _ROOTS), path
