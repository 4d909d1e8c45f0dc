"""What the fields of bodies that clients send have in common.

Keys are camelCase, snake_case is accepted, unknown keys are ignored, a number may be written as a
string. What does not fit the schema is told from what fits and is impossible all the same (a
negative or fractional index, text that is no Unicode): the first is answered with 422, the second,
raised as `IMPOSSIBLE`, with 400.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

_INTEGERS = TypeAdapter(int)

IMPOSSIBLE = "impossible"
"""Type of the validation errors that are answered with 400."""

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*", re.ASCII)
_MISFIT = "int_parsing"


def _refuse_fraction(value: Any) -> Any:
    # pydantic would read true as 1, and "1_0" as 10.
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise PydanticCustomError(_MISFIT, "must be a whole number")
    number = float(value) if isinstance(value, str) else value
    if isinstance(number, float) and not (math.isfinite(number) and number.is_integer()):
        raise PydanticCustomError(IMPOSSIBLE, "must be a whole number")
    return int(number) if isinstance(value, float) else value


def _refuse_huge(value: int) -> int:
    if abs(value) > _MAX_INT64:
        raise PydanticCustomError(IMPOSSIBLE, "must be below 2^63")
    return value


def _refuse_large(value: int) -> int:
    if abs(value) > _MAX_INT32:
        raise PydanticCustomError(IMPOSSIBLE, "must be below 2^31")
    return value


def _refuse_negative(value: int) -> int:
    if value < 0:
        raise PydanticCustomError(IMPOSSIBLE, "must not be negative")
    return value


def _refuse_surrogates(value: str) -> str:
    # JSON can spell half a character ("\ud800"), which no text has.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            IMPOSSIBLE, "must be Unicode text without lone surrogates"
        ) from None
    return value


def at_most(limit: int) -> BeforeValidator:
    """Refuse a list or an object over the contract's limit before looking at what it holds."""

    def check(value: Any) -> Any:
        if isinstance(value, (list, dict)) and len(value) > limit:
            raise PydanticCustomError(
                IMPOSSIBLE,
                "must hold at most {limit} items, not {length}",
                {"limit": limit, "length": len(value)},
            )
        return value

    return BeforeValidator(check)


Integer = Annotated[int, BeforeValidator(_refuse_fraction), AfterValidator(_refuse_huge)]
Index = Annotated[Integer, AfterValidator(_refuse_negative)]
Count = Annotated[Integer, AfterValidator(_refuse_large), AfterValidator(_refuse_negative)]
Text = Annotated[str, AfterValidator(_refuse_surrogates)]


def _check_index_or_all(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    # As a plain union it would be two problems, of which one is always a misfit.
    if value == "All":
        return value
    try:
        number = _INTEGERS.validate_python(_refuse_fraction(value))
    except (ValidationError, PydanticCustomError) as error:
        if isinstance(error, PydanticCustomError) and error.type == IMPOSSIBLE:
            raise
        raise PydanticCustomError("index", 'must be an index or "All"') from None
    return _refuse_negative(_refuse_huge(number))


IndexOrAll = Annotated[int | Literal["All"], WrapValidator(_check_index_or_all)]


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True
    )
