"""Whole answers of the inference routes as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from neuropil.common import v1 as common
from neuropil.scalars import v1
from services.gateway.derived_encoding import (
    NodeList,
    attribution_pieces,
    component_pieces,
    run_data,
    scored_tokens_pieces,
    token_names,
    token_pair_pieces,
    top_nodes_pieces,
    unscored_tokens_pieces,
)
from services.gateway.encoding import array, encode
from services.gateway.requests.batches import BatchedRequest
from services.gateway.requests.specs import (
    MultipleTopKDerivedScalarsRequestSpec,
    ScoredTokensRequestSpec,
    TokenPairAttributionRequestSpec,
)

Scale = float | common.TokenPairSequences
"""What a record normalises by: its largest activation, or its top sequences of token pairs."""


def derived_scalars_answer(
    derived: v1.DeriveComponentResponse, record_maximum: float | None
) -> Iterator[bytes]:
    """Answer of /derived_scalars, normalised by the largest activation of a record, if any."""
    yield b'{"inferenceAndTokenData":' + run_data(derived.inference)
    yield b',"derivedScalarsResponseData":'
    yield from component_pieces(derived.scalars, record_maximum)
    yield b"}"


def derived_attention_scalars_answer(
    derived: v1.DeriveComponentByTokenPairResponse, record: common.TokenPairSequences | None
) -> Iterator[bytes]:
    """Answer of /derived_attention_scalars, normalised with a record's top sequences, if any."""
    yield b'{"inferenceAndTokenData":' + run_data(derived.inference)
    yield b',"derivedAttentionScalarsResponseData":'
    yield from token_pair_pieces(derived.scalars, record)
    yield b"}"


def top_nodes_answer(
    answer: v1.ListTopNodesResponse, token_index: int | None = None
) -> Iterator[bytes]:
    """Answer of /multiple_top_k_derived_scalars.

    Nodes at the one token that was asked for are named by `token_index` as the client wrote it.
    """
    renamed = token_names(token_index, len(answer.inference.token_ids))
    yield b'{"inferenceAndTokenData":' + run_data(answer.inference)
    yield b',"multipleTopKDerivedScalarsResponseData":'
    yield from top_nodes_pieces(answer.top_nodes, NodeList(answer.top_nodes.nodes, renamed))
    yield b"}"


class BatchAnswer:
    """Answer of /batched and /batched_tdb.

    `scales`: what scalars are normalised by, by position and name of the spec.
    """

    def __init__(self, body: BatchedRequest, scales: Mapping[tuple[int, str], Scale]) -> None:
        self._specs = [each.processing_request_spec_by_name for each in body.inference_sub_requests]
        self._scales = scales
        # As all inferences list the nodes of specs of one name, they are mostly encoded once.
        self._lists: dict[str, NodeList] = {}

    def pieces(self, responses: Sequence[v1.BatchDeriveResponse]) -> Iterator[bytes]:
        """The answer to responses that are in the order of the request."""
        yield b'{"inferenceSubResponses":'
        yield from array(self._inference(each) for each in responses)
        yield b"}"

    def _inference(self, response: v1.BatchDeriveResponse) -> Iterator[bytes]:
        yield b'{"inferenceResponse":{"inferenceAndTokenData":' + run_data(response.inference)
        yield b'},"processingResponseDataByName":{'
        token_count = len(response.inference.token_ids)
        for result in response.results:
            if result.HasField("top_nodes"):
                self._note_nodes(result.name, result.top_nodes.nodes, token_count)
        derived = {result.name: result for result in response.results}
        for number, name in enumerate(self._specs[response.position]):
            yield (b"," if number else b"") + encode(name) + b":"
            found = derived.get(name)
            if found is None:
                # Null for every node, so that nothing was derived for it.
                yield from unscored_tokens_pieces(self._nodes(response.position, name))
            else:
                yield from self._result(response.position, found)
        yield b"}}"

    def _note_nodes(self, name: str, table: v1.NodeTable, token_count: int) -> None:
        known = self._lists.get(name)
        if known is not None and known.is_of(table):
            return
        renamed: dict[int, int] = {}
        for specs in self._specs:
            spec = specs.get(name)
            if isinstance(spec, MultipleTopKDerivedScalarsRequestSpec):
                renamed |= token_names(spec.token_index, token_count)
        self._lists[name] = NodeList(table, renamed)

    def _result(self, position: int, result: v1.NamedResult) -> Iterator[bytes]:
        scale = self._scales.get((position, result.name))
        match result.WhichOneof("result"):
            case "component":
                return component_pieces(
                    result.component, scale if isinstance(scale, float) else None
                )
            case "component_by_token_pair":
                record = scale if isinstance(scale, common.TokenPairSequences) else None
                return token_pair_pieces(result.component_by_token_pair, record)
            case "top_nodes":
                return top_nodes_pieces(result.top_nodes, self._lists[result.name])
            case "scored_tokens":
                return scored_tokens_pieces(
                    result.scored_tokens, self._nodes(position, result.name)
                )
            case "token_pair_attribution":
                return attribution_pieces(
                    result.token_pair_attribution, self._nodes(position, result.name)
                )
            case other:
                raise ValueError(f"an answer of kind {other}, which no request asks for")

    def _nodes(self, position: int, name: str) -> NodeList:
        spec = self._specs[position][name]
        if not isinstance(spec, ScoredTokensRequestSpec | TokenPairAttributionRequestSpec):
            raise ValueError(f"an answer about nodes to spec {name!r}, which has none")
        return self._lists[spec.depends_on_spec_name]
