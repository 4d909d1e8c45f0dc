"""Answers of a batch, as the contract's messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_tensor
from services.scalars.answers.ranking import NodeScalars
from services.scalars.answers.results import (
    ComponentScalars,
    InferenceAnswer,
    SelectedTensors,
    SpecResult,
    TokenPairTable,
)
from services.scalars.answers.token_pair_attribution import TokenPairAttributions
from services.scalars.convert.answers import (
    component_scalars,
    inference_result,
    token_pair_sequences,
    top_nodes,
)
from services.scalars.requests.batches import answers_too_large
from services.scalars.vocabulary.scored_tokens import ScoredTokens


def batch_response(
    position: int, answer: InferenceAnswer, vocabulary: Sequence[str], max_bytes: int
) -> scalars.BatchDeriveResponse:
    """The answers of one inference; ResourceExhausted where a message can't hold them."""
    response = scalars.BatchDeriveResponse(
        position=position,
        inference=inference_result(answer.inference),
        results=[
            _named_result(name, result, answer, vocabulary) for name, result in answer.results
        ],
    )
    size = response.ByteSize()
    if size > max_bytes:
        largest = max(response.results, key=lambda each: each.ByteSize())
        raise answers_too_large(size, largest.name, max_bytes, f"inferences[{position}].specs")
    return response


def _named_result(
    name: str, result: SpecResult, answer: InferenceAnswer, vocabulary: Sequence[str]
) -> scalars.NamedResult:
    match result:
        case ComponentScalars():
            return scalars.NamedResult(name=name, component=component_scalars(result))
        case TokenPairTable():
            pairs = token_pair_sequences(answer.inference.token_strings, result.scalars)
            return scalars.NamedResult(name=name, component_by_token_pair=pairs)
        case NodeScalars():
            return scalars.NamedResult(name=name, top_nodes=top_nodes(result, vocabulary))
        case ScoredTokens():
            return scalars.NamedResult(name=name, scored_tokens=scored_tokens(result, vocabulary))
        case TokenPairAttributions():
            return scalars.NamedResult(
                name=name, token_pair_attribution=token_pair_attributions(result)
            )
        case SelectedTensors():
            layers = list(result.by_layer.values())
            return scalars.NamedResult(name=name, selection=to_tensor(np.stack(layers)))


def scored_tokens(found: ScoredTokens, vocabulary: Sequence[str]) -> scalars.ScoredTokens:
    """The lists of each node, empty where a node has none."""
    lists = []
    for ids, scores in (
        (found.top_ids, found.top_scores),
        (found.bottom_ids, found.bottom_scores),
    ):
        lists.append((ids.tolist(), scores.tolist(), found.normalized(scores).tolist()))
    top, bottom = (list(zip(*each, strict=True)) for each in lists)
    return scalars.ScoredTokens(
        nodes=[
            scalars.TopTokens(top=_entries(first, vocabulary), bottom=_entries(last, vocabulary))
            if scored
            else scalars.TopTokens()
            for scored, first, last in zip(found.scored.tolist(), top, bottom, strict=True)
        ]
    )


def _entries(
    lists: tuple[list[int], list[float], list[float]], vocabulary: Sequence[str]
) -> list[scalars.ScoredToken]:
    return [
        scalars.ScoredToken(token=vocabulary[token], scalar=score, normalized_scalar=normalized)
        for token, score, normalized in zip(*lists, strict=True)
    ]


def token_pair_attributions(found: TokenPairAttributions) -> scalars.TokenPairAttributions:
    """The tokens of each node, empty where a node has none."""

    def rows(array: NDArray[np.int64] | NDArray[np.float32]) -> list[list[float]]:
        listed: list[list[float]] = array.tolist()
        return listed

    columns = (
        found.attributed.tolist(),
        found.top_tokens.tolist(),
        rows(found.top_values),
        found.bottom_tokens.tolist(),
        rows(found.bottom_values),
    )
    return scalars.TokenPairAttributions(
        nodes=[
            scalars.TokenPairAttribution(
                top_tokens=top,
                top_values=top_values,
                bottom_tokens=bottom,
                bottom_values=bottom_values,
            )
            if attributed
            else scalars.TokenPairAttribution()
            for attributed, top, top_values, bottom, bottom_values in zip(*columns, strict=True)
        ]
    )
