"""The layers of a dataset and the components of a layer, in numeric order, a page at a time."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder
from shared.errors import InvalidArgument, NotFound

DEFAULT_PAGE_SIZE = 1000
MAX_PAGE_SIZE = 10_000

# Indices are 64-bit on the wire; a folder with a longer number is no layer.
_MAX_INDEX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Page:
    """Indices, ascending, and the token of the next page: empty on the last."""

    indices: list[int]
    next_page_token: str


async def layers(blobs: Blobs, folder: Folder) -> list[int]:
    """Indices of all layers that the folder has; none where it is missing."""
    return ascending(await blobs.folders(folder))


async def components(blobs: Blobs, folder: Folder, layer_index: int, suffix: str) -> list[int]:
    """Indices of all components of a layer, of files that end in `suffix`.

    NotFound where there is no such layer, InvalidArgument where its index is negative.
    """
    if layer_index < 0:
        raise InvalidArgument(
            f"layer_index is {layer_index}, but indices count from 0.", field="layer_index"
        )
    files = await blobs.files(folder, str(layer_index))
    if files is None:
        raise NotFound(
            f"{folder.name} has no layer {layer_index}.",
            reason="LAYER_NOT_FOUND",
            metadata={"datasets": folder.name},
        )
    return ascending(files, suffix)


def page(indices: list[int], page_size: int, page_token: str) -> Page:
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
        last = _index(page_token)
        if last is None:
            raise InvalidArgument("page_token is none of this service.", field="page_token")
        start = bisect.bisect_right(indices, last)
    end = start + (page_size or DEFAULT_PAGE_SIZE)
    part = indices[start:end]
    return Page(part, str(part[-1]) if part and end < len(indices) else "")


def ascending(names: list[str], suffix: str = "") -> list[int]:
    """The numbers of names that are a number before `suffix`; others are passed over."""
    numbers = (_index(name.removesuffix(suffix)) for name in names if name.endswith(suffix))
    return sorted(number for number in numbers if number is not None)


def _index(name: str) -> int | None:
    """The number that `name` is written as; None for 007, ² and whatever else no index is."""
    if not (name.isascii() and name.isdigit()) or len(name) > 19:
        return None
    number = int(name)
    return number if str(number) == name and number <= _MAX_INDEX else None
