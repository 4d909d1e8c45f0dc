"""Bodies of a server's answers, checked against the few shapes that servers use."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from services.simulation.language_models.remote.failures import BAD_JSON, UnreadableAnswer
from services.simulation.language_models.remote.server import Server
from services.simulation.parsing.echoed_prompts import EchoedToken, first_token
from services.simulation.simulators.interface import SimulationCost

_MOST_TOKENS = 2**31
"""Of one call; what a server says beyond that is no number of tokens."""


class CachedTokens(msgspec.Struct):
    """Of `usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """What the server says that it computed."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: CachedTokens | None = None


class TopLogprob(msgspec.Struct):
    """One of the likely tokens, as chat servers and llama.cpp list them."""

    token: str
    logprob: float | None


class ContentLogprobs(msgspec.Struct):
    """A generated token, as chat servers and llama.cpp list them."""

    token: str
    top_logprobs: list[TopLogprob] = []


class Logprobs(msgspec.Struct):
    """OpenAI's lists of completions, or the list `content` of chat servers and llama.cpp."""

    tokens: list[str] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None
    content: list[ContentLogprobs] | None = None


class PromptLogprob(msgspec.Struct):
    """vLLM's, by the id of the token."""

    logprob: float | None
    decoded_token: str | None = None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionChoice(msgspec.Struct):
    """A text that goes on after the prompt, or repeats it where the request says `echo`."""

    text: str = ""
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatMessage(msgspec.Struct):
    """What a chat server says; `refusal` in place of a content."""

    content: str | None = None
    refusal: str | None = None


class ChatChoice(msgspec.Struct):
    """A turn of the assistant."""

    message: ChatMessage
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class CompletionAnswer(msgspec.Struct):
    """The body of /completions."""

    choices: list[CompletionChoice]
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatAnswer(msgspec.Struct):
    """The body of /chat/completions."""

    choices: list[ChatChoice]
    usage: Usage | None = None


AnswerT = TypeVar("AnswerT", CompletionAnswer, ChatAnswer)


def read_answer(content: bytes, as_: type[AnswerT], server: Server) -> AnswerT:
    """The answer, with one choice at least.

    Raises:
        UnreadableAnswer: it has another shape.
    """
    try:
        answer = msgspec.json.decode(content, type=as_)
    except BAD_JSON as error:
        raise UnreadableAnswer(f"the server's answer is not as agreed: {error}", server) from error
    if not answer.choices:
        raise UnreadableAnswer("the server's answer has no choices", server)
    return answer


def cost_of(usage: Usage | None, seconds: float, *, prompt_tokens: int = 0) -> SimulationCost:
    """What a call cost; `prompt_tokens` counts where the server doesn't say."""
    if usage is None:
        return SimulationCost(1, prompt_tokens, 0, 0, seconds)
    prompt = _count(usage.prompt_tokens)
    details = usage.prompt_tokens_details
    reused = min(prompt, _count(details.cached_tokens if details else None))
    return SimulationCost(1, prompt - reused, reused, _count(usage.completion_tokens), seconds)


def _count(number: int | None) -> int:
    return min(max(0, number or 0), _MOST_TOKENS)


def next_token_logprobs(logprobs: Logprobs | None) -> dict[str, float] | None:
    """Likely first tokens of what was generated; None where the answer doesn't say."""
    if logprobs is None:
        return None
    if logprobs.content:
        listed: dict[str, float] = {}
        for top in logprobs.content[0].top_logprobs:
            # Two tokens may read the same once white space is gone: the likelier one counts.
            value = float("nan") if top.logprob is None else top.logprob
            listed[top.token] = max(value, listed.get(top.token, value))
        return listed or None
    return _numbers(logprobs.top_logprobs[0]) if logprobs.top_logprobs else None


def echoed_tokens(logprobs: Logprobs | None, server: Server) -> list[EchoedToken]:
    """Tokens of an echoed prompt, and of what was generated after it.

    Raises:
        UnreadableAnswer: the lists are missing or of different lengths.
    """
    if logprobs is None or logprobs.tokens is None or logprobs.top_logprobs is None:
        raise UnreadableAnswer("the server's answer has no log probabilities", server)
    if len(logprobs.tokens) != len(logprobs.top_logprobs):
        raise UnreadableAnswer(
            "the server's answer has not as many log probabilities as tokens", server
        )
    return [
        EchoedToken(token, _numbers(top))
        for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True)
    ]


def prompt_tokens(
    logprobs: PromptLogprobs | None, prompt: str, server: Server
) -> list[EchoedToken]:
    """Tokens of the prompt from vLLM's `prompt_logprobs`, where the prompt's own token is first.

    Raises:
        UnreadableAnswer: there are none.
    """
    if not logprobs:
        raise UnreadableAnswer("the server's answer has no prompt_logprobs", server)
    tokens = []
    for entry in logprobs[1:]:
        if not entry:
            raise UnreadableAnswer("the server's prompt_logprobs leave out a token", server)
        listed: dict[str, float] = {}
        for top in entry.values():
            value = float("nan") if top.logprob is None else top.logprob
            text = top.decoded_token or ""
            listed[text] = max(value, listed.get(text, value))
        tokens.append(EchoedToken(next(iter(entry.values())).decoded_token or "", listed))
    # Nothing is likely before the first token, so its text isn't there.
    return [EchoedToken(first_token(prompt, [token.text for token in tokens]), None), *tokens]


def _numbers(top: dict[str, float | None] | None) -> dict[str, float] | None:
    if top is None:
        return None
    return {token: float("nan") if lp is None else lp for token, lp in top.items()}
