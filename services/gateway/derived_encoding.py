"""Answers of the inference routes as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from neuropil import names
from neuropil.common import v1 as common
from neuropil.scalars import v1
from neuropil.tensors import to_array
from services.gateway.encoding import TokenPairRows, bare, bracket, encode
from services.gateway.normalization import normalize_by_maximum, normalize_with_record

_NODES_A_PIECE = 1024


def derived_scalars_pieces(
    derived: v1.DeriveComponentResponse, record_maximum: float | None
) -> Iterator[bytes]:
    """Answer of /derived_scalars.

    With the largest activation of a record the scalars are normalised too: clip(a, 0) / maximum, 0
    where the record has no positive activation.
    """
    scalars = derived.scalars
    activations = to_array(scalars.activations)
    normalized = (
        None if record_maximum is None else normalize_by_maximum(activations, record_maximum)
    )
    yield b'{"inferenceAndTokenData":' + encode(_inference(derived.inference))
    yield b',"derivedScalarsResponseData":{"responseDataType":"derived_scalars_response_data"'
    yield b',"activations":' + encode(activations)
    yield b',"normalizedActivations":' + encode(normalized)
    yield b',"nodeIndices":'
    yield from _nodes(scalars.nodes)
    top = scalars.top_tokens if scalars.HasField("top_tokens") else None
    yield b',"topTokens":' + encode(None if top is None else _top_tokens(top)) + b"}}"


def derived_attention_scalars_pieces(
    derived: v1.DeriveComponentByTokenPairResponse, record: common.TokenPairSequences | None
) -> Iterator[bytes]:
    """Answer of /derived_attention_scalars; the prompt is the only sequence.

    With a record's top sequences the scalars are normalised by the largest in prompt and record.
    """
    scalars = derived.scalars if record is None else normalize_with_record(derived.scalars, record)
    yield b'{"inferenceAndTokenData":' + encode(_inference(derived.inference))
    yield (
        b',"derivedAttentionScalarsResponseData":'
        b'{"responseDataType":"derived_attention_scalars_response_data"'
        b',"tokenAndAttentionScalarsList":'
    )
    yield from TokenPairRows(scalars).pieces(0, len(scalars.tokens))
    yield b"}}"


def top_nodes_pieces(
    answer: v1.ListTopNodesResponse, token_index: int | None = None
) -> Iterator[bytes]:
    """Answer of /multiple_top_k_derived_scalars.

    Nodes at the one token that was asked for are named by `token_index` as the client wrote it,
    from the end where it is negative.
    """
    top = answer.top_nodes
    sums: dict[str, dict[str, dict[str, Any]]] = {}
    for each in top.sums:
        group = sums.setdefault(names.GROUP_IDS.name(each.group_id), {})
        values = to_array(each.values)
        group[names.DERIVED_SCALAR_TYPES.name(each.derived_scalar_type)] = {
            "tensorType": f"tensor_{values.ndim}d",
            "value": values if values.ndim else values.item(),
        }
    yield b'{"inferenceAndTokenData":' + encode(_inference(answer.inference))
    yield (
        b',"multipleTopKDerivedScalarsResponseData":'
        b'{"responseDataType":"multiple_top_k_derived_scalars_response_data"'
    )
    yield b',"activationsByGroupId":' + encode(
        {names.GROUP_IDS.name(each.group_id): to_array(each.values) for each in top.groups}
    )
    yield b',"nodeIndices":'
    yield from _nodes(top.nodes, token_index)
    yield b',"vocabTokenStringsForIndices":' + encode(list(top.vocabulary_tokens) or None)
    yield b',"intermediateSumActivationsByDstByGroupId":' + encode(sums) + b"}}"


def _inference(result: v1.InferenceResult) -> dict[str, Any]:
    def optional(name: str) -> Any:
        return getattr(result, name) if result.HasField(name) else None

    return {
        "inferenceTime": result.seconds,
        "memoryUsedBefore": optional("memory_used_before"),
        "memoryUsedAfter": optional("memory_used_after"),
        "log": None,
        "loss": optional("loss"),
        "activationValueForBackwardPass": optional("traced_activation"),
        "tokensAsInts": list(result.token_ids),
        "tokensAsStrings": list(result.tokens),
    }


def _nodes(nodes: v1.NodeTable, token_index: int | None = None) -> Iterator[bytes]:
    count = len(nodes.node_types)
    types = [names.NODE_TYPES.name(each) for each in nodes.node_types]
    layers = [None if layer < 0 else layer for layer in nodes.layer_indices]
    indices = np.asarray(nodes.tensor_indices, dtype=np.int64).reshape(count, 3)
    # A node has as many indices as there are before its trailing -1; a token may be -1, the last.
    present = indices != -1
    sizes = np.where(present.any(axis=1), 3 - present[:, ::-1].argmax(axis=1), 0).tolist()
    if token_index is not None:
        indices[:, 0] = token_index
    rows = indices.tolist()
    pass_type = names.PASS_TYPES.name(nodes.pass_type)

    def pieces() -> Iterator[bytes]:
        for start in range(0, count, _NODES_A_PIECE):
            part = slice(start, start + _NODES_A_PIECE)
            yield bare(
                [
                    {
                        "nodeType": node_type,
                        "tensorIndices": row[:size],
                        "layerIndex": layer,
                        "passType": pass_type,
                    }
                    for node_type, row, size, layer in zip(
                        types[part], rows[part], sizes[part], layers[part], strict=True
                    )
                ]
            )

    return bracket(pieces())


def _top_tokens(top_tokens: v1.TopTokens) -> dict[str, Any]:
    return {
        name: [
            {
                "token": each.token,
                "scalar": each.scalar,
                "normalizedScalar": each.normalized_scalar,
            }
            for each in entries
        ]
        for name, entries in (("top", top_tokens.top), ("bottom", top_tokens.bottom))
    }
