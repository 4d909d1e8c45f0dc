"""Measures and logs every call."""

from __future__ import annotations

import asyncio
import time
from functools import cache
from typing import Any

import grpc
import structlog
from prometheus_client import Gauge, Histogram

from shared.metrics import SECONDS_BUCKETS
from shared.rpc.interceptors.wrapping import Behavior, Context, Interceptor

_SECONDS = Histogram(
    "neuropil_rpc_seconds",
    "Duration of calls",
    ("service", "method", "code"),
    buckets=SECONDS_BUCKETS,
)
_RUNNING = Gauge("neuropil_rpc_running", "Calls that run now", ("service", "method"))

_log = structlog.get_logger("neuropil.calls")


class ObservationInterceptor(Interceptor):
    """Outermost but for the call's id: sees the status that the caller gets."""

    def unary(self, method: str, behavior: Behavior) -> Behavior:
        """Time the call, and log how it ended."""
        observed = _observed(method)

        async def call(request: Any, context: Context) -> Any:
            started = observed.start()
            try:
                reply = await behavior(request, context)
            except BaseException as error:
                observed.end(started, _code_of(error, context))
                raise
            observed.end(started, "OK")
            return reply

        return call


class _Observed:
    """Metrics and log of one method; looking its metrics up costs more than counting."""

    def __init__(self, method: str) -> None:
        self._service, self._name = method.split("/")
        self._running = _RUNNING.labels(self._service, self._name)
        self._seconds: dict[str, Histogram] = {}

    def start(self) -> float:
        self._running.inc()
        return time.perf_counter()

    def end(self, started: float, code: str) -> None:
        seconds = time.perf_counter() - started
        self._running.dec()
        histogram = self._seconds.get(code)
        if histogram is None:
            histogram = _SECONDS.labels(self._service, self._name, code)
            self._seconds[code] = histogram
        histogram.observe(seconds)
        log = _log.debug if code == "OK" else _log.info
        log("call", service=self._service, method=self._name, code=code, seconds=round(seconds, 6))


_observed = cache(_Observed)


def _code_of(error: BaseException, context: Context) -> str:
    if isinstance(error, asyncio.CancelledError) and not context.code():
        # With a code: how work is ended whose caller was told already, as its time is over.
        return "CANCELLED"
    return _code_name(context)


def _code_name(context: Context) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    names = {status.value[0]: status.name for status in grpc.StatusCode}
    return names.get(code, "UNKNOWN") if isinstance(code, int) else "UNKNOWN"
