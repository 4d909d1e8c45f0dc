"""What is measured of the search."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from shared.metrics import SECONDS_BUCKETS

INDEXED_EXPLANATIONS = Gauge(
    "neuropil_records_search_indexed_explanations",
    "Explanations in the index by mode (text, semantic).",
    ["mode"],
)
NOT_EMBEDDED_EXPLANATIONS = Gauge(
    "neuropil_records_search_not_embedded_explanations",
    "Explanations that the sentence model failed at; they are found by words only.",
)
SCAN_TIMESTAMP = Gauge(
    "neuropil_records_search_scan_timestamp_seconds",
    "When the last scan over all explanation datasets ended, in Unix time.",
)
UNREADABLE_FILES = Gauge(
    "neuropil_records_search_unreadable_files", "Explanation files that could not be read."
)
QUERY_SECONDS = Histogram(
    "neuropil_records_search_query_seconds",
    "Seconds that a query took by mode (text, semantic).",
    ["mode"],
    buckets=SECONDS_BUCKETS,
)
EMBEDDER_RESTARTS = Counter(
    "neuropil_records_search_embedder_restarts",
    "How often the process of the sentence model ended and had to be started again.",
)
