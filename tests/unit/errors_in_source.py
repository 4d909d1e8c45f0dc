"""Which reasons the source gives to errors, and where; and which docs/errors.md has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shared import errors

REPOSITORY = Path(__file__).resolve().parents[2]
_PAGE = (REPOSITORY / "docs" / "errors.md").read_text()
_ROW = re.compile(r"^\| `([A-Z_]+)` \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = _ROW.findall(_PAGE.partition("\n## Reasons\n")[2].partition("\n## ")[0])
"""Reason, codes, services and occasion of each row."""
CODES = {reason: set(re.findall(r"`([A-Z_]+)`", codes)) for reason, codes, _, _ in ROWS}
SERVICES = {reason: set(services.split(", ")) for reason, _, services, _ in ROWS}
# These answer nobody: their errors end a command.
_COMMANDS = ("services/collate/", "services/launcher/")


@dataclass(frozen=True)
class Given:
    """A reason in the source, with the code where the class of the error tells it."""

    reason: str
    code: str | None
    place: str


@cache
def given_reasons() -> tuple[Given, ...]:
    """The reason of every error that a service may answer.

    Reasons are strings or names of strings; an AssertionError tells of one that is neither, and
    was not passed on from another error.
    """
    return tuple(_given())


def _given() -> Iterator[Given]:
    trees = {
        path: ast.parse(path.read_text())
        for folder in ("services", "shared")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        if not str(path.relative_to(REPOSITORY)).startswith(_COMMANDS)
    }
    classes = _classes()
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    if isinstance(base, ast.Name) and base.id in classes:
                        classes[node.name] = classes[base.id]
    constants = {path: _constants(tree) for path, tree in trees.items()}
    everywhere = {name: text for each in constants.values() for name, text in each.items()}
    for path, tree in trees.items():
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call):
                continue
            kind = classes.get(getattr(call.func, "id", getattr(call.func, "attr", "")))
            place = f"{path.relative_to(REPOSITORY)}:{call.lineno}"
            code = None if kind is None else kind.code
            values = [each.value for each in call.keywords if each.arg == "reason"]
            if kind is not None and not values and call.args:
                yield Given(kind.default_reason, code, place)
            for value in values:
                known = everywhere | constants[path]
                if isinstance(value, ast.Constant):
                    yield Given(str(value.value), code, place)
                elif isinstance(value, ast.Name) and value.id in known:
                    yield Given(known[value.id], code, place)
                else:
                    passed_on = isinstance(value, ast.Attribute) and value.attr == "reason"
                    parameter = isinstance(value, ast.Name) and value.id == "reason"
                    assert passed_on or parameter, f"{place}: a reason that can't be told"


def _classes() -> dict[str, type[errors.NeuropilError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, errors.NeuropilError)
        and kind is not errors.NeuropilError
    }


def _constants(tree: ast.Module) -> dict[str, str]:
    return {
        target.id: statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
