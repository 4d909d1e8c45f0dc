"""What an OpenAI-compatible server answers, without a model: words are tokens, all equally odd."""

from __future__ import annotations

import re
from typing import Any

from tests.emulators.openai_server import Abilities
from tests.emulators.refusal import Refused

_TOKEN = re.compile(r"\s|[^\W\d_]+|\d|[^\w\s]|_")
"""Digits are tokens of their own, so "10" is two."""

VALUES = {"0": -0.5, "1": -2.0, "7": -2.5, "the": -3.0}
AFTER_ONE = {"0": -1.0, "\n": -0.5}


class WordModel:
    """Knows two distributions: after a 1, and elsewhere."""

    def completion(self, body: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
        """The body of an answer of /v1/completions."""
        if body.get("echo") and not abilities.echo:
            raise Refused(400, "echo is not supported")
        tokens = _TOKEN.findall(body["prompt"])
        shown = tokens if body.get("echo") and not abilities.ignores_echo else []
        generated = ["0"] * int(body["max_tokens"])
        befores = [None, *tokens, *generated]
        first = 0 if shown else len(tokens)
        places = range(first, len(tokens) + len(generated))
        tops = [_top(befores[place]) if place else None for place in places]
        logprobs = {"tokens": shown + generated, "top_logprobs": tops}
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(generated)}
        choice = {"text": "".join(shown + generated), "logprobs": logprobs, "finish_reason": "stop"}
        return {"choices": [choice], **({"usage": usage} if abilities.usage else {})}

    def chat(self, body: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
        """The body of an answer of /v1/chat/completions."""
        if abilities.reasons and "max_tokens" in body:
            raise Refused(400, "'max_tokens' is not supported; use 'max_completion_tokens'")
        if abilities.reasons and "temperature" in body:
            raise Refused(400, "'temperature' does not support 0.0 with this model")
        choice: dict[str, Any] = {"message": {"content": "1"}, "finish_reason": "stop"}
        if body.get("logprobs"):
            if body["top_logprobs"] > abilities.chat_logprobs:
                raise Refused(400, "no logprobs")
            top = [{"token": " 1", "logprob": -0.2}, {"token": "0", "logprob": -1.8}]
            choice["logprobs"] = {"content": [{"token": "1", "logprob": -0.2, "top_logprobs": top}]}
        if body.get("response_format") and not abilities.json_schema:
            raise Refused(400, "no response_format")
        return {"choices": [choice]}


def _top(before: str | None) -> dict[str, float]:
    return dict(AFTER_ONE if before == "1" else VALUES)
