"""Routes of the reference that this release does not serve yet."""

from __future__ import annotations

from fastapi import APIRouter, Request

from shared.errors import Unimplemented

LATER_PATHS = ("/explain",)

router = APIRouter(include_in_schema=False)


async def not_served_yet(request: Request) -> None:
    """Tell a client that the path is right and the release too early."""
    raise Unimplemented(f"{request.url.path} is not served by this release yet")


for _path in LATER_PATHS:
    router.add_api_route(_path, not_served_yet, methods=["POST"])
