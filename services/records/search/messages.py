"""Searches and their answers as messages of the contract."""

from __future__ import annotations

from neuropil.records import v1
from services.records.convert import explanation_message
from services.records.record_messages import component_message
from services.records.search.search import Hits, Query


def query_of(request: v1.SearchExplanationsRequest) -> Query:
    """What a request searches."""
    return Query(
        text=request.query,
        semantic=request.mode == v1.SEARCH_MODE_SEMANTIC,
        layer_indices=tuple(sorted(set(request.layer_indices))),
        min_score=request.min_score if request.HasField("min_score") else None,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def hits_message(hits: Hits) -> v1.SearchExplanationsResponse:
    """A page of hits."""
    return v1.SearchExplanationsResponse(
        hits=[
            v1.SearchHit(
                component=component_message(hit.component),
                explanation=explanation_message(hit.explanation),
                relevance=hit.relevance,
            )
            for hit in hits.hits
        ],
        next_page_token=hits.next_page_token,
        index=v1.SearchIndex(
            num_explanations=hits.num_explanations,
            num_indexed=hits.num_indexed,
            complete=hits.complete,
            num_unreadable_files=hits.num_unreadable_files,
        ),
        num_matches=hits.num_matches,
    )
