"""Finds out what a server can do by asking it for little of each."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from services.simulation.language_models.interface import GenerationOptions, Message
from services.simulation.language_models.remote.chat_api import ChatApi, Structure
from services.simulation.language_models.remote.completions_api import CompletionsApi, EchoWay
from services.simulation.language_models.remote.failures import (
    BAD_JSON,
    RequestRefused,
    UnreadableAnswer,
)
from services.simulation.parsing.echoed_prompts import token_starts
from services.simulation.parsing.value_logprobs import Unreadable
from shared.errors import Unavailable

_TEXT = "of\t10\nthe\t7\nto\t"
"""Short, and with a 10 where prompts have their numbers."""
_TEN = _TEXT.index("10")
_ATTEMPTS = 2
"""Of questions that a server may not understand; that it is there is known by then."""

_FEWER_LOGPROBS = (20, 15, 5)
"""Servers differ in how many likely tokens they tell: up to 20 vLLM, 5 OpenAI."""
_MESSAGES = (Message("user", 'Answer with the JSON object {"answer": [1]} and nothing else.'),)
_NEW_LIMIT = "max_completion_tokens"
# With all that the schemas of prompts have: some servers take schemas, but not everything in them.
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 10}
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "array", "items": _NUMBER, "minItems": 1, "maxItems": 1}},
    "required": ["answer"],
    "additionalProperties": False,
}

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found out."""

    next_token_logprobs: int = 0
    """How many likely next tokens the server tells; 0 where none."""
    echo: EchoWay | None = None
    """How it tells the log probabilities of a prompt, where it can."""
    splits_ten: bool | None = None
    """Whether its tokenizer makes two tokens of "10"; None where that can't be told."""
    structure: Structure = "none"

    @property
    def sentences(self) -> tuple[str, ...]:
        """For people."""
        said = []
        if self.echo is not None:
            said.append(f"prompt log probabilities: {self.echo}")
        if self.next_token_logprobs:
            said.append(f"next-token log probabilities: {self.next_token_logprobs} tokens")
        if self.structure != "none":
            said.append(f"structured answers: {self.structure}")
        if self.splits_ten:
            said.append('its tokenizer makes two tokens of "10"')
        return tuple(said) or ("text only, without log probabilities",)


def _counts(wanted: int) -> list[int]:
    return [wanted, *(count for count in _FEWER_LOGPROBS if count < wanted)]


def _echo_ways(wanted: int) -> Iterator[EchoWay]:
    few = min(_FEWER_LOGPROBS)
    for count in dict.fromkeys((wanted, min(wanted, 20), min(wanted, few))):
        yield EchoWay(count)
        yield EchoWay(count, max_tokens=1)
        yield EchoWay(count, max_tokens=1, prompt_logprobs=True)


async def completions_capabilities(api: CompletionsApi, wanted: int) -> Capabilities:
    """What /completions of a server can do; `wanted` likely tokens a position are enough.

    Raises:
        NeuropilError: the server is not there, or refuses all.
    """
    logprobs = 0
    for count in _counts(wanted):
        try:
            top, _ = await api.next_token(_TEXT, count)
        except RequestRefused:
            continue
        logprobs = count if top else 0
        break
    # Fails with the right error where it refuses everything.
    counted = await api.tokens_of(_TEXT[:_TEN] + "5")
    for way in _echo_ways(wanted):
        found = await _unless_refused(api.echoed(_TEXT, way, max_attempts=_ATTEMPTS))
        if found is None:
            continue
        tokens, _ = found
        texts = [token.text for token in tokens]
        try:
            starts = token_starts(_TEXT, texts)
        except Unreadable:
            continue
        first = len(texts) - len(starts)
        if not all(token.top_logprobs for token in tokens[first + 1 :]):
            continue
        splits = _TEN not in starts or "10" not in texts[first + starts.index(_TEN)]
        return Capabilities(logprobs, way, splits)
    with_ten = await api.tokens_of(_TEXT[:_TEN] + "10")
    splits_ten = None if not counted or not with_ten else with_ten > counted
    return Capabilities(logprobs, None, splits_ten)


async def chat_capabilities(api: ChatApi, wanted: int) -> Capabilities:
    """What /chat/completions of a server can do; as above.

    Raises:
        NeuropilError: the server is not there, or refuses all.
    """
    await _find_fields(api)
    logprobs = 0
    for count in _counts(wanted):
        found = await _unless_refused(api.next_token(_MESSAGES, count, max_attempts=_ATTEMPTS))
        if found is not None:
            logprobs = count if found[0] else 0
            break
    options = GenerationOptions(max_tokens=16, json_schema=_SCHEMA)
    structures: tuple[Structure, ...] = ("json_schema", "json_object")
    for structure in structures:
        said = await _unless_refused(
            api.generate(_MESSAGES, options, structure, max_attempts=_ATTEMPTS)
        )
        # Of one that was cut off, since it thinks first, say, it isn't known; it was taken.
        if said is not None and (not said.finished or _follows(said.text, structure)):
            return Capabilities(logprobs, structure=structure)
    return Capabilities(logprobs)


def _follows(text: str, structure: Structure) -> bool:
    """Whether the answer has the form; a server may pass over what it doesn't know."""
    kind = _Answer if structure == "json_schema" else dict[str, msgspec.Raw]
    try:
        msgspec.json.decode(text, type=kind)
    except BAD_JSON:
        return False
    return True


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    """What `_SCHEMA` asks for."""

    answer: Annotated[list[int], msgspec.Meta(min_length=1, max_length=1)]


async def _find_fields(api: ChatApi) -> None:
    """Ask without all that not every server knows; fails where it refuses everything."""
    for _ in range(3):
        try:
            await api.generate(_MESSAGES, GenerationOptions(max_tokens=1), "none")
        except RequestRefused as error:
            if api.limit_name != _NEW_LIMIT and _NEW_LIMIT in error.message:
                api.limit_name = _NEW_LIMIT
            elif api.takes_temperature and "temperature" in error.message:
                api.takes_temperature = False
            else:
                raise
        else:
            return


async def _unless_refused(question: Awaitable[AnswerT]) -> AnswerT | None:
    """The answer, or None where the server can't give one."""
    try:
        return await question
    except (RequestRefused, UnreadableAnswer):
        return None
    except Unavailable as error:
        # Some servers fail on what they don't know; one that can't be reached tells nothing.
        if error.reason == "LANGUAGE_MODEL_SERVER_FAILS":
            return None
        raise
