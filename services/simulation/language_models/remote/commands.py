"""Keeps texts from being read as commands: servers take `<|endoftext|>` in a text for one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from services.simulation.language_models.interface import Message

_COMMAND = re.compile(
    r"<(?=[|｜][^|｜<>]{1,40}[|｜]>|/?s>|(?:bos|eos|sop|eop|pad|unk|mask)>|(?:start|end)_of_turn>"
    r"|/?(?:think|tool_call|tool_response)>)"
    r"|\[(?=(?:/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)|[gs]?MASK|CLS|SEP)\])"
)


def without_commands(text: str) -> str:
    """The text with a space after the first sign of what servers may take for a command."""
    return _COMMAND.sub(lambda match: f"{match.group()} ", text)


def harmless(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages without commands in their contents."""
    return tuple(
        replace(message, content=without_commands(message.content)) for message in messages
    )
