"""A causal language model: exact logits of rows that continue a shared prefix."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from services.simulation.language_models.interface import GenerationOptions
from services.simulation.language_models.local import activations, attention, generation
from services.simulation.language_models.local.forward_failures import refusing_what_fails
from services.simulation.language_models.local.heads import ColumnHead
from services.simulation.language_models.local.loading import LoadedModel, load_model, not_loaded
from services.simulation.language_models.local.packing import PackedRows, batches
from services.simulation.language_models.local.prefixes import (
    Prefix,
    Segment,
    SegmentCache,
    chain_key,
    joined,
    pieces,
)
from services.simulation.language_models.local.rows import (
    Row,
    RowLogits,
    Stopped,
    at_once,
    never,
    not_finite,
)
from services.simulation.model_positions import max_positions
from shared.errors import NeuropilError, ResourceExhausted

_log = structlog.get_logger(__name__)

DEFAULT_CACHE_BYTES = 512 * 1024 * 1024
DEFAULT_BATCH_TOKENS = 2048
_CPU_BATCH_TOKENS = 1024
"""On a CPU more tokens a pass bring nothing, and let other callers and cancellations wait."""
_FULL_LOGITS_AT_ONCE = 64 * 1024 * 1024


@dataclass
class LocalModel:
    """One thread at a time uses it; `DeviceWorker` sees to that.

    The methods whose names end in `_steps` are generators that yield after each forward pass, for
    the worker; the others do the same at once.
    """

    loaded: LoadedModel
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    cache: SegmentCache = field(default_factory=lambda: SegmentCache(DEFAULT_CACHE_BYTES))
    shares_prefix: bool = False
    """Whether what rows share is computed once. Decided when the model is loaded."""
    shares_prefix_reason: str = "not tried"
    """Why not."""
    calls: int = 0
    """Forward passes so far."""

    @classmethod
    def load(
        cls,
        path: str,
        device: str = "auto",
        dtype: str = "float32",
        *,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> LocalModel:
        """Load the model of a folder, and find out whether prefixes can be shared exactly.

        Raises:
            Unavailable: as `load_model` says, or the model isn't causal or computes NaN.
        """
        from services.simulation.language_models.local.probe import NotCausal, probe

        loaded = load_model(path, device, dtype)
        if loaded.device == "cpu":
            batch_tokens = min(batch_tokens, _CPU_BATCH_TOKENS)
        model = cls(loaded, batch_tokens, SegmentCache(cache_bytes))
        try:
            probe(model)
        except (NeuropilError, NotCausal) as error:
            raise not_loaded(path, str(error)) from error
        _log.info(
            "language_model_loaded",
            path=path,
            device=loaded.device,
            dtype=dtype,
            shares_prefix=model.shares_prefix,
            why_not=model.shares_prefix_reason,
        )
        return model

    def __post_init__(self) -> None:
        self._model = self.loaded.model
        self.max_positions = max_positions(self._model)
        """Tokens that a prompt has at most; None where the model has no such bound."""
        self._plain_attention = self._model.config._attn_implementation
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._head = ColumnHead.put_into(self._model)
        activations.fuse(self._model)
        self._device = torch.device(self.loaded.device)
        self._attends = self._plain_attention
        self.windows: dict[int, int | None] = {}
        """Sliding window by layer, as the last pass with shared attention met them."""

    @property
    def tokenizer(self) -> Any:
        """The fast tokenizer of transformers."""
        return self.loaded.tokenizer

    @property
    def fingerprint(self) -> str:
        """Hash of what the answers depend on."""
        return self.loaded.fingerprint

    @property
    def vocabulary(self) -> int:
        """Number of ids that it knows."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What every prompt of this model begins with: the mark of the beginning, or nothing."""
        begin = self.tokenizer.bos_token_id
        ids = self.tokenizer("a")["input_ids"]
        return (int(begin),) if begin is not None and ids[:1] == [begin] else ()

    def prefix(self, segments: Sequence[tuple[int, ...]], stopped: Stopped = never) -> Prefix:
        """What rows continue: the segments in a row, each computed once and remembered.

        A segment is found again where the same ids stand before it. Empty segments are passed
        over.

        Raises:
            ResourceExhausted: it is longer than the model reads.
            FailedPrecondition: the model computes what isn't finite.
            WorkStopped: `stopped` said so.
        """
        return at_once(self.prefix_steps(segments), stopped)

    def logits(
        self, prefix: Prefix, rows: Sequence[Row], stopped: Stopped = never
    ) -> list[RowLogits]:
        """What each row asks for, in order.

        Raises:
            InvalidInput: a row names ids or positions that don't exist.
            ResourceExhausted: prefix and row are longer than the model reads.
            FailedPrecondition: a logit that is asked for isn't finite.
            WorkStopped: `stopped` said so.
        """
        return at_once(self.logits_steps(prefix, rows), stopped)

    def generate(
        self,
        prefix: Prefix,
        ids: Sequence[int],
        options: GenerationOptions,
        stopped: Stopped = never,
    ) -> tuple[tuple[int, ...], bool]:
        """Ids that follow the prefix and `ids`, and whether they ended before the limit.

        Raises:
            InvalidInput, ResourceExhausted, FailedPrecondition, WorkStopped: as for `logits`.
        """
        steps = generation.generate_steps(self, prefix, [tuple(ids)], [options])
        (text,), _ = at_once(steps, stopped)
        return text.ids, text.finished

    def prefix_steps(self, segments: Sequence[tuple[int, ...]]) -> Generator[None, None, Prefix]:
        """`prefix`, a forward pass a step."""
        ids = tuple(token for segment in segments for token in segment)
        self.check_length(len(ids))
        if not self.shares_prefix:
            return Prefix(ids)
        found: list[Segment] = []
        key = b""
        start = computed = calls = 0
        for segment_ids in pieces(segments, self.batch_tokens):
            key = chain_key(key, segment_ids)
            segment = self.cache.get(key)
            if segment is None:
                if calls:
                    yield
                row = Row(segment_ids, np.empty(0, np.int64), np.empty(0, np.int64))
                row.check(self.vocabulary, "prefix")
                segment = self._extend(found, start, row.ids, np.empty(0, np.int64))[0]
                calls += 1
                computed += len(segment_ids)
                self.cache.put(key, segment)
            found.append(segment)
            start += len(segment_ids)
        return Prefix(ids, tuple(found), computed, start - computed, calls)

    def logits_steps(
        self, prefix: Prefix, rows: Sequence[Row]
    ) -> Generator[None, None, list[RowLogits]]:
        """`logits`, a forward pass a step."""
        for number, row in enumerate(rows):
            row.check(self.vocabulary, f"rows[{number}]")
            self.check_length(len(prefix) + row.longest)
        results: list[RowLogits | None] = [None] * len(rows)
        widest = max((self.vocabulary if row.normalized else 1 for row in rows), default=1)
        positions = max(1, _FULL_LOGITS_AT_ONCE // widest)
        limit = min(self.batch_tokens, positions) if widest > 1 else self.batch_tokens
        first = True
        if self.shares_prefix:
            for batch in batches(rows, limit):
                if not first:
                    yield
                first = False
                answers = self._packed(prefix, [rows[number] for number in batch])
                for number, answer in zip(batch, answers, strict=True):
                    results[number] = answer
        else:
            for number, row in enumerate(rows):
                if not first:
                    yield
                first = False
                results[number] = yield from self._whole(prefix, row)
        return [result for result in results if result is not None]

    def read(self, prefix: Prefix, ids: Sequence[int]) -> tuple[Segment, torch.Tensor]:
        """Keys and values of `ids` after the prefix, and all logits [vocabulary] after them."""
        return self._extend(prefix.segments, len(prefix), tuple(ids), None)

    def next_tokens(
        self, prefix: Prefix, pasts: Sequence[Segment], ids: Sequence[int]
    ) -> tuple[list[Segment], torch.Tensor]:
        """The pasts, each with the next of `ids`, and all logits [rows, vocabulary] after them."""
        packed = PackedRows.next_tokens(ids, [len(past.ids) for past in pasts])
        running = attention.AttentionPass(
            prefix.segments, packed, len(prefix), pasts=pasts, keep=True
        )
        keep = np.arange(len(ids))
        logits = self._forward(packed.ids, len(prefix) + packed.offsets, keep, None, running)
        layers = range(len(running.keys))
        longer = []
        for row, past in enumerate(pasts):
            own = slice(row, row + 1)
            keys = [running.keys[layer][:, :, own] for layer in layers]
            values = [running.values[layer][:, :, own] for layer in layers]
            start = past.start + len(past.ids)
            longer.append(joined(past, Segment((int(ids[row]),), start, keys, values)))
        return longer, logits

    def after(self, ids: Sequence[int]) -> torch.Tensor:
        """All logits [vocabulary] after `ids`, computed without anything shared."""
        keep = np.asarray([len(ids) - 1], dtype=np.int64)
        places = np.arange(len(ids))
        return self._forward(np.asarray(ids, dtype=np.int64), places, keep, None, None)[0]

    def check_length(self, tokens: int) -> None:
        """Raise ResourceExhausted where a prompt of so many tokens can't be read."""
        limit = self.max_positions
        if limit is not None and tokens > limit:
            raise ResourceExhausted(
                f"a prompt of {tokens} tokens is longer than the {limit} that the model reads",
                reason="PROMPT_TOO_LONG",
                metadata={"tokens": str(tokens), "limit": str(limit)},
            )

    def _extend(
        self,
        segments: Sequence[Segment],
        start: int,
        ids: tuple[int, ...],
        columns: NDArray[np.int64] | None,
    ) -> tuple[Segment, torch.Tensor]:
        packed = PackedRows.from_rows([Row(ids, np.empty(0, np.int64), np.empty(0, np.int64))])
        running = attention.AttentionPass(segments, packed, start, keep=True)
        keep = np.asarray([len(ids) - 1])
        logits = self._forward(packed.ids, start + packed.offsets, keep, columns, running)
        layers = range(len(running.keys))
        # A view would keep what it is a view of: queries, and everything else of its product.
        keys, values = (
            [kept[layer].contiguous() for layer in layers]
            for kept in (running.keys, running.values)
        )
        return Segment(ids, start, keys, values), logits[0]

    def _packed(self, prefix: Prefix, rows: Sequence[Row]) -> list[RowLogits]:
        packed = PackedRows.from_rows(rows)
        running = attention.AttentionPass(prefix.segments, packed, len(prefix))
        keep = np.concatenate([*packed.wanted, *packed.wanted_branches])
        normalized = any(row.normalized for row in rows)
        columns = np.unique(np.concatenate([np.asarray(row.columns, np.int64) for row in rows]))
        logits = self._forward(
            packed.ids, len(prefix) + packed.offsets, keep, None if normalized else columns, running
        )
        sums = (
            torch.logsumexp(logits.float(), dim=-1).double().cpu().numpy() if normalized else None
        )
        if normalized:
            logits = logits[:, torch.from_numpy(columns).to(logits.device)]
        values = logits.double().cpu().numpy()
        self._require_finite(values, sums)
        starts = np.cumsum([0, *(len(w) for w in (*packed.wanted, *packed.wanted_branches))])
        results = []
        for number, row in enumerate(rows):
            own = slice(starts[number], starts[number + 1])
            branch = slice(starts[len(rows) + number], starts[len(rows) + number + 1])
            places = np.searchsorted(columns, np.asarray(row.columns, np.int64))
            has_sums = row.normalized and sums is not None
            results.append(
                RowLogits(
                    values[own][:, places],
                    values[branch][:, places] if row.branch else None,
                    sums[own] if has_sums and sums is not None else None,
                    sums[branch] if has_sums and sums is not None and row.branch else None,
                    computed=row.computed,
                    reused=len(prefix),
                )
            )
        return results

    def _whole(self, prefix: Prefix, row: Row) -> Generator[None, None, RowLogits]:
        """Prefix and row at once, and once more for each branch."""
        columns = np.asarray(row.columns, np.int64)
        positions = np.asarray(row.positions, np.int64)
        ids = prefix.ids + row.ids
        parts = [(ids, len(prefix) + positions)]
        if row.branch:
            for position in positions.tolist():
                branch = prefix.ids + row.ids[: position + 1] + row.branch
                parts.append((branch, np.asarray([len(branch) - 1])))
        values, sums = [], []
        for number, (part, keep) in enumerate(parts):
            if number:
                yield
            logits = self._forward(
                np.asarray(part),
                np.arange(len(part)),
                keep,
                None if row.normalized else columns,
                None,
            )
            if row.normalized:
                sums.append(torch.logsumexp(logits.float(), dim=-1).double().cpu().numpy())
                logits = logits[:, torch.from_numpy(columns).to(logits.device)]
            values.append(logits.double().cpu().numpy())
            self._require_finite(values[-1], sums[-1] if sums else None)
        empty = np.empty((0, len(columns)))
        return RowLogits(
            values[0],
            np.concatenate([empty, *values[1:]]) if row.branch else None,
            sums[0] if sums else None,
            np.concatenate([np.empty(0), *sums[1:]]) if sums and row.branch else None,
            computed=sum(len(part) for part, _ in parts),
        )

    def _forward(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        keep: NDArray[np.int64],
        columns: NDArray[np.int64] | None,
        running: attention.AttentionPass | None,
    ) -> torch.Tensor:
        """Logits [keep, columns] (all columns for None) of one pass over `ids` [tokens]."""
        self._attend_by(self._plain_attention if running is None else attention.NAME)
        self.calls += 1
        to = self._device
        index = torch.from_numpy(np.asarray(keep, np.int64)).to(to)
        given: dict[str, Any] = {
            "input_ids": torch.from_numpy(np.asarray(ids, np.int64)).to(to)[None],
            "use_cache": False,
        }
        if running is not None:
            given["position_ids"] = torch.from_numpy(np.asarray(positions, np.int64)).to(to)[None]
        if self._keeps_logits:
            given["logits_to_keep"] = index
        logits: torch.Tensor
        with refusing_what_fails(len(ids)), torch.inference_mode(), self._head.only(columns):
            if running is None:
                logits = self._model(**given).logits[0]
            else:
                with attention.running(running):
                    logits = self._model(**given).logits[0]
                self.windows = running.layers
        if not self._keeps_logits:
            logits = logits[index]
        if columns is not None and logits.shape[-1] != len(columns):
            logits = logits[:, torch.from_numpy(columns).to(logits.device)]
        return logits

    def _attend_by(self, name: str) -> None:
        if self._attends != name:
            self._model.set_attn_implementation(name)
            self._attends = name

    def _require_finite(self, *parts: NDArray[np.float64] | None) -> None:
        if not all(np.isfinite(part).all() for part in parts if part is not None):
            raise not_finite()
