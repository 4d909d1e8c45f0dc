"""Measures and logs every call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from prometheus_client import Gauge, Histogram

from shared.metrics import SECONDS_BUCKETS
from shared.rpc.interceptors.wrapping import Context, Interceptor

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

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Time the call, and log how it ended."""
        service, name = method.split("/")
        running = _RUNNING.labels(service, name)
        running.inc()
        started = time.perf_counter()
        code = "OK"
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            # Also how work is ended whose caller was told already, such as that its time is over.
            code = _code_name(context) if context.code() else "CANCELLED"
            raise
        except BaseException:
            code = _code_name(context)
            raise
        finally:
            seconds = time.perf_counter() - started
            running.dec()
            _SECONDS.labels(service, name, code).observe(seconds)
            log = _log.debug if code == "OK" else _log.info
            log("call", service=service, method=name, code=code, seconds=round(seconds, 6))


def _code_name(context: Context) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    names = {status.value[0]: status.name for status in grpc.StatusCode}
    return names.get(code, "UNKNOWN") if isinstance(code, int) else "UNKNOWN"
