"""What was derived, as the contract's messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil import names
from neuropil.common import v1 as common
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_tensor
from services.scalars.answers import token_pairs
from services.scalars.answers.node_lists import NodeList
from services.scalars.answers.ranking import NodeScalars
from services.scalars.answers.results import ComponentScalars, InferenceResult
from services.scalars.convert.frames import answer_too_large
from services.scalars.model.locations import NodeType
from services.scalars.model.tokenizer import TextTokenizer
from services.scalars.vocabulary.top_tokens import TopTokens

_AT_ONCE = 10_000
"""Entries that are copied into a message in one go: other threads have to wait meanwhile."""


def _extend(field: Any, column: NDArray[Any]) -> None:
    """Adds a column to a repeated field."""
    for first in range(0, len(column), _AT_ONCE):
        field.extend(column[first : first + _AT_ONCE].tolist())


def tokenized_texts(
    texts: Iterable[str], tokenizer: TextTokenizer, max_bytes: int
) -> scalars.TokenizeResponse:
    """Ids and strings of each text's tokens.

    Raises ResourceExhausted where a message can't hold them, before further texts are encoded.
    """
    response = scalars.TokenizeResponse()
    size = 0
    for text in texts:
        ids = tokenizer.encode(text)
        encoded = response.texts.add()
        for first in range(0, len(ids), _AT_ONCE):
            some = ids[first : first + _AT_ONCE]
            encoded.token_ids.extend(some)
            encoded.tokens.extend(tokenizer.strings[token] for token in some)
        size += encoded.ByteSize()
        if size > max_bytes:
            raise answer_too_large(size, max_bytes, "texts")
    return response


def inference_result(result: InferenceResult) -> scalars.InferenceResult:
    """What a run gave besides activations."""
    return scalars.InferenceResult(
        seconds=result.seconds,
        memory_used_before=result.memory_used_before,
        memory_used_after=result.memory_used_after,
        loss=result.loss,
        traced_activation=result.traced_activation,
        token_ids=result.tokens,
        tokens=result.token_strings,
    )


def node_table(nodes: NodeList) -> scalars.NodeTable:
    """Nodes column by column."""
    types = np.array([names.NODE_TYPES.value(each) for each in nodes.node_types], dtype=np.int64)
    table = scalars.NodeTable(pass_type=names.PASS_TYPES.value(nodes.pass_type))
    _extend(table.node_types, types[nodes.kinds])
    _extend(table.tensor_indices, nodes.indices.reshape(-1))
    _extend(table.layer_indices, nodes.layers)
    return table


def component_scalars(derived: ComponentScalars) -> scalars.ComponentScalars:
    """One component's scalars."""
    return scalars.ComponentScalars(
        activations=to_tensor(derived.activations),
        nodes=node_table(derived.nodes),
        top_tokens=None if derived.top_tokens is None else _top_tokens(derived.top_tokens),
    )


def _top_tokens(top_tokens: TopTokens) -> scalars.TopTokens:
    top, bottom = (
        [
            scalars.ScoredToken(
                token=each.token,
                scalar=each.scalar,
                normalized_scalar=each.normalized_scalar,
            )
            for each in entries
        ]
        for entries in (top_tokens.top, top_tokens.bottom)
    )
    return scalars.TopTokens(top=top, bottom=bottom)


def token_pair_sequences(
    tokens: Sequence[str], by_query_and_key: NDArray[np.float32]
) -> common.TokenPairSequences:
    """One component's scalars by token pair, with summaries."""
    pairs = token_pairs.summarize(by_query_and_key)

    def summary(each: token_pairs.TokenSummary) -> common.TokenPairSummary:
        return common.TokenPairSummary(
            values=to_tensor(each.values), normalized_values=to_tensor(each.normalized)
        )

    return common.TokenPairSequences(
        tokens=tokens,
        sequence_lengths=[len(tokens)],
        attended_to_caps=[len(tokens)],
        activations=to_tensor(pairs.activations),
        normalized_activations=to_tensor(pairs.normalized),
        total_in=summary(pairs.total_in),
        max_in=summary(pairs.max_in),
        total_out=summary(pairs.total_out),
        max_out=summary(pairs.max_out),
    )


def top_nodes(found: NodeScalars, vocabulary: Sequence[str]) -> scalars.TopNodes:
    """Listed nodes; their vocabulary entries where they are some."""
    nodes = found.nodes
    of_vocabulary = nodes.node_types == (NodeType.VOCAB_TOKEN,)
    last = (nodes.indices >= 0).sum(axis=1) - 1
    return scalars.TopNodes(
        nodes=node_table(nodes),
        groups=[
            scalars.GroupScalars(
                group_id=names.GROUP_IDS.value(name),
                values=to_tensor(values),
            )
            for name, values in found.values.items()
        ],
        sums=[
            scalars.IntermediateSum(
                group_id=names.GROUP_IDS.value(group),
                derived_scalar_type=names.DERIVED_SCALAR_TYPES.value(dst),
                values=to_tensor(values),
            )
            for (group, dst), values in found.sums.items()
        ],
        vocabulary_tokens=[
            vocabulary[token] for token in nodes.indices[np.arange(len(nodes)), last].tolist()
        ]
        if of_vocabulary
        else (),
    )
