"""Counters of the caches."""

from __future__ import annotations

from prometheus_client import Counter

CACHE_REQUESTS = Counter(
    "neuropil_records_cache_requests",
    "Look-ups of replies by tier (memory, redis) and outcome (hit, miss, error, corrupt, skipped).",
    ["tier", "outcome"],
)
