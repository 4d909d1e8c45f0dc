"""The catalogue of derived scalar types.

To add a type, declare it in the module of its subject and put it into that module's `DECLARATIONS`.
The service's list of types, the validation of requests and docs/scalars.md come from it.
"""

from __future__ import annotations

from neuropil import names
from services.scalars.catalogue import (
    attention,
    autoencoders,
    edge_nodes,
    in_edges,
    latent_attribution,
    mlp,
    out_edges,
    raw,
    residual,
    traced,
    vectors,
    vocabulary,
)
from services.scalars.catalogue.declaration import Catalogue, Declaration, Derivers, Requirement

__all__ = ["CATALOGUE", "Catalogue", "Declaration", "Derivers", "Requirement"]

_MODULES = (
    attention,
    autoencoders,
    edge_nodes,
    in_edges,
    latent_attribution,
    mlp,
    out_edges,
    raw,
    residual,
    traced,
    vectors,
    vocabulary,
)


def _number(declaration: Declaration) -> int:
    """The number of a type in the contract."""
    return names.DERIVED_SCALAR_TYPES.value(declaration.dst.name)


CATALOGUE = Catalogue(
    sorted((each for module in _MODULES for each in module.DECLARATIONS), key=_number)
)
