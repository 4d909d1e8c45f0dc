"""Batches as messages of the contract, and where a field of these stands in a body of /batched."""

from __future__ import annotations

import re
from collections.abc import Mapping

from neuropil import names
from neuropil.scalars import v1
from services.gateway.inference import (
    component_by_token_pair_spec,
    component_spec,
    inference_message,
    top_nodes_spec,
)
from services.gateway.paths import json_path
from services.gateway.requests.batches import (
    BatchedRequest,
    InferenceSubRequest,
    ProcessingRequestSpec,
)
from services.gateway.requests.specs import (
    DerivedAttentionScalarsRequestSpec,
    DerivedScalarsRequestSpec,
    MultipleTopKDerivedScalarsRequestSpec,
    ScoredTokensRequestSpec,
)

_UNSCORED = ("input_tokens_that_upvote_attn_q", "input_tokens_that_upvote_attn_k")
PLACE = re.compile(
    r"inferences\[(?P<position>\d+)\]"
    r"(\.(?P<run>inference)|\.specs\[(?P<spec>\d+)\](\.\w+)?)?"
    r"(\.(?P<rest>.+))?"
)
"""A field of a batch: which inference, of it the run or which spec, and the path from there on."""


def batch_request(body: BatchedRequest) -> v1.BatchDeriveRequest:
    """Several runs, and what to derive from each."""
    return v1.BatchDeriveRequest(
        inferences=[batch_inference(each) for each in body.inference_sub_requests]
    )


def batch_inference(body: InferenceSubRequest) -> v1.BatchInference:
    """A run, and what to derive from it."""
    return v1.BatchInference(
        inference=inference_message(body.inference_request_spec),
        specs=[_named_spec(name, spec) for name, spec in derived_specs(body).items()],
    )


def derived_specs(body: InferenceSubRequest) -> dict[str, ProcessingRequestSpec]:
    """The specs that the model is asked about, in the order of the body.

    What queries and keys of heads read is null on these routes, whatever a node is: nothing is
    derived for it.
    """
    specs = body.processing_request_spec_by_name
    return {name: spec for name, spec in specs.items() if not _is_null(spec, specs)}


def _is_null(spec: ProcessingRequestSpec, specs: Mapping[str, ProcessingRequestSpec]) -> bool:
    return (
        isinstance(spec, ScoredTokensRequestSpec)
        and spec.token_scoring_type.value in _UNSCORED
        # One that depends on nothing is refused like all others.
        and isinstance(specs.get(spec.depends_on_spec_name), MultipleTopKDerivedScalarsRequestSpec)
    )


def _named_spec(name: str, spec: ProcessingRequestSpec) -> v1.NamedSpec:
    if isinstance(spec, MultipleTopKDerivedScalarsRequestSpec):
        return v1.NamedSpec(name=name, top_nodes=top_nodes_spec(spec))
    if isinstance(spec, DerivedScalarsRequestSpec):
        return v1.NamedSpec(name=name, component=component_spec(spec))
    if isinstance(spec, DerivedAttentionScalarsRequestSpec):
        return v1.NamedSpec(name=name, component_by_token_pair=component_by_token_pair_spec(spec))
    if isinstance(spec, ScoredTokensRequestSpec):
        scored = v1.ScoredTokensSpec(
            scoring=names.TOKEN_SCORINGS.value(spec.token_scoring_type.value),
            token_count=spec.num_tokens,
            depends_on=spec.depends_on_spec_name,
        )
        return v1.NamedSpec(name=name, scored_tokens=scored)
    attribution = v1.TokenPairAttributionSpec(
        attended_to_token_count=spec.num_tokens_attended_to, depends_on=spec.depends_on_spec_name
    )
    return v1.NamedSpec(name=name, token_pair_attribution=attribution)


class BatchPath:
    """Gives a field of the contract's batch as it stands in a body of /batched."""

    def __init__(self, body: BatchedRequest) -> None:
        self._specs = [list(derived_specs(each).items()) for each in body.inference_sub_requests]

    def __call__(self, path: str) -> str:
        """The path in the body."""
        place = PLACE.fullmatch(path)
        if place is None:
            return "inferenceSubRequests"
        position = int(place["position"])
        sub_request = f"inferenceSubRequests[{position}]"
        rest = place["rest"] or ""
        if place["run"]:
            return json_path(rest, f"{sub_request}.inferenceRequestSpec")
        if place["spec"] is None:
            return json_path(rest, sub_request)
        name, spec = self._specs[position][int(place["spec"])]
        groups = (
            [group.value for group in spec.dst_list_by_group_id]
            if isinstance(spec, MultipleTopKDerivedScalarsRequestSpec)
            else []
        )
        return json_path(rest, spec_path(position, name), groups)


def spec_path(position: int, name: str) -> str:
    """Where a spec stands in a body of /batched."""
    return f"inferenceSubRequests[{position}].processingRequestSpecByName.{name}"
