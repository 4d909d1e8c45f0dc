"""An OpenAI-compatible server on a socket, which can lack abilities and fail on request.

`python -m tests.emulators.openai_server` runs one by hand, on the demo's model:

    simulators:
      - {name: far, kind: completions, base_url: "http://127.0.0.1:8399/v1", model: demo}
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from tests.emulators.refusal import Refused

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Abilities:
    """What the server can do; vLLM's echo and OpenAI's chat by default."""

    echo: bool = True
    ignores_echo: bool = False
    """It answers as if echo had not been asked for, as llama.cpp does."""
    max_tokens_zero: bool = True
    prompt_logprobs: bool = True
    logprobs: int = 20
    """How many likely tokens it tells at most; 0: none."""
    content_logprobs: bool = False
    """It lists log probabilities of completions as those of chat, as llama.cpp does."""
    chat_logprobs: int = 20
    json_schema: bool = True
    json_object: bool = True
    reasons: bool = False
    """It takes max_completion_tokens alone, and no temperature, as OpenAI's newer models do."""
    usage: bool = True
    merges_bytes: bool = False
    """Half characters read "\\ufffd", as vLLM has them, not "bytes:\\x..", as OpenAI."""


_BODIES = {
    "deep": b'{"choices": ' + b"[" * 100_000,
    "bad_text": b'{"choices": [{"text": "\xff\xfe"}]}',
    "empty": b"",
}
"""Of answers 200 that can't be read."""


class Answers(Protocol):
    """What the server answers when all is well."""

    def completion(self, body: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
        """Of /v1/completions."""
        ...

    def chat(self, body: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
        """Of /v1/chat/completions."""
        ...


Fault = Callable[[Request], Response] | str | None
"""A status with a JSON error, one of the names in `_faulty`, or nothing: all is well."""


@dataclass
class Traffic:
    """What was seen."""

    requests: int = 0
    running: int = 0
    most_running: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    times: list[float] = field(default_factory=list)


class OpenAiServer:
    """Runs in a thread; a context manager."""

    def __init__(
        self,
        answers: Answers,
        *,
        key: str | None = None,
        port: int = 0,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.answers = answers
        self.key = key
        self.abilities = Abilities()
        self.faults: deque[Fault] = deque()
        """Of the next requests, one each."""
        self.fault: Fault = None
        """Of all requests, where `faults` is empty."""
        self.delay = 0.0
        """Seconds before each answer."""
        self.retry_after: str | None = None
        """Header of answers 429 and 503."""
        self.tamper: Callable[[dict[str, Any]], Any] | None = None
        """Changes each answer before it is sent."""
        self.traffic = Traffic()
        self._socket = socket.create_server(("127.0.0.1", port))
        config = uvicorn.Config(
            self._app(),
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=1,
            ssl_certfile=tls[0] if tls else None,
            ssl_keyfile=tls[1] if tls else None,
        )
        self._server = uvicorn.Server(config)
        self._scheme = "https" if tls else "http"
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve([self._socket])), daemon=True
        )

    @property
    def base_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def reset(self) -> None:
        """All is well, and nothing was seen."""
        self.abilities = Abilities()
        self.faults.clear()
        self.fault = self.retry_after = self.tamper = None
        self.delay = 0.0
        self.traffic = Traffic()

    def _app(self) -> FastAPI:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            return await self._answer(request, self.answers.completion)

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            return await self._answer(request, self.answers.chat)

        return app

    async def _answer(
        self, request: Request, answer: Callable[[dict[str, Any], Abilities], dict[str, Any]]
    ) -> Response:
        body = await request.json()
        traffic = self.traffic
        traffic.requests += 1
        traffic.running += 1
        traffic.most_running = max(traffic.most_running, traffic.running)
        traffic.bodies.append(body)
        traffic.keys.add(request.headers.get("Authorization"))
        traffic.times.append(asyncio.get_running_loop().time())
        try:
            if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
                return _error(401, f"Incorrect API key: {request.headers.get('Authorization')}")
            fault = self.faults.popleft() if self.faults else self.fault
            if self.delay:
                await asyncio.sleep(self.delay)
            if fault is not None:
                return await self._faulty(request, fault)
            try:
                content: Any = await asyncio.to_thread(answer, body, self.abilities)
            except Refused as error:
                return _error(error.status, error.message, error.code)
            if self.tamper is not None:
                content = self.tamper(content)
            return Response(json.dumps(content), media_type="application/json")
        finally:
            traffic.running -= 1

    async def _faulty(self, request: Request, fault: Fault) -> Response:
        if not isinstance(fault, str):
            assert fault is not None
            return fault(request)
        if fault.isdecimal():
            headers = {"Retry-After": self.retry_after} if self.retry_after else {}
            return _error(int(fault), "as asked for", headers=headers)
        if fault == "quota":
            return _error(429, "You exceeded your current quota", "insufficient_quota")
        if fault == "redirect":
            return RedirectResponse("http://127.0.0.1:9/v1/completions", 307)
        if fault == "cut":
            return StreamingResponse(_cut(), headers={"Content-Length": "1000"})
        if fault == "hangs":
            for _ in range(3000):
                if await request.is_disconnected():
                    break
                await asyncio.sleep(0.01)
            return _error(500, "was not given up")
        if fault == "endless":
            return StreamingResponse(_endless(), media_type="application/json")
        if fault in _BODIES:
            return Response(_BODIES[fault], media_type="application/json")
        if fault == "bad_gzip":
            return Response(b"no gzip", headers={"Content-Encoding": "gzip"})
        assert fault == "garbage", fault
        return Response("<html>not JSON</html>", media_type="application/json")


async def _cut() -> AsyncIterator[bytes]:
    yield b'{"choices": [{"text": "'
    raise ConnectionResetError


async def _endless() -> AsyncIterator[bytes]:
    yield b'{"choices": ["'
    for _ in range(1000):
        yield b"x" * 65536
        # Lets the server see that its client has gone.
        await asyncio.sleep(0)


def _error(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    content = {"error": {"message": message, "type": "error", "code": code}}
    return JSONResponse(content, status, headers)


def main() -> None:
    """Serve a model until it is interrupted."""
    from tests.emulators.small_model import SmallModel

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "data" / "demo" / "model")
    parser.add_argument("--port", type=int, default=8399)
    parser.add_argument("--key", help="refuse requests without it")
    parser.add_argument("--no-echo", action="store_true")
    parser.add_argument("--no-prompt-logprobs", action="store_true")
    parser.add_argument("--no-chat-logprobs", action="store_true")
    parser.add_argument(
        "--lift",
        type=float,
        default=20.0,
        help="added to the logits of 0 to 10, so that a model that knows no numbers tells them",
    )
    options = parser.parse_args()
    model = SmallModel.load(options.model, options.lift)
    server = OpenAiServer(model, key=options.key, port=options.port)
    server.abilities = Abilities(
        echo=not options.no_echo,
        prompt_logprobs=not options.no_prompt_logprobs,
        chat_logprobs=0 if options.no_chat_logprobs else 20,
    )
    with server:
        print(f"serving {options.model} at {server.base_url}; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
