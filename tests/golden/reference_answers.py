"""Compares answers over HTTP with the reference's, within the tolerances that are specified."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

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
        for name in ("topTokensList", "topTokensAttendedToList"):
            if name in expected:
                return _lists_of_nodes_differences(answer, expected, name, path)
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


def _nodes(data: dict[str, Any]) -> dict[tuple[Any, ...], int]:
    """Where each node stands in its list; which of equal ones are listed, and in which order, is
    nobody's business."""
    return {_node(node): index for index, node in enumerate(data["nodeIndices"])}


def _top_nodes_differences(
    answer: dict[str, Any], expected: dict[str, Any], path: str
) -> list[str]:
    mine, theirs = _nodes(answer), _nodes(expected)
    found = []
    for group, scalars in expected["activationsByGroupId"].items():
        values = answer["activationsByGroupId"][group]
        for node, index in theirs.items():
            if node in mine and not _same_number(values[mine[node]], scalars[index]):
                found.append(f"{path}.{group}{node} is {values[mine[node]]}, not {scalars[index]}")
    for node in theirs.keys() - mine.keys():
        if not _ties(node, mine.keys() - theirs.keys(), mine, theirs, answer, expected):
            found.append(f"{path}.nodeIndices lacks {node}, and has none that ties")
    key = "intermediateSumActivationsByDstByGroupId"
    for group, sums in expected[key].items():
        for name, tensor in sums.items():
            have, want = (
                np.array(each["value"], dtype=np.float64)
                for each in (answer[key][group][name], tensor)
            )
            want = np.where(want == -999, np.nan, want)
            # Where large terms cancel what is left is their rounding, in the reference too.
            tolerance = max(2e-5, 1e-6 * np.nanmax(np.abs(want), initial=0.0))
            if have.shape != want.shape or not np.allclose(
                have, want, rtol=1e-4, atol=tolerance, equal_nan=True
            ):
                found.append(f"{path}.{key}.{group}.{name} is another tensor")
    return found


def _ties(
    lost: tuple[Any, ...],
    others: Iterable[tuple[Any, ...]],
    mine: dict[tuple[Any, ...], int],
    theirs: dict[tuple[Any, ...], int],
    answer: dict[str, Any],
    expected: dict[str, Any],
) -> bool:
    """Whether a node that is not listed has a group's scalar of one that is in its place."""
    return any(
        other[0] == lost[0]
        and _same_number(answer["activationsByGroupId"][group][mine[other]], scalars[theirs[lost]])
        for group, scalars in expected["activationsByGroupId"].items()
        for other in others
    )


def _lists_of_nodes_differences(
    answer: dict[str, Any], expected: dict[str, Any], name: str, path: str
) -> list[str]:
    """Differences of what is listed for each node; that the nodes are right is told elsewhere."""
    mine, theirs = _nodes(answer), _nodes(expected)
    found = []
    for node in theirs.keys() & mine.keys():
        have, want = answer[name][mine[node]], expected[name][theirs[node]]
        here = f"{path}.{name}{node}"
        if (have is None) != (want is None):
            found.append(f"{here} is {have}, not {want}")
        elif want is None:
            continue
        elif name == "topTokensAttendedToList":
            found += _ranked_differences(
                list(zip(have["tokenIndices"], have["attributions"], strict=True)),
                list(zip(want["tokenIndices"], want["attributions"], strict=True)),
                here,
            )
        else:
            for side in ("top", "bottom"):
                found += _ranked_differences(
                    [(each["token"], each["scalar"]) for each in have[side]],
                    [(each["token"], each["scalar"]) for each in want[side]],
                    f"{here}.{side}",
                )
                for one, other in zip(have[side], want[side], strict=False):
                    if not _same_ratio(one["normalizedScalar"], other["normalizedScalar"]):
                        found.append(f"{here}.{side} is normalised otherwise")
    return found


def _same_ratio(answer: float, expected: float) -> bool:
    return math.isclose(answer, expected, rel_tol=5e-4, abs_tol=5e-5)


def _ranked_differences(
    answer: list[tuple[Any, float]], expected: list[tuple[Any, float]], path: str
) -> list[str]:
    """Differences of ranked entries; entries of equal scalars may stand for each other."""
    if len(answer) != len(expected):
        return [f"{path} has {len(answer)} entries, not {len(expected)}"]
    found = []
    for (mine, scalar), (theirs, wanted) in zip(answer, expected, strict=True):
        if not _same_number(scalar, wanted):
            found.append(f"{path} has {mine!r} {scalar}, not {theirs!r} {wanted}")
        elif mine != theirs:
            elsewhere = [value for entry, value in answer if entry == theirs]
            # At the end of the list others may have taken its place.
            if not any(_same_number(each, wanted) for each in (*elsewhere, answer[-1][1])):
                found.append(f"{path} lacks {theirs!r} {wanted}")
    return found
