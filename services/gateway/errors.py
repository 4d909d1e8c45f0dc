"""Failures as HTTP answers: `{message, code, reason, field, ...}`.

`code` is the name of the gRPC status code; `field` is the path of the request's field as a client
writes it in JSON; what a program may act on (datasets tried, the file at fault) stands beside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic.alias_generators import to_camel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from neuropil.errors import NeuropilError as ClientError
from services.gateway.paths import FieldPath, json_path
from services.gateway.requests.fields import IMPOSSIBLE
from shared.errors import NeuropilError
from shared.rpc.interceptors.errors import INTERNAL_TEXT

STATUS_BY_CODE = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "DATA_LOSS": 502,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""HTTP status of each gRPC code that tells the caller something; all others are defects: 500."""

MODEL_NOT_CONFIGURED = "MODEL_NOT_CONFIGURED"
STORAGE_ACCESS_DENIED = "STORAGE_ACCESS_DENIED"

# Of a request that is refused again however late it comes again.
_TOO_MUCH = re.compile("TOO_(LARGE|LONG)$|^TOO_MANY_")
_CODE_BY_STATUS = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    413: "RESOURCE_EXHAUSTED",
}
# What the prompt at fault is compared with.
_OTHER_PROMPT = re.compile(r"\binferences\[\d{1,4}\]\.inference\.prompt\b")
_REASON_BY_STATUS = {
    400: "UNREADABLE_BODY",
    404: "UNKNOWN_ROUTE",
    405: "METHOD_NOT_ALLOWED",
    413: "REQUEST_TOO_LARGE",
}


class GatewayError(Exception):
    """A failure with the status and the body that answer it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        reason: str,
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            **{to_camel(name): value for name, value in (metadata or {}).items()},
            "message": message,
            "code": code,
            "reason": reason,
            "field": field,
        }
        self.headers: dict[str, str] = {}
        if retry_after_seconds is not None:
            self.body["retryAfterSeconds"] = retry_after_seconds
            # The header knows whole seconds only; 0 would ask to try again at once.
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_seconds)))

    def response(self) -> Response:
        """The answer."""
        return json_error(self.status, self.body, self.headers)


def json_error(
    status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """An answer with an error's body."""
    return Response(
        orjson.dumps(body), status, headers=dict(headers or {}), media_type="application/json"
    )


def internal_error() -> GatewayError:
    """The answer to a defect of ours: nothing but where to look."""
    return GatewayError(500, INTERNAL_TEXT, code="INTERNAL", reason="INTERNAL")


def from_service_error(
    error: ClientError, service: str, path: FieldPath = json_path
) -> GatewayError | None:
    """The answer for a call of `service` that failed; None where it is a defect.

    `path` gives a field of the contract as the client wrote it.
    """
    status = STATUS_BY_CODE.get(error.code)
    if status is None:
        return None
    metadata = dict(error.metadata)
    # Where stored data is at fault, the field is one of the file's and not of the request's.
    file_field = metadata.pop("field", "")
    field = path(error.field) if error.field else file_field
    message, reason = error.message, error.reason
    if error.field:
        message = message.replace(error.field, field)
    message = _OTHER_PROMPT.sub(lambda found: path(found[0]), message)
    if not reason:
        # The transport's own text names addresses, which are nobody's business.
        message, reason, status = _transport_failure(error, service, status)
    elif reason in (MODEL_NOT_CONFIGURED, STORAGE_ACCESS_DENIED):
        status = 503
    elif error.code == "RESOURCE_EXHAUSTED" and _TOO_MUCH.search(reason):
        status = 413
    return GatewayError(
        status,
        message,
        code=error.code,
        reason=reason,
        field=field,
        metadata=metadata,
        retry_after_seconds=error.retry_after_seconds,
    )


def _transport_failure(error: ClientError, service: str, status: int) -> tuple[str, str, int]:
    if error.code == "RESOURCE_EXHAUSTED" and "larger than max" in error.message:
        return f"the {service} service's answer is too large", "REPLY_TOO_LARGE", 413
    sentences = {
        "UNAVAILABLE": f"the {service} service does not answer now; try again later",
        "DEADLINE_EXCEEDED": f"the {service} service did not answer within the request's time",
        "UNIMPLEMENTED": f"the {service} service does not serve this",
    }
    reason = "SERVICE_UNAVAILABLE" if error.code == "UNAVAILABLE" else error.code
    fallback = f"the {service} service refused the request"
    return sentences.get(error.code, fallback), reason, status


def from_domain_error(error: NeuropilError) -> GatewayError:
    """The answer for a failure that the gateway itself found."""
    return GatewayError(
        STATUS_BY_CODE.get(error.code, 500),
        error.message,
        code=error.code,
        reason=error.reason,
        field=error.field,
        metadata=error.metadata,
        retry_after_seconds=error.retry_after_seconds,
    )


def from_http_error(error: HTTPException) -> Response:
    """The answer for what never reached a route: an unknown path, a wrong method, a large body."""
    status = error.status_code
    body = {
        "message": str(error.detail),
        "code": _CODE_BY_STATUS.get(status, "UNKNOWN"),
        "reason": _REASON_BY_STATUS.get(status, "HTTP_ERROR"),
        "field": "",
    }
    return json_error(status, body, dict(error.headers or {}))


def from_validation_error(error: RequestValidationError) -> Response:
    """422 with `detail` where the body does not fit the schema, 400 where it fits in vain."""
    problems = error.errors()
    misfits = [each for each in problems if each["type"] != IMPOSSIBLE]
    worst = (misfits or problems)[0]
    if worst["type"] == "json_invalid":
        field = ""
        message = f"the body is not JSON: {worst['ctx']['error']} at character {worst['loc'][-1]}"
    else:
        field = _location_path(worst["loc"])
        message = f"{field or 'the body'}: {worst['msg']}"
    body: dict[str, Any] = {
        "message": _clean(message),
        "code": "INVALID_ARGUMENT",
        "reason": "SCHEMA_MISMATCH" if misfits else "INVALID_ARGUMENT",
        "field": _clean(field),
    }
    if not misfits:
        return json_error(400, body)
    body["detail"] = [
        {
            "loc": [_clean(step) if isinstance(step, str) else step for step in each["loc"]],
            "msg": _clean(str(each["msg"])),
            "type": each["type"],
        }
        for each in misfits
    ]
    return json_error(422, body)


def _location_path(location: Sequence[int | str]) -> str:
    path = ""
    for step in location[1:]:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}" if path else step
    return path


def _clean(text: str) -> str:
    # A key of the body may hold half a character, which no answer can.
    return text.encode("utf-8", "replace").decode("utf-8")
