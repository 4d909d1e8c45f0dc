"""What a collation is asked to do."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.collate.collation import SampleSizes
from shared.errors import InvalidArgument

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Dataset:
    """One folder of records, and the derived scalar type that they are of."""

    folder: str
    derived_scalar_type: str

    @classmethod
    def parse(cls, text: str) -> Dataset:
        """`FOLDER=TYPE`, for example `mlp=mlp_post_act`."""
        match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)=([a-z][a-z0-9_]*)", text)
        if match is None:
            raise InvalidArgument(
                f"dataset {text!r} is not FOLDER=TYPE, for example mlp=mlp_post_act",
                field="dataset",
            )
        return cls(match[1], match[2])


DEFAULT_DATASETS = (Dataset("mlp", "mlp_post_act"), Dataset("attn", "attn_write_norm"))


@dataclass(frozen=True)
class Options:
    """A collation; `job` is the part that decides what the records hold."""

    corpus: str
    out: Path
    datasets: tuple[Dataset, ...] = DEFAULT_DATASETS
    least_tokens: int = 8
    most_tokens: int = 32
    sizes: SampleSizes = field(default_factory=SampleSizes)
    pilot_sequences: int = 1024
    """About how many random sequences the quantile boundaries are estimated on."""
    attended_to_cap: int | None = None
    """Of a token pair's attended-to tokens, keep only this many first ones."""
    seed: int = 0
    significant_digits: int | None = 4
    limit: int | None = None
    """Stop after this many sequences of the corpus."""
    concurrency: int = 8
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        _at_least("least_tokens", self.least_tokens, 1)
        _at_least("most_tokens", self.most_tokens, self.least_tokens)
        for name in ("top", "random", "per_quantile"):
            _at_least(name, getattr(self.sizes, name), 0)
        if self.sizes.top == 0:
            raise InvalidArgument("top is 0; a record needs top sequences", field="top")
        cuts = self.sizes.quantiles
        if any(not 0 < cut < 1 for cut in cuts) or list(cuts) != sorted(set(cuts)):
            raise InvalidArgument(
                f"quantiles {list(cuts)} are not ascending numbers between 0 and 1",
                field="quantile",
            )
        _at_least("pilot_sequences", self.pilot_sequences, 1)
        _at_least("seed", self.seed, 0)
        _at_least("concurrency", self.concurrency, 1)
        _at_least("checkpoint_every", self.checkpoint_every, 1)
        for name in ("attended_to_cap", "significant_digits", "limit"):
            value = getattr(self, name)
            if value is not None:
                _at_least(name, value, 1)
        folders = [dataset.folder for dataset in self.datasets]
        if not folders or len(set(folders)) != len(folders):
            raise InvalidArgument("datasets need different folders, at least one", field="dataset")
        if re.match(r"[a-z][a-z0-9+.-]*://", str(self.out)) or ":/" in str(self.out):
            raise InvalidArgument(
                f"{self.out} is remote; records are written to a local folder, to be copied then",
                field="out",
            )

    def job(self, corpus_digest: str, model: str) -> dict[str, Any]:
        """What records depend on, as JSON: two jobs with the same give the same files."""
        values = asdict(self)
        for name in ("corpus", "out", "concurrency", "checkpoint_every"):
            del values[name]
        values["sizes"]["quantiles"] = list(self.sizes.quantiles)
        values["datasets"] = [asdict(dataset) for dataset in self.datasets]
        return {
            "format_version": FORMAT_VERSION,
            "corpus_sha256": corpus_digest,
            "model": model,
            **values,
        }


def _at_least(name: str, value: int, least: int) -> None:
    if not math.isfinite(value) or value < least:
        raise InvalidArgument(f"{name} is {value}; it must be at least {least}", field=name)
