"""A record reader that notes what the gateway asks of it, and a request for a record."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from neuropil.common import v1 as common
from neuropil.records import v1
from neuropil.tensors import to_tensor
from shared import errors
from shared.rpc.context import request_id, seconds_left
from tests.integration.gateway_running import Servicer

BODY = {"dst": "mlp_post_act", "layerIndex": 1, "activationIndex": 2, "datasets": ["a", "b"]}


class Records(Servicer):
    """Notes what it was asked, and fails where a dataset's name says so."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []
        self.request_ids: list[str] = []
        self.seconds_left: list[float | None] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def GetTokenRecord(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.request_ids.append(request_id())
        self.seconds_left.append(seconds_left())
        first = request.datasets[0] if request.datasets else ""
        if first == "wait":
            self.entered.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if first == "defect":
            raise ZeroDivisionError("a secret of ours")
        if first == "invalid":
            raise errors.InvalidArgument(
                "component.layer_index: must be below 4", field="component.layer_index"
            )
        if first == "full":
            raise errors.ResourceExhausted("full", reason="QUEUE_FULL", retry_after_seconds=2.5)
        if first == "broken":
            # What a defective service might send: columns that do not fit each other.
            return v1.GetTokenRecordResponse(
                top_sequences=common.TokenSequences(tokens=["a"], sequence_lengths=[1])
            )
        return v1.GetTokenRecordResponse(
            dataset=first,
            max_activation=2.0,
            top_sequences=common.TokenSequences(
                tokens=["x"],
                sequence_lengths=[1],
                activations=to_tensor(np.array([2.0], dtype=np.float32)),
                normalized_activations=to_tensor(np.array([1.0], dtype=np.float32)),
            ),
        )

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        names = ["mlp_post_act", "residual", "attn_qk_probs", "attn_write_norm"]
        return v1.ListDatasetsResponse(
            datasets=[
                v1.Dataset(
                    short_name=f"d{index}",
                    derived_scalar_type_name=name,
                    user_visible_name="D",
                    neuron_dataset_path="/d",
                )
                for index, name in enumerate(names)
            ]
        )

    async def ListExplanations(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        failures = [
            v1.Failure(
                code="DATA_LOSS", reason="CORRUPT_FILE", message="m", dataset="/données/b,c"
            ),
            v1.Failure(code="DATA_LOSS", reason="CORRUPT_FILE", message="m", dataset="/d"),
        ]
        return v1.ListExplanationsResponse(
            explanations=[
                v1.Explanation(text="t", score=0.5, dataset_name="a", dataset="/a"),
                v1.Explanation(text="u", dataset_name="", dataset="/a/"),
            ],
            failures=failures if request.component.component_index == 7 else [],
        )
