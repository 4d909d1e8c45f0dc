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
    "Time of forward and backward pass and of deriving scalars, a batch.",
    ["device"],
    buckets=SECONDS_BUCKETS,
)

JOBS = Counter(
    "neuropil_scalars_jobs",
    "Jobs by what became of them (done, failed, out_of_memory, abandoned, too_large, shed).",
    ["outcome"],
)

BATCH_ROWS = Histogram(
    "neuropil_scalars_batch_rows",
    "Inferences that were run together.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)

BATCH_TOKENS = Histogram(
    "neuropil_scalars_batch_tokens",
    "Tokens that were run together.",
    buckets=(16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
)

COALESCED = Counter(
    "neuropil_scalars_coalesced_jobs",
    "Jobs that shared a run with another one of their batch.",
)

OUT_OF_MEMORY_SPLITS = Counter(
    "neuropil_scalars_out_of_memory_splits",
    "Times that a batch was tried again in smaller parts, as memory was too little.",
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
