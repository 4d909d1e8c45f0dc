"""Where activations come from: an interface, and the derived-scalars service behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from neuropil.channel import open_aio_channel
from neuropil.common import v1 as common
from neuropil.errors import atranslated
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_array
from shared.errors import DataLoss, FailedPrecondition, InvalidArgument

_COMPONENT_DIMENSIONS = {
    common.DIMENSION_MLP_ACTS,
    common.DIMENSION_ATTN_HEADS,
    common.DIMENSION_AUTOENCODER_LATENTS,
    common.DIMENSION_RESIDUAL_STREAM_CHANNELS,
}
_TOKENIZE_BATCH = 10_000


@dataclass(frozen=True)
class ScalarKind:
    """A derived scalar type that has a value for every component at every token or token pair."""

    name: str
    by_token_pair: bool


@dataclass(frozen=True)
class Subject:
    """The model behind a source: what a job is bound to."""

    name: str
    layer_count: int
    context_size: int


LayerActivations = list[NDArray[np.float32]]
"""Activations of each layer, [values, components]: values are tokens, or token pairs flattened."""


class ActivationSource(Protocol):
    """Activations of a subject model on any text."""

    async def subject(self) -> Subject:
        """The model."""

    async def kinds(self, names: Sequence[str]) -> list[ScalarKind]:
        """What is known of derived scalar types; InvalidArgument for one that can't be collated."""

    async def tokenize(self, texts: list[str]) -> list[list[str]]:
        """Token strings of each text."""

    async def activations(self, text: str, names: Sequence[str]) -> dict[str, LayerActivations]:
        """Activations of every layer for each derived scalar type."""


class ScalarsService:
    """The derived-scalars service at an address (`ActivationSource`).

    A failed call raises `neuropil.errors.NeuropilError`; the channel has tried again by then.
    """

    def __init__(self, address: str, timeout_seconds: float = 60.0) -> None:
        self._channel: grpc.aio.Channel = open_aio_channel(address)
        # The generated stub is typed for channels that block; the calls of this one are awaited.
        self._stub: Any = scalars.DerivedScalarsStub(self._channel)
        self._timeout = timeout_seconds

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def subject(self) -> Subject:
        """The model that the service runs."""
        async with atranslated():
            info = await self._stub.GetModelInfo(
                scalars.GetModelInfoRequest(), timeout=self._timeout, wait_for_ready=True
            )
        return Subject(info.name, info.layer_count, info.context_size)

    async def kinds(self, names: Sequence[str]) -> list[ScalarKind]:
        """Look the names up in the service's catalogue."""
        async with atranslated():
            answer = await self._stub.ListScalarTypes(
                scalars.ListScalarTypesRequest(), timeout=self._timeout
            )
        catalogue = {row.name: row for row in answer.scalar_types}
        return [_kind(name, catalogue) for name in names]

    async def tokenize(self, texts: list[str]) -> list[list[str]]:
        """Token strings of each text, with as many calls as their number needs."""
        tokenized: list[list[str]] = []
        for start in range(0, len(texts), _TOKENIZE_BATCH):
            request = scalars.TokenizeRequest(texts=texts[start : start + _TOKENIZE_BATCH])
            async with atranslated():
                answer = await self._stub.Tokenize(request, timeout=self._timeout)
            tokenized.extend(list(text.tokens) for text in answer.texts)
        return tokenized

    async def activations(self, text: str, names: Sequence[str]) -> dict[str, LayerActivations]:
        """One Derive call; its frames put together."""
        request = scalars.DeriveRequest(
            inference=scalars.InferenceSpec(prompt=text),
            selections=[
                scalars.ScalarSelection(
                    derived_scalar_type=_number(name), pass_type=common.PASS_TYPE_FORWARD
                )
                for name in names
            ],
        )
        tensors: dict[tuple[int, int], NDArray[np.float32]] = {}
        filled: dict[tuple[int, int], int] = {}
        async with atranslated():
            async for answer in self._stub.Derive(request, timeout=self._timeout):
                if answer.WhichOneof("content") == "frame":
                    _take(answer.frame, tensors, filled)
        for key, tensor in tensors.items():
            if filled[key] != len(tensor):
                raise DataLoss(f"the scalars service sent only a part of {names[key[0]]}")
        result: dict[str, LayerActivations] = {name: [] for name in names}
        for selection, layer in sorted(tensors):
            result[names[selection]].append(tensors[selection, layer])
        return result


def _take(
    frame: scalars.TensorFrame,
    tensors: dict[tuple[int, int], NDArray[np.float32]],
    filled: dict[tuple[int, int], int],
) -> None:
    key = (frame.selection, frame.layer_index)
    if key not in tensors:
        tensors[key] = np.empty(tuple(frame.shape), dtype=np.float32)
        filled[key] = 0
    rows = to_array(frame.rows)
    tensors[key][frame.first_row : frame.first_row + len(rows)] = rows
    filled[key] += len(rows)


def _number(name: str) -> Any:
    value = getattr(common, f"DERIVED_SCALAR_TYPE_{name.upper()}", None)
    if value is None:
        raise InvalidArgument(f"{name} is no derived scalar type", field="dataset")
    return value


def _kind(name: str, catalogue: dict[str, scalars.ScalarType]) -> ScalarKind:
    row = catalogue.get(name)
    if row is None:
        raise InvalidArgument(f"{name} is no derived scalar type", field="dataset")
    if not row.available:
        raise FailedPrecondition(
            f"the scalars service can't derive {name}: {row.unavailable_reason}", field="dataset"
        )
    dimensions = list(row.dimensions)
    if len(dimensions) == 2 and dimensions[1] in _COMPONENT_DIMENSIONS and not row.requirements:
        if dimensions[0] == common.DIMENSION_SEQUENCE_TOKENS:
            return ScalarKind(name, by_token_pair=False)
        if dimensions[0] == common.DIMENSION_SEQUENCE_TOKEN_PAIRS:
            return ScalarKind(name, by_token_pair=True)
    raise InvalidArgument(
        f"{name} can't be collated: it needs a value for every component at every token or token "
        "pair, as mlp_post_act and attn_write_norm have",
        field="dataset",
    )
