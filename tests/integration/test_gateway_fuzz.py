"""Whatever a client sends, it gets an answer that says what is wrong, and never a defect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.integration.gateway_running import Servicer, gateway_to

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["mlp_post_act", "All", "forward", "logit_diff", "attn.q", "mlp_neuron", "\ud800", "1", 0]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
_INDEX = {"dst": "mlp_post_act", "layerIndex": 0, "activationIndex": 0}
_PLACE = {
    "activationLocationType": "attn.q",
    "tensorIndices": [0, "All"],
    "layerIndex": 0,
    "passType": "forward",
}
_NODE = {
    "nodeType": "mlp_neuron",
    "tensorIndices": [0, None],
    "layerIndex": 0,
    "passType": "forward",
}
_INFERENCE = {
    "prompt": "a",
    "ablationSpecs": [{"index": _PLACE, "value": 1.0}],
    "lossFnConfig": {"name": "logit_diff", "targetTokens": ["a"], "distractorTokens": ["b"]},
    "traceConfig": {"nodeIndex": _NODE, "preOrPostAct": "pre", "detachLayerNormScale": True},
    "activationIndexForWithinLayerGrad": _PLACE,
}
_BODIES: dict[str, Any] = {
    "/neuron_record": _INDEX | {"datasets": ["a"]},
    "/attention_head_record": _INDEX | {"datasets": ["a"], "includeMoments": True},
    "/existing_explanations": _INDEX | {"explanationDatasets": ["a"], "neuronDataset": None},
    "/score": _INDEX | {"datasets": ["a"], "explanation": "e", "maxSequences": 3},
    "/derived_scalars": {
        "inferenceRequestSpec": _INFERENCE,
        "derivedScalarsRequestSpec": _INDEX
        | {
            "passType": "forward",
            "numTopTokens": 3,
            "normalizeActivationsUsingNeuronRecord": _INDEX | {"datasets": ["a"]},
        },
    },
    "/derived_attention_scalars": {
        "inferenceRequestSpec": _INFERENCE,
        "derivedAttentionScalarsRequestSpec": _INDEX,
    },
    "/multiple_top_k_derived_scalars": {
        "inferenceRequestSpec": _INFERENCE,
        "multipleTopKDerivedScalarsRequestSpec": {
            "dstListByGroupId": {"singleton": ["logits"]},
            "tokenIndex": 0,
            "topAndBottomK": 3,
            "dimensionsToKeepForIntermediateSum": ["sequence_tokens"],
        },
    },
    "/batched": {
        "inferenceSubRequests": [
            {
                "inferenceRequestSpec": _INFERENCE,
                "processingRequestSpecByName": {
                    "top": {"dstListByGroupId": {"singleton": ["logits"]}, "topAndBottomK": 3},
                    "scored": {
                        "tokenScoringType": "upvoted_output_tokens",
                        "numTokens": 3,
                        "dependsOnSpecName": "top",
                    },
                    "pairs": {"numTokensAttendedTo": 3, "dependsOnSpecName": "top"},
                    "component": _INDEX | {"specType": "derived_scalars_request_spec"},
                },
            }
        ]
    },
    "/batched_tdb": {
        "subRequests": [
            {
                "prompt": "a",
                "targetTokens": ["a"],
                "distractorTokens": ["b"],
                "componentTypeForMlp": "neuron",
                "componentTypeForAttention": "attention_head",
                "topAndBottomKForNodeTable": 3,
                "hideEarlyLayersWhenAblating": True,
                "nodeAblations": [{"nodeIndex": _NODE | {"tensorIndices": [0, 1]}, "value": 0.5}],
                "upstreamNodeToTrace": {"nodeIndex": _NODE, "attentionTraceType": "V"},
                "downstreamNodeToTrace": {"nodeIndex": _NODE, "attentionTraceType": "QK"},
            }
        ]
    },
}


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _paths(inner, (*path, index))
    return found


def _with(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    changed = dict(body) if isinstance(body, dict) else list(body)
    changed[first] = _with(changed[first], tuple(rest), value)
    return changed


@st.composite
def _requests(draw: st.DrawFn) -> tuple[str, Any]:
    route = draw(st.sampled_from(sorted(_BODIES)))
    body = _BODIES[route]
    for _ in range(draw(st.integers(1, 2))):
        body = _with(body, draw(st.sampled_from(_paths(body))), draw(_VALUES))
    return route, body


@settings(
    max_examples=25,
    deadline=None,
    # Shrinking would start hundreds of gateways.
    phases=[Phase.generate],
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(requests=st.lists(_requests(), min_size=5, max_size=20))
async def test_no_body_makes_a_defect(requests: list[tuple[str, Any]]) -> None:
    async with gateway_to(records=Servicer(), scalars=Servicer(), simulation=Servicer()) as client:
        for route, body in requests:
            answer = await client.post(
                route,
                content=json.dumps(body).encode(),
                headers={"content-type": "application/json"},
            )
            # 501: it got past the gateway to services that serve nothing.
            assert answer.status_code in {400, 422, 501}, (route, body, answer.text)
            assert answer.json()["message"]


@pytest.mark.parametrize("route", sorted(_BODIES))
async def test_the_bodies_that_are_changed_are_right_before(route: str) -> None:
    async with gateway_to(records=Servicer(), scalars=Servicer(), simulation=Servicer()) as client:
        assert (await client.post(route, json=_BODIES[route])).status_code == 501
