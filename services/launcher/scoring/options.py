"""The command line of `neuropil score`, checked before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuropil.names import CALIBRATION_KINDS, DERIVED_SCALAR_TYPES, SCORING_METHODS, EnumNames
from services.launcher.scoring.bulk_run import HowToScore
from services.launcher.scoring.command import Source
from services.launcher.scoring.explained import Proposing, Selection
from shared.errors import ConfigurationError

_KEY_BYTES = 256
_NOT_STORABLE = ("detection", "fuzzing")


def checked_source(
    file: Path | None,
    *,
    dataset: str,
    layers: Sequence[int],
    derived_scalar_type: str,
    limit: int,
    propose: bool,
    explainer: str,
    count: int,
    seed: int,
) -> Source:
    """What is scored; ConfigurationError names the option that doesn't go with the others."""
    _check_name(DERIVED_SCALAR_TYPES, "--derived-scalar-type", derived_scalar_type)
    if file is None and not dataset:
        raise ConfigurationError("", "give a FILE of explanations, or a --dataset that has some")
    if file is not None:
        for option, given in (("--propose", propose), ("--layer", layers), ("--limit", limit)):
            if given:
                raise ConfigurationError(option, "is for a --dataset, not for a FILE")
    if not propose:
        for option, asked in (("--explainer", explainer), ("--count", count != 1)):
            if asked:
                raise ConfigurationError(option, "needs --propose")
    selection = Selection(dataset, derived_scalar_type, tuple(layers), limit)
    return Source(file, selection, Proposing(explainer, count, seed) if propose else None)


def checked_how(
    *, calibration: str | None, method: str | None, key: str, put_to: str, **others: Any
) -> HowToScore:
    """How it is scored; ConfigurationError names the option that can't be used."""
    if calibration is not None:
        _check_name(CALIBRATION_KINDS, "--calibration", calibration)
    if method is not None:
        _check_name(SCORING_METHODS, "--method", method)
    if put_to and method in _NOT_STORABLE:
        raise ConfigurationError(
            "--put-to", f"takes no {method} scores: explanation files have no place for them"
        )
    if method not in (None, "simulation") and calibration not in (None, "none"):
        raise ConfigurationError("--calibration", f"nothing is calibrated for {method}")
    if len(key.encode(errors="replace")) > _KEY_BYTES:
        raise ConfigurationError("--key", f"has more than {_KEY_BYTES} bytes")
    return HowToScore(calibration=calibration, method=method, key=key, put_to=put_to, **others)


def _check_name(names: EnumNames[Any], option: str, name: str) -> None:
    try:
        names.value(name)
    except ValueError as error:
        raise ConfigurationError(option, str(error)) from error
