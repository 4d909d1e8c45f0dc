"""The catalogue: complete, in the contract's order, and the document made from it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import pytest

from neuropil import names
from neuropil.common import v1 as common
from services.scalars.catalogue import CATALOGUE, Catalogue, Requirement
from services.scalars.catalogue.document import DOCUMENT, render
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    NodeType,
    PassType,
)
from services.scalars.passes.losses import LossKind

WITH_BACKWARD = {*range(1, 18), 19, 20, 42, 59}


def test_holds_every_type_of_the_contract_in_order() -> None:
    numbers = [names.DERIVED_SCALAR_TYPES.value(each.dst.name) for each in CATALOGUE]
    assert numbers == list(range(1, len(common.DerivedScalarType.keys())))
    assert len(numbers) == 106


def test_says_which_have_a_gradient() -> None:
    backward = {
        names.DERIVED_SCALAR_TYPES.value(each.dst.name) for each in CATALOGUE if each.backward
    }
    assert backward == WITH_BACKWARD


def test_every_type_has_a_formula_and_a_node_type() -> None:
    for each in CATALOGUE:
        assert each.formula
        assert each.dst.node_type in NodeType
        assert each.dst.has_layers == (Requirement.NO_LAYER not in each.requirements)


@pytest.mark.parametrize(
    ("contract", "kind"),
    [
        (names.ACTIVATION_LOCATION_TYPES, ActivationLocationType),
        (names.DIMENSIONS, Dimension),
        (names.NODE_TYPES, NodeType),
        (names.PASS_TYPES, PassType),
        (names.LOSS_KINDS, LossKind),
    ],
)
def test_every_enum_of_the_contract_has_its_counterpart(
    contract: Iterable[str], kind: Iterable[StrEnum]
) -> None:
    assert {each.value for each in kind} == set(contract)


def test_a_name_is_declared_once() -> None:
    with pytest.raises(ValueError, match="logits is declared twice"):
        Catalogue([CATALOGUE["logits"], CATALOGUE["logits"]])


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(), (
        "run `python -m services.scalars.catalogue`"
    )
