"""Checks every request against the limits that the contract declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import protovalidate
from google.protobuf.message import DecodeError
from protovalidate import Violation

from shared.errors import InvalidArgument
from shared.rpc.interceptors.wrapping import Behavior, Context, Interceptor

UNREADABLE_REQUEST = "UNREADABLE_REQUEST"

_NOT_SET = "enum.not_in"
"""The only value that the contract forbids of an enum is that of one that isn't set."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In the place of a request whose bytes are no message of its type."""

    message_type: str


def readable_or_not(parse: Callable[[bytes], Any], message_type: str) -> Callable[[bytes], Any]:
    """A deserializer that gives the request, or `Unreadable`.

    What a deserializer raises would end the call before any interceptor sees it: without details,
    not measured, and with a trace in the log for every such request.
    """

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return Unreadable(message_type)

    return deserialize


class ValidationInterceptor(Interceptor):
    """Refuses a request that breaks a rule, naming the field and the rule."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()

    def unary(self, method: str, behavior: Behavior) -> Behavior:
        """Check the request before the call."""

        async def call(request: Any, context: Context) -> Any:
            self._check(request)
            return await behavior(request, context)

        return call

    def _check(self, request: Any) -> None:
        if isinstance(request, Unreadable):
            raise InvalidArgument(
                f"the request can't be read: it is no {request.message_type}",
                reason=UNREADABLE_REQUEST,
            )
        violations = self._validator.collect_violations(request, fail_fast=True)
        if violations:
            raise _explain(violations[0])


def _explain(violation: Violation) -> InvalidArgument:
    field = field_path(violation)
    rule = violation.proto.message or "breaks a rule of the contract"
    if violation.proto.rule_id == _NOT_SET:
        rule = "must be set"
    return InvalidArgument(f"{field or 'the request'}: {rule}", field=field)


def field_path(violation: Violation) -> str:
    """The field at fault as ``outer.inner[3]``."""
    path = violation.proto.field
    parts = []
    for element in path.elements if path is not None else ():
        name = element.field_name
        subscript = element.subscript
        if subscript is not None and subscript.field == "index":
            name += f"[{subscript.value}]"
        elif subscript is not None:
            name += f"[{subscript.value!r}]"
        parts.append(name)
    return ".".join(parts)
