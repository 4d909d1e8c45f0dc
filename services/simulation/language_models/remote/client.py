"""Sends requests to a server: bounded, repeated where that can help, within the caller's time."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import httpx
import msgspec
import structlog

from services.simulation.errors import InvalidInput
from services.simulation.language_models.remote.failures import (
    BAD_JSON,
    ServerFailure,
    UnreadableAnswer,
    failure_of,
    failure_of_transport,
)
from services.simulation.language_models.remote.pauses import (
    LONGEST_PAUSE_SECONDS,
    Pause,
    retry_after,
    wait_before,
)
from services.simulation.language_models.remote.server import Server
from shared.errors import NeuropilError, Unavailable
from shared.rpc.context import seconds_left

_log = structlog.get_logger(__name__)

_MAX_ERROR_BYTES = 64 * 1024


class ServerClient:
    """One for all calls of a server: it keeps connections, and a pause that the server asks for."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._places = asyncio.Semaphore(server.max_concurrent)
        self._pause = Pause()
        self._http: httpx.AsyncClient | None = None

    async def post(
        self, route: str, body: Mapping[str, Any], *, max_attempts: int | None = None
    ) -> bytes:
        """The answer to a request: a body that is JSON.

        Raises:
            Unavailable: the server can't be reached, fails, or takes too long, each time.
            UnreadableAnswer: it answers something else than JSON, each time.
            ResourceExhausted: its quota is used up, or the prompt is longer than it reads.
            FailedPrecondition: it refuses the request or the key, or it redirects.
            InvalidInput: a text holds half of a character.
        """
        content = _encoded(body)
        attempts = max_attempts or self.server.max_attempts
        for attempt in range(1, attempts + 1):
            await self._wait_for_pause()
            try:
                async with self._places:
                    # The pause may have begun while this call waited for its place.
                    await self._wait_for_pause()
                    return await self._send(route, content)
            except ServerFailure as failure:
                if not failure.may_pass or attempt == attempts:
                    raise failure.error from failure
                await self._wait_after(failure, attempt, route)
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        """Close the connections; what is under way fails."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _wait_for_pause(self) -> None:
        left = self._pause.seconds_left
        if left:
            _require_time(left, self._paused(left))
            await self._pause.wait()

    async def _wait_after(self, failure: ServerFailure, attempt: int, route: str) -> None:
        seconds = wait_before(attempt)
        if failure.retry_after is not None:
            seconds = max(seconds, failure.retry_after)
        if failure.concerns_all:
            self._pause.ask(seconds)
        _log.warning(
            "language_model_server_repeats",
            server=self.server.host,
            model=self.server.model,
            route=route,
            problem=failure.error.message,
            attempt=attempt,
            wait_seconds=round(seconds, 3),
        )
        error = failure.error
        error.retry_after_seconds = seconds
        _require_time(seconds, error)
        if not failure.concerns_all:
            await asyncio.sleep(seconds)

    def _paused(self, seconds: float) -> NeuropilError:
        return Unavailable(
            f"the server {self.server.host} asked to be left alone for {seconds:.3g} s more",
            reason="LANGUAGE_MODEL_SERVER_BUSY",
            metadata={"server": self.server.host},
            retry_after_seconds=seconds,
        )

    async def _send(self, route: str, content: bytes) -> bytes:
        if self._http is None:
            self._http = httpx.AsyncClient(
                headers={**self.server.key.headers, "Content-Type": "application/json"},
                timeout=httpx.Timeout(self.server.timeout_seconds),
                limits=httpx.Limits(max_connections=self.server.max_concurrent),
                follow_redirects=False,
                verify=_trusted(),
            )
        began = time.monotonic()
        try:
            # The timeout of httpx is between two pieces of an answer; this one is of the whole.
            async with asyncio.timeout(self.server.timeout_seconds):
                status, headers, answer = await self._exchange(self._http, route, content)
        except (httpx.RequestError, ssl.SSLError, TimeoutError) as error:
            raise failure_of_transport(self.server, error, time.monotonic() - began) from error
        if status != httpx.codes.OK:
            raise failure_of(self.server, route, status, answer, retry_after(headers))
        try:
            msgspec.json.decode(answer, type=msgspec.Raw)
        except BAD_JSON as error:
            unreadable = UnreadableAnswer("the server's answer is not JSON", self.server)
            raise ServerFailure(unreadable, may_pass=True) from error
        return answer

    async def _exchange(
        self, http: httpx.AsyncClient, route: str, content: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        limit = self.server.max_answer_bytes
        parts = bytearray()
        async with http.stream("POST", self.server.url(route), content=content) as response:
            if response.status_code != httpx.codes.OK:
                limit = _MAX_ERROR_BYTES
            async for part in response.aiter_bytes():
                parts += part
                if len(parts) > limit:
                    if response.status_code != httpx.codes.OK:
                        break
                    raise ServerFailure(
                        UnreadableAnswer(
                            f"the server's answer is longer than {limit} bytes", self.server
                        ),
                        may_pass=False,
                    )
            return response.status_code, response.headers, bytes(parts)


@cache
def _trusted() -> ssl.SSLContext:
    """Whom all clients trust; reading it takes longer than a request."""
    return httpx.create_ssl_context()


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        raise InvalidInput(
            "a text holds half of a character (a lone surrogate), which no server reads"
        ) from error


def _require_time(seconds: float, error: NeuropilError) -> None:
    """Raise the error where the caller's time, or anyone's patience, ends before the wait does."""
    left = seconds_left()
    if seconds > LONGEST_PAUSE_SECONDS or (left is not None and seconds >= left):
        raise error
