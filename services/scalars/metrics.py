"""What the worker measures of itself."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from shared.metrics import SECONDS_BUCKETS

WAITING = Gauge("neuropil_scalars_jobs_waiting", "Jobs in the queue of a device.", ["device"])

QUEUE_SECONDS = Histogram(
    "neuropil_scalars_queue_seconds",
    "Time that a job waited for its device.",
    ["device"],
    buckets=SECONDS_BUCKETS,
)

RUN_SECONDS = Histogram(
    "neuropil_scalars_run_seconds",
    "Time of forward and backward pass and of deriving scalars, a job.",
    ["device"],
    buckets=SECONDS_BUCKETS,
)

JOBS = Counter(
    "neuropil_scalars_jobs",
    "Jobs by what became of them (done, failed, out_of_memory, abandoned, refused).",
    ["outcome"],
)

REUSE = Counter(
    "neuropil_scalars_reuse",
    "Jobs by whether a run at hand served them (hit, miss).",
    ["outcome"],
)

REUSED_BYTES = Gauge(
    "neuropil_scalars_reuse_bytes",
    "Memory of runs kept for later requests, and of what was derived from them.",
    ["device"],
)
