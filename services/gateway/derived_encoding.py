"""What was derived from a run as JSON: the parts of the inference routes' answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neuropil import names
from neuropil.common import v1 as common
from neuropil.scalars import v1
from neuropil.tensors import to_array
from services.gateway.encoding import TokenPairRows, bare, bracket, encode, numbers, objects
from services.gateway.normalization import normalize_by_maximum, normalize_with_record

_NODES_A_PIECE = 1024
_LISTS_A_PIECE = 32
_TOKEN_KEYS = (b'"scalar":', b',"normalizedScalar":')


class NodeList:
    """The nodes of a table, of which several parts of an answer may be about.

    `renamed`: tokens that the client named otherwise, from the end for example.
    """

    def __init__(self, table: v1.NodeTable, renamed: Mapping[int, int] | None = None) -> None:
        self._table = table
        self._renamed = dict(renamed or {})
        self._kept: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self._table.node_types)

    def is_of(self, table: v1.NodeTable) -> bool:
        """Whether these are the nodes of `table` too."""
        return self._table is table or self._table == table

    def pieces(self) -> Iterator[bytes]:
        """An array of the nodes; encoded once."""
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        for piece in bracket(self._bare_pieces()):
            kept.append(piece)
            yield piece
        self._kept = kept

    def _bare_pieces(self) -> Iterator[bytes]:
        table, count = self._table, len(self)
        types = [names.NODE_TYPES.name(each) for each in table.node_types]
        layers = [None if layer < 0 else layer for layer in table.layer_indices]
        indices = np.asarray(table.tensor_indices, dtype=np.int64).reshape(count, 3)
        # A node has as many indices as there are before its trailing -1.
        present = indices != -1
        sizes = np.where(present.any(axis=1), 3 - present[:, ::-1].argmax(axis=1), 0).tolist()
        for token, name in self._renamed.items():
            indices[indices[:, 0] == token, 0] = name
        rows = indices.tolist()
        pass_type = names.PASS_TYPES.name(table.pass_type)
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


def token_names(token_index: int | None, token_count: int) -> dict[int, int]:
    """What a client that asked for nodes at one token calls it, where it counted from the end."""
    if token_index is None or token_index >= 0:
        return {}
    return {token_count + token_index: token_index}


def run_data(result: v1.InferenceResult) -> bytes:
    """What a run gave besides activations."""

    def optional(name: str) -> Any:
        return getattr(result, name) if result.HasField(name) else None

    return encode(
        {
            "inferenceTime": result.seconds,
            "memoryUsedBefore": optional("memory_used_before"),
            "memoryUsedAfter": optional("memory_used_after"),
            "log": None,
            "loss": optional("loss"),
            "activationValueForBackwardPass": optional("traced_activation"),
            "tokensAsInts": list(result.token_ids),
            "tokensAsStrings": list(result.tokens),
        }
    )


def component_pieces(
    scalars: v1.ComponentScalars, record_maximum: float | None = None
) -> Iterator[bytes]:
    """The scalars of one component.

    With the largest activation of a record they are normalised too: clip(a, 0) / maximum, 0 where
    the record has no positive activation.
    """
    activations = to_array(scalars.activations)
    normalized = (
        None if record_maximum is None else normalize_by_maximum(activations, record_maximum)
    )
    yield b'{"responseDataType":"derived_scalars_response_data"'
    yield b',"activations":' + encode(activations)
    yield b',"normalizedActivations":' + encode(normalized)
    yield b',"nodeIndices":'
    yield from NodeList(scalars.nodes).pieces()
    top = [scalars.top_tokens] if scalars.HasField("top_tokens") else []
    yield b',"topTokens":' + (_top_tokens(top)[0] if top else b"null") + b"}"


def token_pair_pieces(
    prompt: common.TokenPairSequences, record: common.TokenPairSequences | None = None
) -> Iterator[bytes]:
    """The scalars of one component by token pair; the prompt is the only sequence.

    With a record's top sequences they are normalised by the largest in prompt and record.
    """
    scalars = prompt if record is None else normalize_with_record(prompt, record)
    yield b'{"responseDataType":"derived_attention_scalars_response_data"'
    yield b',"tokenAndAttentionScalarsList":'
    yield from TokenPairRows(scalars).pieces(0, len(scalars.tokens))
    yield b"}"


def top_nodes_pieces(top: v1.TopNodes, nodes: NodeList) -> Iterator[bytes]:
    """The strongest nodes, each group's scalars of them, and sums over all nodes."""
    sums: dict[str, dict[str, dict[str, Any]]] = {}
    for each in top.sums:
        group = sums.setdefault(names.GROUP_IDS.name(each.group_id), {})
        values = to_array(each.values)
        group[names.DERIVED_SCALAR_TYPES.name(each.derived_scalar_type)] = {
            "tensorType": f"tensor_{values.ndim}d",
            "value": values if values.ndim else values.item(),
        }
    yield b'{"responseDataType":"multiple_top_k_derived_scalars_response_data"'
    yield b',"activationsByGroupId":' + encode(
        {names.GROUP_IDS.name(each.group_id): to_array(each.values) for each in top.groups}
    )
    yield b',"nodeIndices":'
    yield from nodes.pieces()
    yield b',"vocabTokenStringsForIndices":' + encode(list(top.vocabulary_tokens) or None)
    yield b',"intermediateSumActivationsByDstByGroupId":' + encode(sums) + b"}"


def scored_tokens_pieces(scored: v1.ScoredTokens, nodes: NodeList) -> Iterator[bytes]:
    """Vocabulary entries of each node; null for a node that has none."""
    _check_length(len(scored.nodes), nodes)
    yield b'{"responseDataType":"scored_tokens_response_data","nodeIndices":'
    yield from nodes.pieces()
    yield b',"topTokensList":'

    def lists() -> Iterator[bytes]:
        for start in range(0, len(scored.nodes), _LISTS_A_PIECE):
            yield b",".join(_top_tokens(scored.nodes[start : start + _LISTS_A_PIECE]))

    yield from bracket(lists())
    yield b"}"


def unscored_tokens_pieces(nodes: NodeList) -> Iterator[bytes]:
    """Null for each of the nodes."""
    yield b'{"responseDataType":"scored_tokens_response_data","nodeIndices":'
    yield from nodes.pieces()
    yield b',"topTokensList":' + encode([None] * len(nodes)) + b"}"


def attribution_pieces(attributions: v1.TokenPairAttributions, nodes: NodeList) -> Iterator[bytes]:
    """Attended-to tokens of each node; null for a node that has none."""
    _check_length(len(attributions.nodes), nodes)
    yield b'{"responseDataType":"token_pair_attribution_response_data","nodeIndices":'
    yield from nodes.pieces()
    yield b',"topTokensAttendedToList":' + encode(
        [
            {
                "tokenIndices": list(each.top_tokens),
                "attributions": np.asarray(each.top_values, dtype=np.float32),
            }
            if each.top_tokens
            else None
            for each in attributions.nodes
        ]
    )
    yield b"}"


def _check_length(count: int, nodes: NodeList) -> None:
    if count != len(nodes):
        raise ValueError(f"an answer about {count} nodes where there are {len(nodes)}")


def _top_tokens(nodes: Sequence[v1.TopTokens]) -> list[bytes]:
    """The lists of each node, null where it has none.

    The scores of all of them are encoded as one column; they were computed in single precision.
    """
    entries = [entry for node in nodes for side in (node.top, node.bottom) for entry in side]
    if not entries:
        return [b"null"] * len(nodes)
    tokens = [entry.token for entry in entries]
    columns = [
        numbers(np.fromiter((entry.scalar for entry in entries), np.float32, len(entries))),
        numbers(
            np.fromiter((entry.normalized_scalar for entry in entries), np.float32, len(entries))
        ),
    ]
    texts = []
    start = 0
    for node in nodes:
        middle = start + len(node.top)
        end = middle + len(node.bottom)
        if start == end:
            texts.append(b"null")
            continue
        sides = [
            objects(tokens[part], _TOKEN_KEYS, [column[part] for column in columns])
            for part in (slice(start, middle), slice(middle, end))
        ]
        texts.append(b'{"top":[%b],"bottom":[%b]}' % (sides[0], sides[1]))
        start = end
    return texts
