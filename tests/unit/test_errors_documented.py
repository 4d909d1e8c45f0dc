"""`docs/errors.md` has a row for every reason that a service may answer, and no other."""

from __future__ import annotations

import ast
import re

from services.gateway.errors import STATUS_BY_CODE
from tests.unit.errors_in_source import CODES, REPOSITORY, ROWS, SERVICES, given_reasons

GATEWAY = REPOSITORY / "services" / "gateway" / "errors.py"


def test_every_row_is_there_once() -> None:
    assert len(ROWS) == len(CODES) > 40


def test_every_reason_has_its_row() -> None:
    missing = {given.reason: given.place for given in given_reasons() if given.reason not in CODES}
    assert missing == {}


def test_a_row_has_the_codes_that_its_errors_have() -> None:
    wrong = [
        given
        for given in given_reasons()
        if given.code is not None and given.code not in CODES[given.reason]
    ]
    assert wrong == []


def test_a_row_names_the_services_that_give_it() -> None:
    """Those whose folder the reason is in; what is shared may be any of theirs."""
    for given in given_reasons():
        top, folder = given.place.split("/")[:2]
        named = SERVICES[given.reason]
        assert top == "shared" or named == {"all"} or folder in named, given


def in_the_gateway() -> set[str]:
    """What the gateway's own errors may have as a reason: its texts in capitals, but for
    codes."""
    return {
        node.value
        for node in ast.walk(ast.parse(GATEWAY.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[A-Z]+(_[A-Z]+)+", node.value)
    } - {*STATUS_BY_CODE}


def test_what_the_gateway_answers_of_its_own_has_its_row() -> None:
    assert in_the_gateway() - {*CODES} == set()


def test_no_row_is_left_over() -> None:
    given = {each.reason for each in given_reasons()}
    assert {*CODES} - given - in_the_gateway() == set()
