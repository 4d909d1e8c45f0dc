"""What parsing a hostile file takes, measured in a process of its own, and the bound on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.formats.decoding import MAX_PARSED_BYTES, memory_bound
from tests.unit.memory_of_reading import peak_bytes

_ID = '{"neuron_id":{"neuron_index":1,"layer_index":1},'
_SAMPLE = _ID + '"random_sample":[{"activations":[%s],"tokens":[%s]}]}'
_QUANTILES = _ID + '"mean":%s,"random_sample_by_quantile":[[%s]]}'
_SIZE = 4 * 2**20
_EMPTY = '{"tokens":[],"activations":[]}'
_RECORDS = _EMPTY + f",{_EMPTY}" * (_SIZE // 31)

# Files that hold little but one thing: the content of the JSON, and whether it needs the slower
# reading.
FORMS = {
    "numbers": (_SAMPLE.replace("%s", "0" + ",0" * (_SIZE // 2), 1).replace("%s", ""), False),
    "tokens": (_SAMPLE.replace("%s", "", 1).replace("%s", '"a"' + ',"a"' * (_SIZE // 4)), False),
    "lists": (_ID + '"random_sample_by_quantile":[[]' + ",[]" * (_SIZE // 3) + "]}", False),
    "records": (
        _QUANTILES % ("0", _RECORDS),
        False,
    ),
    "numbers after NaN": (
        _SAMPLE.replace("%s", "NaN" + ",0" * (_SIZE // 2), 1).replace("%s", ""),
        True,
    ),
    "tokens after NaN": (
        _SAMPLE.replace("%s", "NaN", 1).replace("%s", '"ab"' + ',"ab"' * (_SIZE // 5)),
        True,
    ),
    "wide tokens after NaN": (
        _SAMPLE.replace("%s", "NaN", 1).replace("%s", '"é😀"' + ',"é😀"' * (_SIZE // 9)),
        True,
    ),
    "halves of surrogate pairs": (
        _SAMPLE.replace("%s", "NaN", 1).replace("%s", '"\\ud800"' + ',"\\ud800"' * (_SIZE // 9)),
        True,
    ),
    "lists and a half of a surrogate pair": (
        _ID + '"random_sample_by_quantile":[[]' + ",[]" * (_SIZE // 3) + '],"x":"\\ud800"}',
        True,
    ),
    "lists after NaN": (
        _ID + '"mean":NaN,"random_sample_by_quantile":[[]' + ",[]" * (_SIZE // 3) + "]}",
        True,
    ),
    "objects after NaN": (_QUANTILES % ("NaN", '{"a":1}' + ',{"a":1}' * (_SIZE // 8)), True),
    "records after NaN": (
        _QUANTILES % ("NaN", _RECORDS),
        True,
    ),
    "keys after NaN": (
        _ID + '"mean":NaN,"x":{"":0' + "".join(f',"{i:x}":0' for i in range(_SIZE // 10)) + "}}",
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_parsing_takes_no_more_memory_than_the_bound(form: str, tmp_path: Path) -> None:
    text, lenient = FORMS[form]
    data = text.encode()
    file = tmp_path / "record.json"
    file.write_bytes(data)
    taken = peak_bytes(
        "from shared.formats.decoding import decode_neuron_record",
        'decode_neuron_record(data, "f")',
        file,
    )
    # 2 MiB of grace: the interpreter's own pools.
    assert taken <= memory_bound(data, lenient=lenient) + 2**21, f"{taken / len(data)} a byte"


def test_what_people_record_is_far_from_the_bound() -> None:
    # 64 MiB, the largest file that is read, of activations as float32 print them.
    number = "0.12345678,"
    data = (number * (64 * 2**20 // len(number))).encode()
    assert memory_bound(data, lenient=False) < MAX_PARSED_BYTES
