"""What several comparisons with the reference's derived scalars read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.golden.scalars_manifest import read_arrays, read_manifest


@pytest.fixture(scope="session")
def manifest(golden: Path) -> dict[str, Any]:
    """What was computed, and how."""
    return read_manifest(golden)


@pytest.fixture(scope="session")
def stored(golden: Path) -> dict[str, NDArray[Any]]:
    """The stored parts of all tensors, by their keys."""
    return read_arrays(golden)
