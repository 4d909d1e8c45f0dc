"""Messages put together from parts equal those that protobuf serializes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuropil.common import v1 as common
from neuropil.records import v1
from services.records.batches import BatchItem
from services.records.convert import batch_message
from services.records.explanations import Failure
from services.records.wire import Field, NumberField, joined, varint

POSITION = NumberField(v1.BatchGetRecordsResponse, "position")


@given(st.integers(0, 2**64 - 1))
def test_a_number_is_written_as_protobuf_does(value: int) -> None:
    message = common.TokenSequences(sequence_lengths=[value & (2**32 - 1)])
    written = message.SerializeToString()
    assert written.endswith(varint(value & (2**32 - 1)))
    # Seven bits a byte; only the last byte has no flag.
    encoded = varint(value)
    assert len(encoded) == max(1, -(-value.bit_length() // 7))
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0]
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) == value


@given(st.integers(0, 2**32 - 1))
def test_a_field_of_a_number(value: int) -> None:
    message = v1.BatchGetRecordsResponse(position=value)
    assert joined(POSITION.of(value)) == message.SerializeToString()


@given(st.binary(max_size=300))
def test_a_field_of_bytes(data: bytes) -> None:
    tensor = common.Tensor.FromString(joined(Field(common.Tensor, "data").of([data])))
    assert tensor.data == data


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_the_parts_of_a_field_follow_one_another(contents: list[bytes]) -> None:
    parts = [memoryview(each) for each in contents]
    tensor = common.Tensor.FromString(joined(Field(common.Tensor, "data").of(parts)))
    assert tensor.data == b"".join(contents)


def test_a_field_holds_an_array_as_its_bytes() -> None:
    values = np.arange(1000, dtype="<f4")
    tensor = common.Tensor.FromString(
        joined(Field(common.Tensor, "data").of([values.data.cast("B")]))
    )
    np.testing.assert_array_equal(np.frombuffer(tensor.data, dtype="<f4"), values)


def test_an_empty_message_is_there_all_the_same() -> None:
    written = joined(Field(v1.BatchGetRecordsResponse, "token_record").of([b""]))
    assert v1.BatchGetRecordsResponse.FromString(written).WhichOneof("outcome") == "token_record"


def test_a_field_that_the_message_has_not_is_refused() -> None:
    with pytest.raises(KeyError):
        Field(common.Tensor, "date")


OUTCOMES = st.one_of(
    st.text(max_size=20).map(
        lambda text: v1.GetTokenRecordResponse(dataset=text, max_activation=0.5)
    ),
    st.text(max_size=20).map(lambda text: v1.GetTokenPairRecordResponse(dataset=text)),
    st.builds(
        Failure,
        *[st.text(max_size=20)] * 4,
        # The order of several is that of no specification.
        st.dictionaries(st.text(max_size=9), st.text(max_size=20), max_size=1),
    ),
)


@given(st.lists(OUTCOMES, min_size=1, max_size=5), st.integers(0, 9_995))
def test_a_message_of_a_batch_is_what_protobuf_makes_of_it(
    outcomes: list[v1.GetTokenRecordResponse | v1.GetTokenPairRecordResponse | Failure],
    start: int,
) -> None:
    items, messages = [], []
    for position, outcome in enumerate(outcomes, start):
        message = v1.BatchGetRecordsResponse(position=position)
        by_token_pair = isinstance(outcome, v1.GetTokenPairRecordResponse)
        if isinstance(outcome, Failure):
            message.failure.SetInParent()
            for name in ("code", "reason", "message", "dataset"):
                setattr(message.failure, name, getattr(outcome, name))
            message.failure.metadata.update(outcome.metadata)
            items.append(BatchItem(position, by_token_pair, outcome, 0))
        else:
            field = message.token_pair_record if by_token_pair else message.token_record
            field.CopyFrom(outcome)  # type: ignore[arg-type]
            items.append(BatchItem(position, by_token_pair, outcome.SerializeToString(), 0))
        messages.append(message)
    first, *following = messages
    first.following.extend(following)
    assert batch_message(items) == first.SerializeToString()
