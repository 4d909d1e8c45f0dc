"""The requests that clients mix, and what of an answer is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from neuropil.names import component_id
from neuropil.records import v1

MLP, HEADS = "mlp_post_act", "attn_write_norm"
NEURONS, NUM_HEADS = 96, 4
ABSENT = 100_000
"""Index of a component that no dataset has."""
EXPLAINED = (6, 55, 208, 244)
"""Neurons of layer 0 of the demo that have explanations."""

EXCUSED = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
"""Codes that say that data can't be had now."""

Answer = str
"""A digest of an answer, or the name of its error's code."""


@dataclass(frozen=True)
class Ask:
    """A request of the mix; `source` is the dataset that it reads."""

    kind: str
    source: str
    method: str
    request: Any


def asks(roots: Mapping[str, str]) -> list[Ask]:
    """Every request of the mix, of every dataset; the rare kinds come often enough to be seen."""
    found: list[Ask] = []
    for source, root in roots.items():
        # A second dataset that has the same components: it must never stand in for the first.
        others = [other for other in roots if other != source][:1]

        def add(kind: str, method: str, request: Any, source: str = source) -> None:
            found.append(Ask(kind, source, method, request))

        for index in range(NEURONS):
            component = component_id(MLP, 0, index)
            names = [source, *others] if index % 3 == 0 else [source]
            add(
                "token record",
                "GetTokenRecord",
                v1.GetTokenRecordRequest(component=component, datasets=names),
            )
        for index in [*range(NUM_HEADS)] * 4:
            component = component_id(HEADS, 0, index)
            add(
                "pair record",
                "GetTokenPairRecord",
                v1.GetTokenPairRecordRequest(component=component, datasets=[source]),
            )
        for index in EXPLAINED * 4:
            listed = v1.ListExplanationsRequest(component=component_id(MLP, 0, index))
            listed.explanation_datasets.paths.append(f"{root}/explanations")
            add("explanations", "ListExplanations", listed)
        for start in range(0, NEURONS, 8):
            components = [component_id(MLP, 0, index) for index in range(start, start + 8)]
            add(
                "batch",
                "BatchGetRecords",
                v1.BatchGetRecordsRequest(components=components, datasets=[source]),
            )
        for scalar_type in (MLP, HEADS):
            dataset = v1.DatasetId(
                dataset=source,
                derived_scalar_type=component_id(scalar_type, 0, 0).derived_scalar_type,
            )
            add("list", "ListLayers", v1.ListLayersRequest(dataset=dataset))
            add("list", "ListComponents", v1.ListComponentsRequest(dataset=dataset, page_size=50))
        absent = v1.GetTokenRecordRequest(component=component_id(MLP, 0, ABSENT), datasets=[source])
        add("missing", "GetTokenRecord", absent)
    return found


async def messages(stub: Any, ask: Ask, deadline_seconds: float) -> list[Any]:
    """All messages that are answered; raises AioRpcError."""
    call: Callable[..., Any] = getattr(stub, ask.method)
    if ask.method != "BatchGetRecords":
        return [await call(ask.request, timeout=deadline_seconds)]
    return [item async for item in call(ask.request, timeout=deadline_seconds)]


async def answer(stub: Any, ask: Ask, deadline_seconds: float) -> Answer:
    """Ask, and give a digest of all that was answered, or the name of the code."""
    try:
        return digest(await messages(stub, ask, deadline_seconds))
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)


def digest(answered: Sequence[Any]) -> Answer:
    """A digest of messages, or the code of the last record of a batch that could not be had."""
    found = hashlib.blake2b(digest_size=16)
    failed = ""
    for message in answered:
        if isinstance(message, v1.BatchGetRecordsResponse) and message.failure.code in EXCUSED:
            failed = message.failure.code
        found.update(message.SerializeToString(deterministic=True))
    return failed or found.hexdigest()
