"""What a language model wrote, as an explanation, or why it is none."""

from __future__ import annotations

import re

from services.simulation.language_models.interface import Generation

MAX_ANSWER_CHARACTERS = 300
"""Longer answers are no explanations that a simulator reads well."""
_SHOWN_CHARACTERS = 80

_LABEL = re.compile(
    r"^(explanation|description|answer|(the|this) (unit|head|neuron) (reacts to|looks (for|at)))"
    r"\s*:\s*",
    re.IGNORECASE,
)
_THOUGHTS_BEGIN, _THOUGHTS_END = "<think>", "</think>"
# Where a space stands before it, the colon is what is explained.
_INTRODUCTION = re.compile(r"\S:$")
_FENCE = "```"
_BULLET = re.compile(r"^(?:[-*•]|\d{1,2}[.)])\s+")
# Bold or slanted from the beginning on; stars that are quoted, or further on, are meant.
_EMPHASIS = re.compile(r"^(\*{1,3})(?![\s*'\"])([^*]+)\1")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}
_LETTER = re.compile(r"[^\W_]")
# The same two words or more, three times in a row; or one word four times.
_REPEATED = re.compile(r"(\b\w+\b(?:\W+\w+){1,7}?)(?:\W+\1\b){2,}|\b(\w+)\b(?:\W+\2\b){3,}")
_LEAST_VARIETY, _VARIETY_FROM = 0.4, 12


class NoExplanation(ValueError):
    """An answer is no explanation; the message says why, in a few words."""


def explanation_of(answer: Generation) -> str:
    """The sentence of an answer: its first line, without label, quotation marks and full stop.

    What comes before it and isn't of it is passed over: a model's thoughts, lines that introduce
    it ("Here it is:"), marks of lists and of emphasis.

    Raises:
        NoExplanation: it is empty, cut off, too long, repeats itself, or is no text.
    """
    before, _, text = answer.text.rpartition(_THOUGHTS_END)
    if not before and text.lstrip().startswith(_THOUGHTS_BEGIN):
        raise NoExplanation("thoughts that were cut off")
    lines = [line for line in (_sentence(each) for each in text.splitlines()) if line]
    line, left = (lines[0], len(lines) - 1) if lines else ("", 0)
    while _INTRODUCTION.search(line):
        if not left:
            raise NoExplanation("introduction without an explanation")
        line, left = lines[-left], left - 1
    line = _unquoted(line).rstrip()
    if line.endswith(".") and not line.endswith(".."):
        line = line[:-1].rstrip()
    if not line:
        raise NoExplanation("empty answer")
    if not _LETTER.search(line):
        raise NoExplanation("answer without a word")
    if not line.replace("\ufffd", "\x00").isprintable():
        raise NoExplanation("answer with signs that can't be shown")
    if len(line) > MAX_ANSWER_CHARACTERS:
        raise NoExplanation(f"answer of more than {MAX_ANSWER_CHARACTERS} characters")
    if _repeats(line):
        raise NoExplanation("answer that repeats itself")
    if not answer.finished and not left:
        raise NoExplanation("answer that was cut off")
    return line


def beginning(answer: str) -> str:
    """What is shown of an answer that is no explanation."""
    line = " ".join(answer.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."


def same(text: str) -> str:
    """What explanations have in common that differ in case, spaces and signs at the end alone."""
    return " ".join(text.casefold().split()).rstrip(".;, ")


def _sentence(line: str) -> str:
    """A line without the marks of a list, emphasis and a label; empty where that is all of it."""
    line = line.strip()
    if line.startswith(_FENCE):
        return ""
    line = _EMPHASIS.sub(r"\2", _BULLET.sub("", line))
    return _LABEL.sub("", line).strip()


def _unquoted(line: str) -> str:
    closing = _QUOTES.get(line[:1], "")
    inside = line[1:-1]
    # 'a' and 'b' begins and ends with quotation marks, but isn't quoted.
    quoted = closing and len(line) > 2 and line.endswith(closing)
    if quoted and closing not in inside and line[0] not in inside:
        return inside.strip()
    return line


def _repeats(line: str) -> bool:
    folded = line.casefold()
    words = re.findall(r"\w+", folded)
    if len(words) >= _VARIETY_FROM and len(set(words)) < _LEAST_VARIETY * len(words):
        return True
    return bool(_REPEATED.search(folded))
