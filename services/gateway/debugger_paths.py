"""Fields of the contract's batch as they stand in a body of /batched_tdb."""

from __future__ import annotations

import re

from services.gateway.batches import PLACE
from services.gateway.paths import json_path
from services.gateway.requests.debugger import BatchedTdbRequest

_ABLATION = re.compile(r"ablations\[(\d+)\](?:\.(.*))?")
_TRACE = re.compile(r"trace(\.downstream)?(?:\.(.*))?")
_SCALAR_TYPE = re.compile(r"groups\[\d+\]\.derived_scalar_types\[(\d)\]")


class DebuggerPath:
    """Gives a field of the contract's batch as it stands in a body of /batched_tdb."""

    def __init__(self, body: BatchedTdbRequest) -> None:
        self._sub_requests = body.sub_requests

    def __call__(self, path: str) -> str:
        """The path in the body."""
        place = PLACE.fullmatch(path)
        if place is None:
            return "subRequests"
        sub_request = f"subRequests[{place['position']}]"
        rest = place["rest"] or ""
        if place["run"]:
            step = self._step_of_run(rest, int(place["position"]))
        else:
            step = _step_of_spec(rest)
        return f"{sub_request}.{step}" if step else sub_request

    def _step_of_run(self, path: str, position: int) -> str:
        if ablation := _ABLATION.fullmatch(path):
            return self._step_of_ablation(int(ablation[1]), ablation[2] or "", position)
        if trace := _TRACE.fullmatch(path):
            node = "downstreamNodeToTrace" if trace[1] else "upstreamNodeToTrace"
            return json_path(trace[2] or "", node)
        # The tokens stand beside the prompt; what is wrong with the whole loss is about targets.
        return "targetTokens" if path == "loss" else json_path(path.removeprefix("loss."))

    def _step_of_ablation(self, number: int, path: str, position: int) -> str:
        nodes = self._sub_requests[position].node_ablations or ()
        if number >= len(nodes):
            return ""
        node = f"nodeAblations[{number}]"
        if not path.startswith("index"):
            return json_path(path, node)
        if path == "index.location_type":
            return f"{node}.nodeIndex.nodeType"
        return json_path(path.removeprefix("index").removeprefix("."), f"{node}.nodeIndex")


def _step_of_spec(path: str) -> str:
    if scalar_type := _SCALAR_TYPE.match(path):
        return ("", "componentTypeForMlp", "componentTypeForAttention")[int(scalar_type[1])]
    return {
        "top_and_bottom_count": "topAndBottomKForNodeTable",
        "first_layer": "hideEarlyLayersWhenAblating",
    }.get(path, "")
