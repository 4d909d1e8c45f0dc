"""The OpenAPI document, in the dialect that the viewer's generated client comes from."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute


def operation_id(route: APIRoute) -> str:
    """`{tag}-{function}`, which generated clients make their methods' names from."""
    return f"{route.tags[0]}-{route.name}" if route.tags else route.name


def describe(app: FastAPI) -> dict[str, Any]:
    """The document; made once.

    The reference's describes a field that may be null as one that may be left out, and clients
    generated from it have optional fields. So does this one.
    """
    if not app.openapi_schema:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        app.openapi_schema = _without_nulls(document)
    return app.openapi_schema


def _without_nulls(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_nulls(each) for each in node]
    if not isinstance(node, dict):
        return node
    choices = node.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        rest = [each for each in choices if each != {"type": "null"}]
        others = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        node = {**others, **(rest[0] if len(rest) == 1 else {"anyOf": rest})}
    return {key: _without_nulls(value) for key, value in node.items()}
