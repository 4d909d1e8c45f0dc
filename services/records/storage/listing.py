"""The layers of a dataset and the components of a layer, in numeric order, a page at a time."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder
from services.records.storage.names import ascending, index_of
from shared.errors import InvalidArgument, NotFound

DEFAULT_PAGE_SIZE = 1000
MAX_PAGE_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class Page:
    """Indices, ascending, and the token of the next page: empty on the last."""

    indices: list[int]
    next_page_token: str


async def layers(blobs: Blobs, folder: Folder) -> list[int]:
    """Indices of all layers that the folder has; none where it is missing."""
    return ascending(await blobs.folders(folder))


async def components(blobs: Blobs, folder: Folder, layer_index: int, suffix: str) -> Sequence[int]:
    """Indices of all components of a layer, of files that end in `suffix`, ascending.

    NotFound where there is no such layer, InvalidArgument where its index is negative.
    """
    if layer_index < 0:
        raise InvalidArgument(
            f"layer_index is {layer_index}, but indices count from 0.", field="layer_index"
        )
    indices = await blobs.indices(folder, str(layer_index), suffix)
    if indices is None:
        raise NotFound(
            f"{folder.name} has no layer {layer_index}.",
            reason="LAYER_NOT_FOUND",
            metadata={"datasets": folder.name},
        )
    return indices


def page(indices: Sequence[int], page_size: int, page_token: str) -> Page:
    """The part of ascending `indices` that follows the page whose token is given.

    A size of 0 means the default. InvalidArgument where the size or the token can't be right.
    """
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidArgument(
            f"page_size is {page_size}; it can be 1 to {MAX_PAGE_SIZE}, or 0 for "
            f"{DEFAULT_PAGE_SIZE}.",
            field="page_size",
        )
    start = 0
    if page_token:
        last = index_of(page_token)
        if last is None:
            raise InvalidArgument("page_token is none of this service.", field="page_token")
        start = bisect.bisect_right(indices, last)
    end = start + (page_size or DEFAULT_PAGE_SIZE)
    part = list(indices[start:end])
    return Page(part, str(part[-1]) if part and end < len(indices) else "")
