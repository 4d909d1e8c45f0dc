"""What answers of several routes have in common, as the OpenAPI document describes it.

Nothing makes objects of these classes: answers are built from arrays (`services.gateway.encoding`).
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Answer(BaseModel):
    """What all answers have in common."""

    model_config = ConfigDict(alias_generator=to_camel, serialize_by_alias=True)


class Problem(Answer):
    """Body of an error."""

    message: str
    code: str
    reason: str
    field: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request can't be right; `field` says where"},
    404: {"model": Problem, "description": "What was named does not exist"},
    502: {"model": Problem, "description": "Stored data can't be read"},
    503: {"model": Problem, "description": "A service, or the model, is not there"},
    504: {"model": Problem, "description": "The request's time is over"},
}
"""Errors of the routes that call a service."""


class TokenAndScalar(Answer):
    """A token with its value; null where the value is not finite."""

    token: str
    scalar: float
    normalized_scalar: float


class TokenAndAttentionScalars(Answer):
    """An attending token with its row, and sums and maxima of its row and column."""

    token: str
    scalars: list[float]
    normalized_scalars: list[float]
    total_scalar_in: float
    normalized_total_scalar_in: float
    max_scalar_in: float
    normalized_max_scalar_in: float
    total_scalar_out: float
    normalized_total_scalar_out: float
    max_scalar_out: float
    normalized_max_scalar_out: float
