"""Fields of the contract by the paths that clients write them with in JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from pydantic.alias_generators import to_camel

FieldPath = Callable[[str], str]
"""Gives a field of the contract as the client wrote it."""

# Steps of a field's path in the contract that JSON has not: `spec` is the route's own part of the
# body, which the prefix names.
_LEFT_OUT = frozenset({"component", "components", "recorded_component", "spec"})
# Lists that JSON has in the place of the message that they are in.
_UNWRAPPED = frozenset({"derived_scalar_types"})
# Steps that JSON spells otherwise than the contract, but for the case.
_JSON_STEPS = {
    "explanation_datasets.paths": "explanationDatasets",
    "component_index": "activationIndex",
    "derived_scalar_type": "dst",
    "inference": "inferenceRequestSpec",
    "ablations": "ablationSpecs",
    "location_type": "activationLocationType",
    "loss": "lossFnConfig",
    "loss.kind": "lossFnConfig.name",
    "trace": "traceConfig",
    "downstream": "downstreamTraceConfig",
    "side": "preOrPostAct",
    "within_layer_gradient_index": "activationIndexForWithinLayerGrad",
    "top_token_count": "numTopTokens",
    "top_and_bottom_count": "topAndBottomK",
    "sum_dimensions.dimensions": "dimensionsToKeepForIntermediateSum",
    "exclude_bottom": "excludeBottomK",
    "groups": "dstListByGroupId",
    "scoring": "tokenScoringType",
    "token_count": "numTokens",
    "attended_to_token_count": "numTokensAttendedTo",
    "depends_on": "dependsOnSpecName",
}
_STEP = re.compile(r"([^.\[]+)((?:\[[^\]]*\])*)")


def json_path(path: str, prefix: str = "", groups: Sequence[str] = ()) -> str:
    """A field of the contract as the client wrote it.

    `inference.ablations[0].index.tensor_indices[1].index` is
    `inferenceRequestSpec.ablationSpecs[0].index.tensorIndices[1]` in JSON.
    """
    steps: list[str] = [prefix] if prefix else []
    parts = _STEP.findall(path)
    while parts:
        name, subscripts = parts.pop(0)
        pair = f"{name}.{parts[0][0]}" if parts else ""
        if pair in _JSON_STEPS:
            name, subscripts = pair, parts.pop(0)[1]
        if name == "groups" and subscripts and int(subscripts[1:-1]) < len(groups):
            steps += ["dstListByGroupId", groups[int(subscripts[1:-1])]]
        elif name in _UNWRAPPED and steps:
            steps[-1] += subscripts
        elif name == "index" and steps and steps[-1].startswith("tensorIndices["):
            # An index is a message in the contract and a bare number in JSON.
            continue
        elif name not in _LEFT_OUT:
            steps.append((_JSON_STEPS.get(name) or to_camel(name)) + subscripts)
    if prefix and steps[1:2] == ["inferenceRequestSpec"]:
        # What to run stands beside the route's own part, not in it.
        steps = steps[1:]
    return ".".join(steps)


def within(prefix: str, groups: Sequence[str] = ()) -> FieldPath:
    """The paths of a call that was made from the part of a body at `prefix`.

    `groups`: names of the groups in it, which the contract numbers.
    """
    return partial(json_path, prefix=prefix, groups=groups)
