"""What a server's failures mean for the caller, and whether trying again can help."""

from __future__ import annotations

import ssl

import httpx
import msgspec

from services.simulation.language_models.remote.server import Server
from shared.errors import FailedPrecondition, NeuropilError, ResourceExhausted, Unavailable

BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading JSON may raise: other shapes, text that isn't UTF-8, lists ever deeper."""

_SHOWN = 200
"""Characters of a server's own words that are passed on."""

_TOO_LONG = (
    "context_length_exceeded",
    "maximum context length",
    "context size",
    "context length",
    "max_model_len",
    "exceed_context_size_error",
)


class UnreadableAnswer(Unavailable):
    """The server answered, but not what a language model's server answers; never a number."""

    def __init__(self, message: str, server: Server) -> None:
        super().__init__(
            message,
            reason="LANGUAGE_MODEL_ANSWER_UNREADABLE",
            metadata={"server": server.host},
        )


class RequestRefused(FailedPrecondition):
    """The server does not do what it was asked for."""


class ServerFailure(Exception):
    """An attempt that failed: the error that it becomes in the end, and whether others may pass."""

    def __init__(
        self,
        error: NeuropilError,
        *,
        may_pass: bool,
        retry_after: float | None = None,
        concerns_all: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.may_pass = may_pass
        self.retry_after = retry_after
        self.concerns_all = concerns_all
        """Whether all calls of the server should wait."""


class _ErrorDetail(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    type: str | None = None


class _ErrorBody(msgspec.Struct):
    """What servers write beside a status: OpenAI's form, or vLLM's older flat one."""

    error: _ErrorDetail | str | None = None
    message: str = ""
    detail: str | None = None
    code: str | int | None = None


def failure_of(
    server: Server, route: str, status: int, body: bytes, retry_after: float | None
) -> ServerFailure:
    """What a status other than 200 means."""
    said, code = _words(server, body)
    metadata = {"server": server.host, "http_status": str(status)}
    place = f"the server {server.host}"
    if status in (401, 403):
        # What servers write here may hold a part of the key.
        variable = server.key.variable
        hint = f"the key in {variable}" if variable else "a request without a key; set api_key_env"
        error: NeuropilError = FailedPrecondition(
            f"{place} refuses {hint} (HTTP {status})",
            reason="LANGUAGE_MODEL_KEY_REFUSED",
            metadata=metadata,
        )
        return ServerFailure(error, may_pass=False)
    if status == 429:
        used_up = code == "insufficient_quota"
        error = ResourceExhausted(
            f"{place} allows no more requests {'at all' if used_up else 'now'}{said}",
            reason="LANGUAGE_MODEL_QUOTA",
            metadata=metadata,
            retry_after_seconds=retry_after,
        )
        return ServerFailure(
            error, may_pass=not used_up, retry_after=retry_after, concerns_all=True
        )
    if (status >= 500 and status != 501) or status in (408, 409, 425):
        error = Unavailable(
            f"{place} fails with HTTP {status}{said}",
            reason="LANGUAGE_MODEL_SERVER_FAILS",
            metadata=metadata,
            retry_after_seconds=retry_after,
        )
        return ServerFailure(
            error,
            may_pass=True,
            retry_after=retry_after,
            concerns_all=status == 503 and retry_after is not None,
        )
    if 300 <= status < 400:
        error = FailedPrecondition(
            f"{place} redirects, which is not followed; set base_url to where it leads",
            reason="LANGUAGE_MODEL_SERVER_REDIRECTS",
            metadata=metadata,
        )
    elif status == 413 or code == "context_length_exceeded" or _says_too_long(said):
        error = ResourceExhausted(
            f"the prompt is longer than {server.model} reads{said}",
            reason="PROMPT_TOO_LONG",
            metadata=metadata,
        )
    elif status == 404:
        error = RequestRefused(
            f"{place} has no route {route}, or no model {server.model}{said}",
            reason="LANGUAGE_MODEL_SERVER_REFUSES",
            metadata=metadata,
        )
    else:
        error = RequestRefused(
            f"{place} refuses the request (HTTP {status}){said}",
            reason="LANGUAGE_MODEL_SERVER_REFUSES",
            metadata=metadata,
        )
    return ServerFailure(error, may_pass=False)


def failure_of_transport(server: Server, error: Exception, seconds: float) -> ServerFailure:
    """What a connection that failed means."""
    metadata = {"server": server.host}
    if _is_about_certificate(error):
        refused = FailedPrecondition(
            f"the certificate of {server.host} can't be trusted",
            reason="LANGUAGE_MODEL_SERVER_CERTIFICATE",
            metadata=metadata,
        )
        return ServerFailure(refused, may_pass=False)
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        text = f"the server {server.host} did not answer within {seconds:.3g} s"
    elif isinstance(error, httpx.ConnectError):
        text = f"the server {server.host} can't be reached"
    else:
        text = f"the connection to the server {server.host} broke"
    unavailable = Unavailable(text, reason="LANGUAGE_MODEL_SERVER_UNREACHABLE", metadata=metadata)
    return ServerFailure(unavailable, may_pass=True)


def _is_about_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _says_too_long(said: str) -> bool:
    lowered = said.lower()
    return any(words in lowered for words in _TOO_LONG)


def _words(server: Server, body: bytes) -> tuple[str, str]:
    """What the server says, ready to be put behind our words, and its code."""
    try:
        parsed = msgspec.json.decode(body, type=_ErrorBody)
    except BAD_JSON:
        return "", ""
    if isinstance(parsed.error, _ErrorDetail):
        text, code = parsed.error.message, parsed.error.code or parsed.error.type
    else:
        text, code = parsed.error or parsed.message or parsed.detail or "", parsed.code
    shown = "".join(c if c.isprintable() else " " for c in server.key.scrub(text))
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
    return (f": {shown}" if shown.strip() else ""), str(code or "")
