"""Compares answers over HTTP with the reference's, within the tolerances that are specified."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

# Of the machine and the moment, not of the request.
_VOLATILE = {"inferenceTime", "memoryUsedBefore", "memoryUsedAfter"}


def expected_answer(case: dict[str, Any], folder: Path, replacements: dict[str, str]) -> Any:
    """The reference's answer of a case, with this machine's paths."""
    if case.get("response") is None and case.get("response_file"):
        text = gzip.decompress((folder / case["response_file"]).read_bytes()).decode()
    else:
        text = json.dumps(case.get("response"))
    return _replaced(text, replacements)


def request_body(case: dict[str, Any], replacements: dict[str, str]) -> bytes:
    """The body that a case sends."""
    if "raw_body" in case:
        return str(case["raw_body"]).encode()
    return json.dumps(_replaced(json.dumps(case.get("request")), replacements)).encode()


def _replaced(text: str, replacements: dict[str, str]) -> Any:
    for name, value in replacements.items():
        text = text.replace(name, value)
    return json.loads(text)


def differences(answer: Any, expected: Any, path: str = "") -> list[str]:
    """Where an answer is not the reference's. It may have more keys, and may leave out nulls."""
    name = path.rpartition(".")[2].partition("[")[0]
    if name in _VOLATILE:
        return []
    if isinstance(expected, dict):
        if not isinstance(answer, dict):
            return [f"{path} is no object"]
        if "nodeIndices" in expected and "activationsByGroupId" in expected:
            return _top_nodes_differences(answer, expected, path)
        found = []
        for key, value in expected.items():
            if key in answer:
                found += differences(answer[key], value, f"{path}.{key}")
            elif value is not None:
                found.append(f"{path}.{key} is missing")
        return found
    if isinstance(expected, list):
        if not isinstance(answer, list) or len(answer) != len(expected):
            return [f"{path} is no list of {len(expected)}"]
        return [
            line
            for index, (mine, theirs) in enumerate(zip(answer, expected, strict=True))
            for line in differences(mine, theirs, f"{path}[{index}]")
        ]
    if isinstance(expected, (int, float)) and not isinstance(expected, bool):
        same = _same_normalized if name.startswith("normalized") else _same_number
        return [] if same(answer, expected) else [f"{path} is {answer}, not {expected}"]
    return [] if answer == expected else [f"{path} is {answer!r}, not {expected!r}"]


def _same_number(answer: Any, expected: float) -> bool:
    if answer is None:
        # The reference writes what is not finite as -999.
        return expected == -999
    return math.isclose(answer, expected, rel_tol=1e-4, abs_tol=2e-5)


def _same_normalized(answer: Any, expected: float) -> bool:
    if answer is None:
        return False
    if expected > 1.001:
        # The reference divides by a negative or vanishing maximum.
        return 0 <= answer <= 1
    return math.isclose(answer, min(expected, 1.0), rel_tol=5e-4, abs_tol=5e-5)


def _node(node: dict[str, Any]) -> tuple[Any, ...]:
    return node["nodeType"], tuple(node["tensorIndices"]), node["layerIndex"]


def _top_nodes_differences(
    answer: dict[str, Any], expected: dict[str, Any], path: str
) -> list[str]:
    # Nodes may differ, and stand in another order, where their scalars tie.
    mine = {_node(node): index for index, node in enumerate(answer["nodeIndices"])}
    theirs = {_node(node): index for index, node in enumerate(expected["nodeIndices"])}
    found = []
    for group, scalars in expected["activationsByGroupId"].items():
        values = answer["activationsByGroupId"][group]
        for node, index in theirs.items():
            if node in mine and not _same_number(values[mine[node]], scalars[index]):
                found.append(f"{path}.{group}{node} is {values[mine[node]]}, not {scalars[index]}")
    lost = [node for node in theirs if node not in mine]
    scalars_of_lost = [
        abs(scalars[theirs[node]])
        for scalars in expected["activationsByGroupId"].values()
        for node in lost
    ]
    if max(scalars_of_lost, default=0.0) > 1e-5 and len(lost) > 0.1 * len(theirs):
        found.append(f"{path}.nodeIndices lacks {len(lost)} of {len(theirs)} nodes")
    key = "intermediateSumActivationsByDstByGroupId"
    return found + differences(answer[key], expected[key], f"{path}.{key}")
