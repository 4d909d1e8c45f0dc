"""The fast reading of record files against the slow one: it declines, or it reads the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.records.fast_reading import read_record, read_usual_record
from services.records.stored import StoredRecord
from shared.errors import DataLoss
from shared.formats.decoding import decode_neuron_record, memory_bound
from shared.formats.encoding import encode
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from tests.fuzz.mutation import mutated_json
from tests.unit.memory_of_reading import peak_bytes

MOMENTS = ("mean", "variance", "skewness", "kurtosis")


def plain(stored: StoredRecord) -> str:
    """All of a record, where NaN equals NaN and 0.0 is not -0.0."""
    parts = [stored.top, stored.random, *stored.quantiles]
    return repr(
        [
            [(p.part, p.tokens, p.lengths, p.values.tolist(), p.counts) for p in parts],
            stored.quantile_boundaries,
            list(stored.moments),
        ]
    )


def assert_declines_or_agrees(data: bytes) -> bool:
    """Whether the fast reading read `data`."""
    fast = read_usual_record(data)
    if fast is None:
        return False
    assert plain(fast) == plain(
        StoredRecord.of(decode_neuron_record(data, "f"), with_quantiles=True)
    )
    for part in (fast.top, fast.random, *fast.quantiles):
        assert part.values.dtype == np.float64
    return True


texts = st.text(max_size=4) | st.sampled_from(
    [
        "[",
        "]",
        '"',
        "\\",
        "\\\\n",
        '","',
        "][",
        "\n",
        "\x00",
        "\x01",
        "\b",
        "é",
        "x" * 128,
        "",
        '"][',
    ],
)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**65), 2**65)
sequences = st.builds(
    lambda activations, tokens: {"activations": activations, "tokens": tokens},
    st.lists(numbers, max_size=4),
    st.lists(texts, max_size=4),
).map(lambda fields: {"dataclass_name": "ActivationRecord", **fields})
lists = st.lists(sequences, max_size=3)
records = st.fixed_dictionaries(
    {
        "dataclass_name": st.just("NeuronRecord"),
        "neuron_id": st.fixed_dictionaries(
            {"neuron_index": st.integers(-(2**64), 2**64), "layer_index": st.just(1)}
        ),
    },
    optional={
        "random_sample": lists,
        "most_positive_activation_records": lists,
        "random_sample_by_quantile": st.none() | st.lists(lists, max_size=3),
        "quantile_boundaries": st.none() | st.lists(numbers, max_size=3),
        **{name: st.none() | numbers for name in MOMENTS},
    },
)


@settings(deadline=None, max_examples=300)
@given(record=records, ascii_only=st.booleans(), spaces=st.booleans())
def test_what_is_written(record: dict[str, Any], ascii_only: bool, spaces: bool) -> None:
    separators = (", ", ": ") if spaces else (",", ":")
    text = json.dumps(record, ensure_ascii=ascii_only, separators=separators)
    assert_declines_or_agrees(text.encode())


@settings(deadline=None, max_examples=500)
@given(record=records, seed=st.integers(0, 2**32))
def test_what_is_nearly_right(record: dict[str, Any], seed: int) -> None:
    def cut(data: bytes, max_size: int) -> bytes:
        place = seed % (len(data) or 1)
        return data[:place] + data[place + 1 + seed % 3 :]

    assert_declines_or_agrees(mutated_json(json.dumps(record).encode(), 2**20, seed, cut))


@pytest.mark.golden
def test_golden_files(golden: Path) -> None:
    files = sorted((golden / "read").glob("*/*/*.json"))
    read = [assert_declines_or_agrees(path.read_bytes()) for path in files]
    assert sum(read) > len(read) / 2


def usual() -> NeuronRecord:
    sequence = [ActivationRecord([0.5, -1.0], ["é\n[", '"\\'])]
    return NeuronRecord(
        NeuronId(3, 1),
        random_sample=sequence,
        random_sample_by_quantile=[sequence, [], sequence * 2],
        quantile_boundaries=[0.25, 1.0],
        mean=1.5,
        variance=None,
        most_positive_activation_records=sequence * 3,
    )


def test_what_neuropil_writes_is_read_fast() -> None:
    assert assert_declines_or_agrees(encode(usual()))
    assert assert_declines_or_agrees(encode(usual()) + b"\n")
    assert assert_declines_or_agrees(json.dumps(json.loads(encode(usual())), indent=1).encode())
    bare = b'{"neuron_id":{"neuron_index":1,"layer_index":1}}'
    assert assert_declines_or_agrees(bare)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"[0.5,-1.0]", b"[[0.5],-1.0]"),
        (b"[0.5,-1.0]", b"[0.5,[-1.0]]"),
        (b"[0.5,-1.0]", b"[[0.5,-1.0],[]]"),
        (b"[0.5,-1.0]", b"[0.5,NaN]"),
        (b"[0.5,-1.0]", b"[0.5,null]"),
        (b"[0.5,-1.0]", b"[0.5,true]"),
        (b"[0.5,-1.0]", b'["0.5",-1.0]'),
        (b"[0.5,-1.0]", b"[1e999,-1.0]"),
        (b"[0.5,-1.0]", b"[0.5,-1.0],\"activations\":[1.0,2.0]"),
        (b"[0.5,-1.0]", b"[0.5,36893488147419103232]"),
        (b"[0.5,-1.0]", b"{}"),
        (b'"tokens":', b'"token":'),
        (b'"tokens":', b'"extra":1,"tokens":'),
        (b'"tokens":[', b'"tokens":[1,'),
        (b'"tokens":[', b'"tokens":[null,'),
        (b'"tokens":[', b'"tokens":[["a"],'),
        (b'"tokens":[', b'"tokens":[{"a":"b"},'),
        (b'"tokens":[', b'"tokens":["\\ud800",'),
        (b'"ActivationRecord"', b'"SomethingNew"'),
        (b'"NeuronRecord"', b"null"),
        (b'"NeuronId"', b'"NeuronRecord"'),
        (b'"neuron_index":3', b'"idx":3'),
        (b'"neuron_index":3', b'"neuron_index":"3"'),
        (b'"neuron_index":3', b'"neuron_index":3.0'),
        (b'"neuron_index":3', b'"neuron_index":true'),
        (b'"neuron_index":3', b'"neuron_index":9223372036854775808'),
        (b'"neuron_index":3', b'"neuron_index":3,"neuron_index":4'),
        (b'"mean":1.5', b'"mean":true'),
        (b'"mean":1.5', b'"mean":1.5,"mean":2.5'),
        (b'"mean":1.5', b'"mean":1.5,"another":2.5'),
        (b'"quantile_boundaries":[0.25', b'"quantile_boundaries":[false'),
        (b'"quantile_boundaries":[0.25', b'"quantile_boundaries":[[0.25]'),
        (b'"random_sample":[', b'"random_sample":[null,'),
        (b'"random_sample":[', b'"random_sample":null,"x":['),
        (b'"random_sample":[', b'"random_sample":[[],'),
        (b"{", b" {"),
        (b"{", b"\xef\xbb\xbf{"),
        ("é".encode(), b"\xe9"),
        (b"}", b""),
    ],
)  # fmt: skip
def test_what_is_unusual_is_declined(old: bytes, new: bytes) -> None:
    data = encode(usual())
    assert old in data
    assert read_usual_record(data.replace(old, new, 1)) is None


def test_an_escaped_bracket_does_not_hide_a_list() -> None:
    data = encode(usual()).replace(b"[0.5,-1.0]", b"[[0.5],-1.0]", 1)
    data = data.replace("é\\n[".encode(), b"\\u005b\\n", 1)
    assert read_usual_record(data) is None
    with pytest.raises(DataLoss, match="activations"):
        read_record(data, "f", with_quantiles=False)


def test_quantiles_are_given_where_they_are_asked_for() -> None:
    for data in (encode(usual()), b" " + encode(usual())):
        asked = read_record(data, "f", with_quantiles=True)
        assert [part.lengths for part in asked.quantiles] == [[2], [], [2, 2]]
        assert read_record(data, "f", with_quantiles=False).quantiles == []


def test_what_is_declined_is_read_slowly() -> None:
    data = encode(usual()).replace(b"[0.5,-1.0]", b"[null,-1.0]", 1)
    assert read_usual_record(data) is None
    first = read_record(data, "f", with_quantiles=False).random.values
    assert math.isnan(first[0])
    assert first[1] == -1.0


@pytest.mark.parametrize(
    ("content", "item"),
    [
        ('"random_sample":[{"activations":[0%s],"tokens":[]}]', ",0"),
        ('"random_sample":[{"activations":[],"tokens":["a"%s]}]', ',"a"'),
        ('"random_sample_by_quantile":[[]%s]', ",[]"),
        ('"random_sample":[{"activations":[[]%s],"tokens":[]}]', ",[]"),
    ],
)
def test_reading_takes_no_more_memory_than_the_bound(
    content: str, item: str, tmp_path: Path
) -> None:
    identity = '{"neuron_id":{"neuron_index":1,"layer_index":1},'
    data = (identity + content % (item * (2**22 // len(item))) + "}").encode()
    file = tmp_path / "record.json"
    file.write_bytes(data)
    taken = peak_bytes(
        "from services.records.fast_reading import read_record",
        'read_record(data, "f", with_quantiles=False)',
        file,
    )
    # 2 MiB of grace: the interpreter's own pools.
    assert taken <= memory_bound(data, lenient=False) + 2**21
