"""Answers as JSON, from the columns of messages."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuropil.common import v1 as common
from neuropil.names import DERIVED_SCALAR_TYPES, GROUP_IDS, NODE_TYPES, PASS_TYPES
from neuropil.records import v1 as records
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_tensor
from services.gateway.encoding import (
    Assembler,
    token_pair_record_pieces,
    token_record_pieces,
)
from services.gateway.inference_encoding import derived_scalars_answer, top_nodes_answer

SUMMARIES = ("total_in", "max_in", "total_out", "max_out")


def token_sequences(
    sequences: list[list[tuple[str, float]]], dtype: type[np.floating[Any]] = np.float32
) -> common.TokenSequences:
    pairs = [pair for sequence in sequences for pair in sequence]
    values = np.array([value for _, value in pairs], dtype=dtype)
    return common.TokenSequences(
        tokens=[token for token, _ in pairs],
        sequence_lengths=[len(sequence) for sequence in sequences],
        activations=to_tensor(values),
        normalized_activations=to_tensor(values / 2),
    )


def token_pair_sequences(lengths: list[int], caps: list[int]) -> common.TokenPairSequences:
    sizes = [
        min(row + 1, cap)
        for length, cap in zip(lengths, caps, strict=True)
        for row in range(length)
    ]
    total = sum(lengths)
    message = common.TokenPairSequences(
        tokens=[f"t{index}" for index in range(total)],
        sequence_lengths=lengths,
        attended_to_caps=caps,
        activations=to_tensor(np.arange(sum(sizes), dtype=np.float32)),
        normalized_activations=to_tensor(np.arange(sum(sizes), dtype=np.float32) / 100),
    )
    for position, name in enumerate(SUMMARIES):
        base = 1000 * (position + 1)
        getattr(message, name).CopyFrom(
            common.TokenPairSummary(
                values=to_tensor(np.arange(total, dtype=np.float32) + base),
                normalized_values=to_tensor(np.arange(total, dtype=np.float32) + base + 500),
            )
        )
    return message


def decoded(pieces: Any) -> Any:
    return json.loads(b"".join(pieces))


tokens_and_values = st.tuples(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
)


@given(st.lists(st.lists(tokens_and_values, max_size=6), max_size=5))
def test_a_token_record_says_what_its_columns_say(
    sequences: list[list[tuple[str, float]]],
) -> None:
    record = records.GetTokenRecordResponse(
        dataset="a/b", max_activation=1.5, top_sequences=token_sequences(sequences)
    )
    answer = decoded(token_record_pieces(record))
    assert answer.keys() == {"dataset", "maxActivation", "topActivations", "randomSample"}
    assert answer["randomSample"] == []
    assert [[each["token"] for each in row] for row in answer["topActivations"]] == [
        [token for token, _ in row] for row in sequences
    ]
    for row, expected in zip(answer["topActivations"], sequences, strict=True):
        for each, (_, value) in zip(row, expected, strict=True):
            if math.isfinite(value):
                assert np.float32(each["scalar"]) == np.float32(value)
                assert np.float32(each["normalizedScalar"]) == np.float32(value) / np.float32(2)
            else:
                assert (each["scalar"], each["normalizedScalar"]) == (None, None)


def test_values_of_double_precision_keep_it() -> None:
    record = records.GetTokenRecordResponse(
        top_sequences=token_sequences([[("a", 1e300), ("b", 0.1)]], np.float64)
    )
    row = decoded(token_record_pieces(record))["topActivations"][0]
    assert [each["scalar"] for each in row] == [1e300, 0.1]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", '"', "\\", "\n", "\x00", "🙂", "\ufffd"])
def test_tokens_are_escaped(separator: str) -> None:
    record = records.GetTokenRecordResponse(
        dataset=separator, top_sequences=token_sequences([[(separator, 1.0)]])
    )
    answer = decoded(token_record_pieces(record))
    assert answer["dataset"] == separator
    assert answer["topActivations"][0][0]["token"] == separator


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 7)), max_size=4))
def test_rows_of_token_pairs_are_cut_where_the_cap_says(shapes: list[tuple[int, int]]) -> None:
    lengths = [length for length, _ in shapes]
    caps = [min(cap, max(length, 1)) for length, cap in shapes]
    record = records.GetTokenPairRecordResponse(
        dataset="d", max_activation=2, top_sequences=token_pair_sequences(lengths, caps)
    )
    answer = decoded(token_pair_record_pieces(record))
    expected, token, value = [], 0, 0
    for length, cap in zip(lengths, caps, strict=True):
        rows = []
        for row in range(length):
            size = min(row + 1, cap)
            rows.append(
                (f"t{token}", [float(each) for each in range(value, value + size)], 1000.0 + token)
            )
            token, value = token + 1, value + size
        expected.append(rows)
    found = [
        [(each["token"], each["scalars"], each["totalScalarIn"]) for each in row]
        for row in answer["mostPositiveTokenSequences"]
    ]
    assert found == expected
    assert answer["randomTokenSequences"] == []


def test_every_summary_stands_under_its_name() -> None:
    record = records.GetTokenPairRecordResponse(top_sequences=token_pair_sequences([2], [2]))
    second = decoded(token_pair_record_pieces(record))["mostPositiveTokenSequences"][0][1]
    assert second == {
        "token": "t1",
        "scalars": [1.0, 2.0],
        "normalizedScalars": [0.01, 0.02],
        "totalScalarIn": 1001.0,
        "normalizedTotalScalarIn": 1501.0,
        "maxScalarIn": 2001.0,
        "normalizedMaxScalarIn": 2501.0,
        "totalScalarOut": 3001.0,
        "normalizedTotalScalarOut": 3501.0,
        "maxScalarOut": 4001.0,
        "normalizedMaxScalarOut": 4501.0,
    }


def test_quantiles_and_moments_are_there_only_where_the_record_has_them() -> None:
    record = records.GetTokenRecordResponse(
        quantile_sequences=[token_sequences([[("a", 1.0)]]), token_sequences([])],
        quantile_boundaries=[0.5, 0.75],
        moments=records.Moments(mean=0.25, variance=2.0),
    )
    answer = decoded(token_record_pieces(record))
    assert answer["quantileSamples"] == [
        [[{"token": "a", "scalar": 1.0, "normalizedScalar": 0.5}]],
        [],
    ]
    assert answer["quantileBoundaries"] == [0.5, 0.75]
    assert answer["moments"] == {
        "mean": 0.25,
        "variance": 2.0,
        "skewness": None,
        "kurtosis": None,
    }


def test_columns_that_do_not_fit_each_other_are_a_defect() -> None:
    broken = token_sequences([[("a", 1.0), ("b", 2.0)]])
    broken.tokens.append("c")
    with pytest.raises(ValueError, match="3 values"):
        b"".join(token_record_pieces(records.GetTokenRecordResponse(top_sequences=broken)))


def test_lengths_that_do_not_add_up_are_a_defect() -> None:
    columns = token_sequences([[("a", 1.0)], [("b", 2.0)]])
    del columns.sequence_lengths[1:]
    with pytest.raises(ValueError, match="2 tokens"):
        list(token_record_pieces(records.GetTokenRecordResponse(top_sequences=columns)))


@given(lengths=st.lists(st.integers(0, 5), max_size=8), size=st.integers(1, 7))
def test_pieces_may_end_anywhere_in_a_sequence(lengths: list[int], size: int) -> None:
    columns = token_sequences([[("t", float(step)) for step in range(each)] for each in lengths])
    record = records.GetTokenRecordResponse(top_sequences=columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.gateway.encoding._PIECE_SIZE", size)
        answer = decoded(token_record_pieces(record))
    assert [len(sequence) for sequence in answer["topActivations"]] == lengths
    for sequence in answer["topActivations"]:
        assert [each["scalar"] for each in sequence] == list(range(len(sequence)))


async def test_a_large_answer_gives_way_to_other_tasks() -> None:
    record = records.GetTokenPairRecordResponse(top_sequences=token_pair_sequences([600], [600]))
    whole = b"".join(token_pair_record_pieces(record))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    assert await Assembler().assemble(token_pair_record_pieces(record)) == whole
    counting.cancel()
    assert turns > 3


def test_a_sequence_longer_than_a_piece_is_whole() -> None:
    sequence = [(f"t{index}", float(index)) for index in range(40_000)]
    record = records.GetTokenRecordResponse(top_sequences=token_sequences([sequence, [], sequence]))
    long, empty, again = decoded(token_record_pieces(record))["topActivations"]
    assert [(each["token"], each["scalar"]) for each in long] == sequence
    assert empty == []
    assert again == long


def node_table(rows: list[tuple[int, ...]], layers: list[int]) -> scalars.NodeTable:
    padded = [[*row, *([-1] * (3 - len(row)))] for row in rows]
    return scalars.NodeTable(
        node_types=[NODE_TYPES.value("mlp_neuron")] * len(rows),
        tensor_indices=[index for row in padded for index in row],
        layer_indices=layers,
        pass_type=PASS_TYPES.value("backward"),
    )


def derived(values: list[float]) -> scalars.DeriveComponentResponse:
    return scalars.DeriveComponentResponse(
        inference=scalars.InferenceResult(
            seconds=0.5, loss=-1.25, token_ids=[5, 6], tokens=["a", "\ufffd"]
        ),
        scalars=scalars.ComponentScalars(
            activations=to_tensor(np.array(values, dtype=np.float32)),
            nodes=node_table([(0, 3), (1, 3)], [2, -1]),
        ),
    )


def test_a_components_scalars() -> None:
    answer = decoded(derived_scalars_answer(derived([-1.0, 2.0]), None))
    assert answer == {
        "inferenceAndTokenData": {
            "inferenceTime": 0.5,
            "memoryUsedBefore": None,
            "memoryUsedAfter": None,
            "log": None,
            "loss": -1.25,
            "activationValueForBackwardPass": None,
            "tokensAsInts": [5, 6],
            "tokensAsStrings": ["a", "\ufffd"],
        },
        "derivedScalarsResponseData": {
            "responseDataType": "derived_scalars_response_data",
            "activations": [-1.0, 2.0],
            "normalizedActivations": None,
            "nodeIndices": [
                {
                    "nodeType": "mlp_neuron",
                    "tensorIndices": [0, 3],
                    "layerIndex": 2,
                    "passType": "backward",
                },
                {
                    "nodeType": "mlp_neuron",
                    "tensorIndices": [1, 3],
                    "layerIndex": None,
                    "passType": "backward",
                },
            ],
            "topTokens": None,
        },
    }


@pytest.mark.parametrize(
    ("values", "maximum", "expected"),
    [
        ([-1.0, 2.0], 4.0, [0.0, 0.5]),
        ([3.0, 2.0], 0.0, [0.0, 0.0]),
        ([3.0, math.nan], -1.0, [0.0, None]),
        ([math.nan, 8.0], 4.0, [None, 2.0]),
    ],
)
def test_scalars_are_normalised_by_a_records_maximum(
    values: list[float], maximum: float, expected: list[float | None]
) -> None:
    answer = decoded(derived_scalars_answer(derived(values), maximum))
    assert answer["derivedScalarsResponseData"]["normalizedActivations"] == expected


def test_top_nodes_with_the_last_token_and_sums_of_every_dimension() -> None:
    group = GROUP_IDS.value("write_norm")
    dst = DERIVED_SCALAR_TYPES.value
    sums = {"logits": np.float32(math.nan), "mlp_write_norm": np.ones(2, dtype=np.float32)}
    message = scalars.ListTopNodesResponse(
        top_nodes=scalars.TopNodes(
            nodes=node_table([(-1, 7), (2, -1, 4), (5,)], [0, 1, 2]),
            groups=[scalars.GroupScalars(group_id=group, values=to_tensor(np.arange(3.0)))],
            sums=[
                scalars.IntermediateSum(
                    group_id=group, derived_scalar_type=dst(name), values=to_tensor(values)
                )
                for name, values in sums.items()
            ],
            vocabulary_tokens=["x", "y", "z"],
        )
    )
    data = decoded(top_nodes_answer(message))["multipleTopKDerivedScalarsResponseData"]
    assert [node["tensorIndices"] for node in data["nodeIndices"]] == [[-1, 7], [2, -1, 4], [5]]
    assert data["activationsByGroupId"] == {"write_norm": [0.0, 1.0, 2.0]}
    assert data["vocabTokenStringsForIndices"] == ["x", "y", "z"]
    assert data["intermediateSumActivationsByDstByGroupId"] == {
        "write_norm": {
            "logits": {"tensorType": "tensor_0d", "value": None},
            "mlp_write_norm": {"tensorType": "tensor_1d", "value": [1.0, 1.0]},
        }
    }
