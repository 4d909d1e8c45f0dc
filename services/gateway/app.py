"""Puts the HTTP application together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from neuropil.channel import MEBIBYTE
from services.gateway.answers import AnswerCache
from services.gateway.backends import open_backends
from services.gateway.direct import DirectRoutes
from services.gateway.errors import (
    GatewayError,
    from_domain_error,
    from_http_error,
    from_validation_error,
    internal_error,
)
from services.gateway.gateway import Gateway
from services.gateway.middleware import TIMEOUT_HEADER, RequestMiddleware
from services.gateway.openapi import describe, operation_id
from services.gateway.routes import batches, explainer, inference, pages, read
from shared.errors import NeuropilError
from shared.rpc.context import REQUEST_ID_KEY
from shared.settings import Deployment

if TYPE_CHECKING:
    from starlette.types import ASGIApp

LOOPBACK_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?"
"""Pages on the machine itself may always call."""

DOCS_ASSETS = "/docs-assets"

_DESCRIPTION = f"""\
Records, derived scalars and simulations of the parts of a language model.

A request may bring an id (`{REQUEST_ID_KEY}`, returned) and the seconds that it may take
(`{TIMEOUT_HEADER}`). Errors are `message`, `code`, `reason` and `field`; a body that does not fit
its schema is answered with 422 and `detail`. Numbers that are not finite are null.
"""


def create_app(deployment: Deployment) -> ASGIApp:
    """The application of a deployment, with all that surrounds its requests."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_backends(deployment) as backends:
            app.state.gateway = Gateway(backends)
            yield

    # Its pages need no network: they bring their scripts along.
    app = FastAPIOffline(
        redoc_url=None,
        static_url=DOCS_ASSETS,
        title="Neuropil",
        version="0.1.0",
        description=_DESCRIPTION,
        lifespan=lifespan,
        generate_unique_id_function=operation_id,
        separate_input_output_schemas=False,
    )
    routers = [module.router for module in (read, inference, batches, explainer, pages)]
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    _answer_failures(app)
    served: ASGIApp = DirectRoutes(
        app, routes=read.RECORD_ROUTES, gateway=lambda: app.state.gateway
    )
    if deployment.http.answer_cache_megabytes:
        served = AnswerCache(
            served,
            routes=read.RECORD_ROUTES,
            max_bytes=deployment.http.answer_cache_megabytes * MEBIBYTE,
            seconds=deployment.http.answer_cache_seconds,
        )
    return CORSMiddleware(
        RequestMiddleware(
            served,
            routes={
                "/docs",
                "/openapi.json",
                *(
                    route.path
                    for each in routers
                    for route in each.routes
                    if isinstance(route, Route)
                ),
            },
            default_seconds=deployment.limits.default_deadline_seconds,
            max_body_bytes=deployment.http.max_body_megabytes * MEBIBYTE,
        ),
        allow_origins=deployment.http.cors_origins,
        allow_origin_regex=LOOPBACK_ORIGIN,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_credentials=True,
        expose_headers=[REQUEST_ID_KEY, read.PARTIAL_HEADER, "Retry-After"],
    )


def _answer_failures(app: FastAPI) -> None:
    @app.exception_handler(GatewayError)
    async def gateway_error(request: Request, error: GatewayError) -> Response:
        return error.response()

    @app.exception_handler(NeuropilError)
    async def domain_error(request: Request, error: NeuropilError) -> Response:
        return from_domain_error(error).response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return from_validation_error(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return from_http_error(error)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        return internal_error().response()
