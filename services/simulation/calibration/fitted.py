"""A calibration together with what it was fitted on, so that nothing of that is scored with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from services.simulation.calibration.calibrations import Calibration
from services.simulation.errors import InvalidInput


@dataclass(frozen=True)
class FittedCalibration:
    """A calibration, and the sequences behind it as far as they are known."""

    calibration: Calibration
    tokens: int = 0
    """Number of tokens that it was fitted on."""
    sequence_hashes: tuple[int, ...] = ()
    """`sequence_hash` of each sequence that it was fitted on; empty where they aren't known."""

    def refuse_fitted(self, scored: Sequence[Sequence[str]], field: str) -> None:
        """Raise InvalidInput, naming `field`, where one of `scored` is what it was fitted on."""
        own = set(self.sequence_hashes)
        if not own:
            return
        for position, tokens in enumerate(scored):
            if sequence_hash(tokens) in own:
                raise InvalidInput(
                    f"{field} was fitted on the sequence at position {position} of those to score; "
                    "a score needs sequences of its own",
                    field=field,
                    reason="SCORED_SEQUENCE_IN_CALIBRATION",
                )


def sequence_hash(tokens: Sequence[str]) -> int:
    """64 bits of BLAKE2b of the tokens, each behind its length in characters and a colon.

    The same on every machine and in every release: it stands in stored calibrations.
    """
    content = "".join([f"{len(token)}:{token}" for token in tokens])
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")
