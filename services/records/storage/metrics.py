"""What blob storage tells of itself."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from shared.metrics import SECONDS_BUCKETS

STORE_REQUESTS = Counter(
    "neuropil_records_storage_requests",
    "Requests to blob stores by store and outcome (answered, failed, given_up, not_sent).",
    ["store", "outcome"],
)
STORE_SECONDS = Histogram(
    "neuropil_records_storage_seconds",
    "Time until a blob store answered a request whole.",
    ["store"],
    buckets=SECONDS_BUCKETS,
)
STORE_LEFT_ALONE = Gauge(
    "neuropil_records_storage_left_alone",
    "1 where a blob store failed so often that it is only tried once a second.",
    ["store"],
)
WRITE_CONFLICTS = Counter(
    "neuropil_records_storage_write_conflicts",
    "Writes that began anew as another writer had been faster.",
)
