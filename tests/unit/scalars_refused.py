"""What a refused request is expected to say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.errors import InvalidArgument, NeuropilError

TOKENS = 6


def refused(
    call: Callable[[], object],
    field: str,
    *words: str,
    kind: type[NeuropilError] = InvalidArgument,
) -> NeuropilError:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.field == field
    for word in words:
        assert word in caught.value.message
    return caught.value
