"""The derived-scalars service against what the reference's server answered."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuropil
from neuropil import names
from neuropil.channel import open_channel
from neuropil.common import v1 as common
from neuropil.errors import translated
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_array
from tests.load.processes import server

pytestmark = pytest.mark.golden

TYPE = names.DERIVED_SCALAR_TYPES.value


@pytest.fixture(scope="module")
def address(golden: Path) -> Iterator[str]:
    config = golden / "deployments" / "plain.yaml"
    arguments = ("--config", str(config), "--port", "0", "--metrics-port", "0")
    with server("services.scalars", *arguments) as (found, _):
        yield found


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[scalars.DerivedScalarsStub]:
    with open_channel(address) as channel:
        yield scalars.DerivedScalarsStub(channel)


@pytest.fixture(scope="module")
def answered(golden: Path) -> list[dict[str, Any]]:
    """What the reference answered, traces and what is stated to differ left out."""
    with gzip.open(golden / "endpoints" / "cases.json.gz") as file:
        cases = json.load(file)["cases"]
    return [
        case
        for case in cases
        if case["server"] == "plain"
        and case["status"] == 200
        and "traceConfig" not in (case["request"] or {}).get("inferenceRequestSpec", {})
        and "vocab_token_write" not in json.dumps(case["request"])
    ]


def inference(spec: dict[str, Any]) -> scalars.InferenceSpec:
    loss = spec.get("lossFnConfig")
    return scalars.InferenceSpec(
        prompt=spec["prompt"],
        loss=None
        if loss is None
        else neuropil.Loss(
            loss["name"], loss.get("targetTokens") or (), loss.get("distractorTokens") or ()
        ).message(),
        ablations=[
            neuropil.Ablation(
                each["index"]["activationLocationType"],
                each["index"]["layerIndex"],
                [None if i == "All" else i for i in each["index"]["tensorIndices"]],
                each["value"],
                each["index"]["passType"],
            ).message()
            for each in spec.get("ablationSpecs") or ()
        ],
    )


def same_run(data: dict[str, Any], result: scalars.InferenceResult) -> None:
    assert list(result.token_ids) == data["tokensAsInts"]
    assert list(result.tokens) == data["tokensAsStrings"]
    assert result.HasField("loss") == (data["loss"] is not None)
    if data["loss"] is not None:
        assert result.loss == pytest.approx(data["loss"], rel=1e-4, abs=2e-5)


def component(spec: dict[str, Any]) -> common.ComponentId:
    return common.ComponentId(
        derived_scalar_type=TYPE(spec["dst"]),
        layer_index=spec["layerIndex"],
        component_index=spec["activationIndex"],
    )


def test_components_are_answered_as_by_the_reference(
    answered: list[dict[str, Any]], stub: scalars.DerivedScalarsStub
) -> None:
    compared = 0
    for case in answered:
        if case["route"] != "/derived_scalars":
            continue
        spec = case["request"]["derivedScalarsRequestSpec"]
        with translated():
            answer = stub.DeriveComponent(
                scalars.DeriveComponentRequest(
                    inference=inference(case["request"]["inferenceRequestSpec"]),
                    spec=scalars.ComponentSpec(
                        component=component(spec),
                        pass_type=names.PASS_TYPES.value(spec.get("passType", "forward")),
                        top_token_count=spec.get("numTopTokens") or 0,
                    ),
                ),
                timeout=60,
            )
        same_run(case["response"]["inferenceAndTokenData"], answer.inference)
        data = case["response"]["derivedScalarsResponseData"]
        np.testing.assert_allclose(
            to_array(answer.scalars.activations),
            data["activations"],
            rtol=1e-4,
            atol=2e-5,
            err_msg=case["name"],
        )
        indices = np.array(answer.scalars.nodes.tensor_indices).reshape(-1, 3)[:, :2]
        assert indices.tolist() == [node["tensorIndices"] for node in data["nodeIndices"]]
        assert {names.NODE_TYPES.name(each) for each in answer.scalars.nodes.node_types} == {
            node["nodeType"] for node in data["nodeIndices"]
        }
        assert answer.scalars.HasField("top_tokens") == (data["topTokens"] is not None)
        for name in ("top", "bottom") if data["topTokens"] else ():
            mine = getattr(answer.scalars.top_tokens, name)
            assert [each.token for each in mine] == [x["token"] for x in data["topTokens"][name]]
            for each, theirs in zip(mine, data["topTokens"][name], strict=True):
                assert each.scalar == pytest.approx(theirs["scalar"], rel=1e-4, abs=2e-5)
                assert each.normalized_scalar == pytest.approx(
                    theirs["normalizedScalar"], rel=5e-4, abs=5e-5
                )
        compared += 1
    assert compared >= 20


def test_token_pairs_are_answered_as_by_the_reference(
    answered: list[dict[str, Any]], stub: scalars.DerivedScalarsStub
) -> None:
    compared = 0
    for case in answered:
        if case["route"] != "/derived_attention_scalars":
            continue
        spec = case["request"]["derivedAttentionScalarsRequestSpec"]
        answer = stub.DeriveComponentByTokenPair(
            scalars.DeriveComponentByTokenPairRequest(
                inference=inference(case["request"]["inferenceRequestSpec"]),
                spec=scalars.ComponentByTokenPairSpec(component=component(spec)),
            ),
            timeout=60,
        )
        rows = case["response"]["derivedAttentionScalarsResponseData"][
            "tokenAndAttentionScalarsList"
        ]
        pairs = answer.scalars
        for mine, theirs in (
            (pairs.activations, [x for row in rows for x in row["scalars"]]),
            (pairs.total_in.values, [row["totalScalarIn"] for row in rows]),
            (pairs.max_in.values, [row["maxScalarIn"] for row in rows]),
            (pairs.total_out.values, [row["totalScalarOut"] for row in rows]),
            (pairs.max_out.values, [row["maxScalarOut"] for row in rows]),
        ):
            np.testing.assert_allclose(to_array(mine), theirs, rtol=1e-4, atol=2e-5)
        compared += 1
        # With a record, normalisation takes the record's maxima in: that is the gateway's to do.
        if spec.get("normalizeActivationsUsingNeuronRecord"):
            continue
        for mine, theirs in (
            (pairs.normalized_activations, [x for row in rows for x in row["normalizedScalars"]]),
            (pairs.total_in.normalized_values, [row["normalizedTotalScalarIn"] for row in rows]),
            (pairs.max_out.normalized_values, [row["normalizedMaxScalarOut"] for row in rows]),
        ):
            np.testing.assert_allclose(to_array(mine), np.clip(theirs, 0, 1), rtol=5e-4, atol=5e-5)
    assert compared >= 2


def test_top_nodes_are_answered_as_by_the_reference(
    answered: list[dict[str, Any]], stub: scalars.DerivedScalarsStub
) -> None:
    compared = 0
    for case in answered:
        if case["route"] != "/multiple_top_k_derived_scalars":
            continue
        spec = case["request"]["multipleTopKDerivedScalarsRequestSpec"]
        kept = spec.get("dimensionsToKeepForIntermediateSum")
        answer = stub.ListTopNodes(
            scalars.ListTopNodesRequest(
                inference=inference(case["request"]["inferenceRequestSpec"]),
                spec=scalars.TopNodesSpec(
                    groups=[
                        scalars.ScalarGroup(
                            group_id=names.GROUP_IDS.value(group),
                            derived_scalar_types=[TYPE(each) for each in types],
                        )
                        for group, types in spec["dstListByGroupId"].items()
                    ],
                    token_index=spec["tokenIndex"],
                    top_and_bottom_count=spec["topAndBottomK"],
                    sum_dimensions=None
                    if kept is None
                    else scalars.DimensionList(
                        dimensions=[names.DIMENSIONS.value(each) for each in kept]
                    ),
                ),
            ),
            timeout=60,
        )
        same_run(case["response"]["inferenceAndTokenData"], answer.inference)
        data = case["response"]["multipleTopKDerivedScalarsResponseData"]
        same_nodes(case["name"], data, answer.top_nodes, len(answer.inference.tokens))
        for each in answer.top_nodes.sums:
            theirs = data["intermediateSumActivationsByDstByGroupId"][
                names.GROUP_IDS.name(each.group_id)
            ][names.DERIVED_SCALAR_TYPES.name(each.derived_scalar_type)]["value"]
            scale = float(np.abs(theirs).max())
            np.testing.assert_allclose(to_array(each.values), theirs, rtol=1e-4, atol=1e-5 * scale)
        compared += 1
    assert compared >= 8


Key = tuple[str, int, tuple[int, ...]]


def same_nodes(name: str, data: dict[str, Any], mine: scalars.TopNodes, tokens: int) -> None:
    """The same nodes with the same values, but for which of several tied ones are listed."""

    def resolved(indices: list[int]) -> tuple[int, ...]:
        # The reference repeats a token index that counts from the end.
        return (indices[0] % tokens, *indices[1:])

    theirs: list[Key] = [
        (
            node["nodeType"],
            -1 if node["layerIndex"] is None else node["layerIndex"],
            resolved(node["tensorIndices"]),
        )
        for node in data["nodeIndices"]
    ]
    table = mine.nodes
    here: list[Key] = [
        (
            names.NODE_TYPES.name(node_type),
            layer,
            tuple(i for i in table.tensor_indices[3 * row : 3 * row + 3] if i >= 0),
        )
        for row, (node_type, layer) in enumerate(
            zip(table.node_types, table.layer_indices, strict=True)
        )
    ]
    assert len(here) == len(set(here)) == len(theirs), name
    for group in mine.groups:
        values = to_array(group.values)
        expected = data["activationsByGroupId"][names.GROUP_IDS.name(group.group_id)]
        mine_by_node = dict(zip(here, values.tolist(), strict=True))
        theirs_by_node = dict(zip(theirs, expected, strict=True))
        for node in mine_by_node.keys() & theirs_by_node.keys():
            assert math.isclose(
                mine_by_node[node], theirs_by_node[node], rel_tol=1e-4, abs_tol=2e-5
            ), (name, node)
    first = data["activationsByGroupId"][names.GROUP_IDS.name(mine.groups[0].group_id)]
    np.testing.assert_allclose(
        np.sort(to_array(mine.groups[0].values)), np.sort(first), rtol=1e-3, atol=1e-3
    )
    # Only ties may differ: pairs whose query comes before the key, whose probability is 0.
    for kind, _, indices in set(here) ^ set(theirs):
        assert kind == "attention_head", (name, kind, indices)
        assert indices[1] > indices[0], (name, indices)
