"""The front page, and whether the deployment is ready."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from services.gateway.gateway import TheGateway

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Neuropil</title>
<style>
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }
</style>
</head>
<body>
<h1>Neuropil</h1>
<p>Records, derived scalars and simulations of the parts of a language model,
over HTTP and JSON.</p>
<ul>
<li><a href="docs">Routes, to read and to try</a></li>
<li><a href="openapi.json">OpenAPI document</a></li>
<li><a href="healthz">Whether the services are ready</a></li>
</ul>
</body>
</html>
"""

router = APIRouter()


@router.get("/", tags=["hello_world"], response_model=dict[str, str])
async def read_root(request: Request) -> Response:
    """A greeting for programs, a page for people."""
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(_PAGE)
    return JSONResponse({"Hello": "World"})


@router.get("/healthz", tags=["health"], response_model=dict[str, bool])
async def healthz(gateway: TheGateway) -> Response:
    """Whether each service is ready; 503 unless all are."""
    ready = await gateway.backends.health()
    return JSONResponse(ready, 200 if all(ready.values()) else 503)
