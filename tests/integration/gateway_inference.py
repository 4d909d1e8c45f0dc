"""Services that note what the gateway asks them of an inference, and requests for it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from neuropil import names
from neuropil.common import v1 as common
from neuropil.records import v1 as records_v1
from neuropil.scalars import v1
from neuropil.tensors import to_tensor
from shared import errors
from tests.integration.gateway_running import Servicer

PROMPT = {"prompt": "The cat"}
SPEC = {"dst": "mlp_post_act", "layerIndex": 1, "activationIndex": 3}
ACTIVATION_INDEX = {
    "activationLocationType": "attn.qk_probs",
    "tensorIndices": [0, "All", "2"],
    "layerIndex": 1,
    "passType": "backward",
}
NODE_INDEX = {
    "nodeType": "attention_head",
    "tensorIndices": [2, None, 1],
    "layerIndex": 3,
    "passType": "forward",
}


NODES = v1.NodeTable(
    node_types=[names.NODE_TYPES.value("mlp_neuron"), names.NODE_TYPES.value("attention_head")],
    tensor_indices=[0, 3, -1, 1, 0, 2],
    layer_indices=[1, 0],
    pass_type=names.PASS_TYPES.value("forward"),
)
TOP_TOKENS = v1.TopTokens(
    top=[v1.ScoredToken(token="x", scalar=2.0, normalized_scalar=1.0)],
    bottom=[v1.ScoredToken(token="y", scalar=-1.0, normalized_scalar=-0.5)],
)
PAIRS = common.TokenPairSequences(
    tokens=["The", " cat"],
    sequence_lengths=[2],
    attended_to_caps=[2],
    activations=to_tensor(np.float32([1, 2, 3])),
    normalized_activations=to_tensor(np.float32([0.25, 0.5, 1])),
    **{
        name: common.TokenPairSummary(
            values=to_tensor(np.float32([1, 2])), normalized_values=to_tensor(np.float32([0, 1]))
        )
        for name in ("total_in", "max_in", "total_out", "max_out")
    },
)
RESULTS: dict[str, dict[str, Any]] = {
    "component": {
        "component": v1.ComponentScalars(
            activations=to_tensor(np.float32([-1.0, 2.0])), nodes=NODES
        )
    },
    "component_by_token_pair": {"component_by_token_pair": PAIRS},
    "top_nodes": {"top_nodes": v1.TopNodes(nodes=NODES)},
    "scored_tokens": {"scored_tokens": v1.ScoredTokens(nodes=[TOP_TOKENS, v1.TopTokens()])},
    "token_pair_attribution": {
        "token_pair_attribution": v1.TokenPairAttributions(
            nodes=[
                v1.TokenPairAttribution(),
                v1.TokenPairAttribution(top_tokens=[1, 0], top_values=[0.5, 0.25]),
            ]
        )
    },
}
"""What the service below answers to specs of each kind."""


class Scalars(Servicer):
    """Notes its requests and answers with two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []
        self.failure: errors.NeuropilError | None = None
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.waits = False

    async def DeriveComponent(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.waits:
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if self.failure is not None:
            raise self.failure
        return v1.DeriveComponentResponse(
            inference=v1.InferenceResult(seconds=0.1, token_ids=[1, 2], tokens=["The", " cat"]),
            scalars=v1.ComponentScalars(
                activations=to_tensor(np.array([-1.0, 2.0], dtype=np.float32)),
                nodes=v1.NodeTable(
                    node_types=[names.NODE_TYPES.value("mlp_neuron")] * 2,
                    tensor_indices=[0, 3, -1, 1, 3, -1],
                    layer_indices=[1, 1],
                    pass_type=names.PASS_TYPES.value("forward"),
                ),
                top_tokens=TOP_TOKENS,
            ),
        )

    async def DeriveComponentByTokenPair(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return v1.DeriveComponentByTokenPairResponse(
            inference=v1.InferenceResult(seconds=0.1, token_ids=[1, 2], tokens=["The", " cat"]),
            scalars=PAIRS,
        )

    async def ListTopNodes(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return v1.ListTopNodesResponse()

    async def BatchDerive(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        for position, inference in enumerate(request.inferences):
            results = [
                v1.NamedResult(name=spec.name, **RESULTS[spec.WhichOneof("spec")])
                for spec in inference.specs
            ]
            run = v1.InferenceResult(seconds=0.1, token_ids=[1, 2], tokens=["The", " cat"])
            yield v1.BatchDeriveResponse(position=position, inference=run, results=results)

    async def ListScalarTypes(self, request: Any, context: Any) -> Any:
        pairs = [common.DIMENSION_SEQUENCE_TOKENS, common.DIMENSION_ATTENDED_TO_SEQUENCE_TOKENS]
        return v1.ListScalarTypesResponse(
            scalar_types=[
                v1.ScalarType(
                    name="unflattened_attn_write_norm",
                    dimensions=[*pairs, common.DIMENSION_ATTN_HEADS],
                ),
                v1.ScalarType(
                    name="mlp_post_act",
                    dimensions=[common.DIMENSION_SEQUENCE_TOKENS, common.DIMENSION_MLP_ACTS],
                ),
            ]
        )

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        return v1.GetModelInfoResponse(
            name="tiny",
            layer_count=4,
            autoencoders=[
                v1.AutoencoderInfo(
                    name="attention-ae",
                    node_type=names.NODE_TYPES.value("attention_autoencoder_latent"),
                )
            ],
        )


class Records(Servicer):
    """Has one record by token, and one by token pair."""

    async def GetTokenPairRecord(self, request: Any, context: Any) -> Any:
        sequences = common.TokenPairSequences()
        sequences.CopyFrom(PAIRS)
        sequences.activations.CopyFrom(to_tensor(np.float32([6, 0, 0])))
        return records_v1.GetTokenPairRecordResponse(top_sequences=sequences)

    async def BatchGetRecords(self, request: Any, context: Any) -> Any:
        (component,) = request.components
        if component.component_index == 9:
            failure = records_v1.Failure(
                code="NOT_FOUND", reason="RECORD_NOT_FOUND", message="No record of it."
            )
            yield records_v1.BatchGetRecordsResponse(failure=failure)
        elif component.component_index == 8:
            raise errors.InvalidArgument(
                "components[0].layer_index: no", field="components[0].layer_index"
            )
        elif component.derived_scalar_type == common.DERIVED_SCALAR_TYPE_ATTN_WRITE_NORM:
            pairs = records_v1.GetTokenPairRecordResponse(max_activation=8.0)
            yield records_v1.BatchGetRecordsResponse(token_pair_record=pairs)
        else:
            tokens = records_v1.GetTokenRecordResponse(max_activation=4.0)
            yield records_v1.BatchGetRecordsResponse(token_record=tokens)


def derive(spec: dict[str, Any] | None = None, **inference: Any) -> dict[str, Any]:
    return {
        "inferenceRequestSpec": PROMPT | inference,
        "derivedScalarsRequestSpec": SPEC | (spec or {}),
    }
