"""Token ids of the pieces of a prompt, each as it stands in the middle of a text.

A tokenizer for whole texts puts a space before a text's first word, reads `<|endoftext|>` as a
command, and makes one token of a tab and what follows it. Here each piece is encoded for itself by
a copy of the tokenizer without these habits, so that joined pieces read as the text that they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from services.simulation.errors import InvalidInput
from shared.errors import FailedPrecondition

NOT_TEXT = "the token is no valid text"
NOTHING_LEFT = "the model's tokenizer leaves nothing of the token"
UNKNOWN_TEXT = "the model's tokenizer has no ids for the token"
READ_AS_COMMAND = "the model's tokenizer reads the token as a command"

MAX_PIECE_CHARACTERS = 100_000
TOO_LONG = f"the token has more than {MAX_PIECE_CHARACTERS} characters"

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_REMEMBERED, _REMEMBERED_CHARACTERS = 65_536, 200


@dataclass(frozen=True, slots=True)
class PieceIds:
    """The ids of one piece, and why a model can't read it from them, where that is so."""

    ids: tuple[int, ...]
    problem: str = ""


class PieceTokenizer:
    """Encodes pieces with a fast tokenizer of the `tokenizers` library.

    `definition` is the text of a tokenizer.json; `beginning` are the ids that the model expects at
    the beginning of every text, such as that of `<s>`.
    """

    def __init__(self, definition: str, beginning: Sequence[int] = ()) -> None:
        from tokenizers import Tokenizer

        content: dict[str, Any] = json.loads(definition)
        added: list[dict[str, Any]] = content.get("added_tokens") or []
        self.beginning = tuple(beginning)
        self._commands = frozenset(token["id"] for token in added if token.get("special"))
        self._unknown = _unknown_ids(content)
        self._drops_unknown = _drops_unknown(content)
        self._tokenizer = Tokenizer.from_str(json.dumps(_for_pieces(content)))
        self._ids: dict[str, PieceIds] = {}

    @classmethod
    def of_transformers(cls, tokenizer: Any) -> PieceTokenizer:
        """From a fast tokenizer of transformers.

        Raises:
            FailedPrecondition: it is a slow one, which has no tokenizer.json.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise FailedPrecondition(
                "the model's tokenizer has no tokenizer.json; a fast tokenizer is needed",
                reason="TOKENIZER_NOT_SERVED",
            )
        return cls(backend.to_str(), beginning_ids(tokenizer))

    def piece(self, text: str) -> PieceIds:
        """The ids of one piece; empty for an empty one."""
        found = self._ids.get(text)
        if found is None:
            found = self.text(text)
            if len(text) <= _REMEMBERED_CHARACTERS:
                if len(self._ids) >= _REMEMBERED:
                    self._ids.clear()
                self._ids[text] = found
        return found

    def joined(self, pieces: Iterable[str], field: str) -> tuple[int, ...]:
        """The ids of pieces that a model must be able to read; blanks may be lost.

        Raises:
            InvalidInput: naming `field`, where the tokenizer can't write one of them.
        """
        ids: list[int] = []
        for text in pieces:
            piece = self.piece(text)
            if piece.problem and piece.problem != NOTHING_LEFT:
                shown = repr(text if len(text) <= 80 else text[:77] + "...")
                raise InvalidInput(
                    f"the model's tokenizer has no ids for part of {shown}",
                    field=field,
                    reason="TEXT_NOT_IN_VOCABULARY",
                )
            ids.extend(piece.ids)
        return tuple(ids)

    def text(self, text: str) -> PieceIds:
        """The same, remembering nothing: for a text that won't come again."""
        if len(text) > MAX_PIECE_CHARACTERS:
            return PieceIds((), TOO_LONG)
        try:
            text.encode()
        except UnicodeEncodeError:
            return PieceIds((), NOT_TEXT)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = tuple(encoding.ids)
        if self._reads_command(text, ids):
            # Character by character, no name of a command is left to be recognised.
            parts = [self._tokenizer.encode(c, add_special_tokens=False).ids for c in text]
            ids = tuple(i for part in parts for i in part)
            if self._reads_command("", ids):
                return PieceIds((), READ_AS_COMMAND)
        if not self._unknown.isdisjoint(ids) or (
            self._drops_unknown and _lost(text, encoding.offsets)
        ):
            return PieceIds(ids, UNKNOWN_TEXT)
        if text and not ids:
            return PieceIds((), NOTHING_LEFT)
        return PieceIds(ids)

    def _reads_command(self, text: str, ids: tuple[int, ...]) -> bool:
        if not (self._commands - self._unknown).isdisjoint(ids):
            return True
        if "<0x" not in text:
            return False
        written = {self._tokenizer.token_to_id(name) for name in _BYTE.findall(text)}
        return not written.isdisjoint(ids)


def beginning_ids(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer of transformers puts before a text: nothing, or such as `<s>`."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start])
    return ()


def _for_pieces(content: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without its commands, and without what it does at the beginning of a text."""
    added = [token for token in content.get("added_tokens") or [] if not token.get("special")]
    return {
        **content,
        "added_tokens": added,
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "normalizer": _without_first_space(content.get("normalizer")),
        "pre_tokenizer": _without_first_space(content.get("pre_tokenizer")),
    }


def _without_first_space(part: dict[str, Any] | None) -> dict[str, Any] | None:
    if part is None or part.get("type") == "Prepend":
        return None
    part = dict(part)
    for key in ("normalizers", "pretokenizers"):
        if key in part:
            inner = [_without_first_space(item) for item in part[key]]
            part[key] = [item for item in inner if item is not None]
    if part.get("type") == "Metaspace":
        part["prepend_scheme"] = "never"
        part.pop("add_prefix_space", None)
    if "add_prefix_space" in part:
        part["add_prefix_space"] = False
    return part


def _unknown_ids(content: dict[str, Any]) -> frozenset[int]:
    model = content["model"]
    if model.get("unk_id") is not None:
        return frozenset([model["unk_id"]])
    token, vocabulary = model.get("unk_token"), model.get("vocab")
    if token and isinstance(vocabulary, dict) and token in vocabulary:
        return frozenset([vocabulary[token]])
    return frozenset()


def _drops_unknown(content: dict[str, Any]) -> bool:
    """Whether characters that are not in the vocabulary vanish without a trace."""
    model = content["model"]
    if model.get("type") != "BPE" or model.get("unk_token") or model.get("byte_fallback"):
        return False
    # Byte-level tokenizers write every character.
    return '"ByteLevel"' not in json.dumps([content.get("normalizer"), content["pre_tokenizer"]])


def _lost(text: str, offsets: Sequence[tuple[int, int]]) -> bool:
    covered = {position for start, end in offsets for position in range(start, end)}
    return any(
        position not in covered and not character.isspace()
        for position, character in enumerate(text)
    )
