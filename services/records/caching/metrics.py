"""What the caches tell of themselves."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

CACHE_REQUESTS = Counter(
    "neuropil_records_cache_requests",
    "Look-ups of replies by tier (memory, redis) and outcome (hit, missing, miss, error, corrupt, "
    "skipped); missing: it is known that there is nothing.",
    ["tier", "outcome"],
)
CACHE_LOADS = Counter(
    "neuropil_records_cache_loads",
    "Replies that no cache had, by what was read instead (found, missing, error).",
    ["outcome"],
)
FLIGHT_WAITS = Counter(
    "neuropil_records_cache_flight_waits",
    "Look-ups that waited for a load under way, in this process or in another replica.",
    ["where"],
)
LEASES = Counter(
    "neuropil_records_cache_leases",
    "Right to load a reply for all replicas, by outcome (granted, busy, waited_too_long, lost).",
    ["outcome"],
)
MEMORY_BYTES = Gauge("neuropil_records_cache_memory_bytes", "Bytes that replies in memory take.")
MEMORY_ENTRIES = Gauge("neuropil_records_cache_memory_entries", "Replies in memory.")
MEMORY_EVICTIONS = Counter(
    "neuropil_records_cache_memory_evictions", "Replies that left memory to make room."
)
BREAKER_STATE = Gauge(
    "neuropil_records_cache_breaker_state",
    "Circuit breakers before Redis by operation (read, write): 0 closed, 1 probing, 2 open.",
    ["operation"],
)
BREAKER_OPENED = Counter(
    "neuropil_records_cache_breaker_opened", "How often a circuit breaker opened.", ["operation"]
)
REDIS_SECONDS = Histogram(
    "neuropil_records_cache_redis_seconds",
    "Time until Redis answered, by command.",
    ["command"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
PUTS = Counter(
    "neuropil_records_cache_puts",
    "Replies for Redis by outcome (stored, superseded, error, dropped, skipped).",
    ["outcome"],
)
PUT_QUEUE_BYTES = Gauge(
    "neuropil_records_cache_put_queue_bytes", "Bytes that wait to be written to Redis."
)
