"""Bodies of the gateway's record routes: read, refused with an answer, or made a request of."""

from __future__ import annotations

import json
import math
from typing import Any

import protovalidate
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from neuropil.common import v1 as common
from services.gateway.errors import from_validation_error
from services.gateway.requests.components import (
    ComponentId,
    ExistingExplanationsRequest,
    NodeIdAndDatasets,
    ScoreRequest,
)
from services.gateway.requests.fields import Body
from services.gateway.routes.read import component_message

BODIES: list[type[ComponentId]] = [NodeIdAndDatasets, ExistingExplanationsRequest, ScoreRequest]
_MAX_INT64 = 2**63 - 1
_VALIDATOR = protovalidate.Validator()


def bodies(data: bytes) -> None:
    """A byte that chooses the route, and JSON: what is accepted is what was sent."""
    if not data:
        return
    kind = BODIES[data[0] % len(BODIES)]
    try:
        sent = json.loads(data[1:])
    except (ValueError, RecursionError):
        return
    try:
        body = kind.model_validate(sent)
    except ValidationError as error:
        _check_refusal(error)
        return
    for name in ("layer_index", "activation_index"):
        assert getattr(body, name) == _whole_number(_field(sent, name))
    assert body.dst.value == _field(sent, "dst")
    for name in ("datasets", "explanation_datasets", "neuron_dataset", "explanation"):
        if name in kind.model_fields:
            assert getattr(body, name) == _field(sent, name)
    _check_sendable(body)
    assert kind.model_validate(body.model_dump(mode="json", by_alias=True)) == body
    message = component_message(body)
    assert common.ComponentId.FromString(message.SerializeToString()) == message
    assert not _VALIDATOR.collect_violations(message)


def _check_refusal(error: ValidationError) -> None:
    """The answer is one of the two that there are, and says where and why."""
    # The framework puts the part of the request before each location.
    problems: list[Any] = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
    answer = from_validation_error(RequestValidationError(problems))
    told = json.loads(bytes(answer.body))
    assert answer.status_code == (422 if "detail" in told else 400)
    assert told["code"] == "INVALID_ARGUMENT"
    assert told["message"]


def _field(sent: dict[str, Any], name: str) -> Any:
    camel = "".join([part.title() if at else part for at, part in enumerate(name.split("_"))])
    return sent.get(camel, sent.get(name))


def _whole_number(value: Any) -> int:
    """The only number that `value` can mean."""
    assert not isinstance(value, bool)
    if isinstance(value, str):
        value = value.strip()
        value = int(value.partition(".")[0])
    assert math.isfinite(value)
    assert value == int(value)
    assert 0 <= value <= _MAX_INT64
    return int(value)


def _check_sendable(body: Body) -> None:
    """Every text has a form in UTF-8."""
    json.dumps(body.model_dump(mode="json"), ensure_ascii=False).encode()
