"""Text to tokens and back, with a model's own tokenizer.json.

Both kinds are read: byte-level ones (GPT-2, Llama 3, Qwen) and those in SentencePiece's manner,
which write spaces as U+2581, put one before a text and fall back to bytes (Llama 2). No special
token is added unless asked for; one that is written in the text is recognised as one.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from services.scalars.model.beginning import find_beginning_token
from services.scalars.model.checkpoint import MODEL_KEY
from shared.errors import ConfigurationError, InvalidArgument

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
"""What SentencePiece calls a single byte."""


class TextTokenizer:
    """A tokenizer whose ids fit a model's vocabulary.

    `beginning_token` is the id that belongs before a text, None where the model needs none.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, beginning_token: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.beginning_token = beginning_token
        self._anchor = _find_anchor(tokenizer)
        # Whether a text is read as if a space stood before it.
        self._puts_space = "".join(self._decode([[id_] for id_ in self.encode("a")])) == " a"

    @classmethod
    def load(
        cls, directory: Path, vocab_size: int, config: Mapping[str, Any] | None = None
    ) -> TextTokenizer:
        """Reads tokenizer.json, and the beginning token from where it is told.

        Raises ConfigurationError where tokenizer.json is missing, broken or too large, and where
        the beginning token is not one of its tokens. `config` is the model's configuration.
        """
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise ConfigurationError(MODEL_KEY, f"{file} is missing")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises no narrower class
            raise ConfigurationError(
                MODEL_KEY, f"{file} can't be read as a tokenizer: {error}"
            ) from error
        # Both would silently change what a request asked about.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        if size > vocab_size:
            raise ConfigurationError(
                MODEL_KEY, f"{file} has {size} tokens, but the model's vocabulary is {vocab_size}"
            )
        return cls(tokenizer, vocab_size, find_beginning_token(directory, config or {}, tokenizer))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; empty for the empty text."""
        # Only this one of the library's methods lets other threads work meanwhile.
        (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoded.ids
        return ids

    def decode(self, token: int) -> str:
        """The string of one token; a partial UTF-8 sequence decodes to U+FFFD.

        A row of the embedding that the tokenizer has no token for decodes to the empty string.
        """
        return self._decode([[token]])[0]

    def _decode(self, tokens: list[list[int]]) -> list[str]:
        """Strings of tokens as they are within a text: at its start a decoder may drop a space."""
        if self._anchor is None:
            decoded: list[str] = self._tokenizer.decode_batch(tokens, skip_special_tokens=False)
            return decoded
        anchor, start = self._anchor
        decoded = self._tokenizer.decode_batch(
            [[anchor, *each] for each in tokens], skip_special_tokens=False
        )
        return [text[len(start) :] for text in decoded]

    @cached_property
    def strings(self) -> tuple[str, ...]:
        """The string of every token id."""
        return tuple(self._decode([[token] for token in range(self.vocab_size)]))

    @cached_property
    def _ids_by_string(self) -> dict[str, int]:
        """Ids by string; of equal strings the first, but single bytes after what text encodes to.

        Bytes that are no text of their own all read as U+FFFD, which names none of them.
        """

        def is_byte(token: int) -> bool:
            return _BYTE.fullmatch(self._tokenizer.id_to_token(token) or "") is not None

        named = [
            (is_byte(token), token, text)
            for token, text in enumerate(self.strings)
            if "\ufffd" not in text
        ]
        return {text: token for _, token, text in sorted(named, reverse=True)}

    @cached_property
    def longest_token(self) -> int:
        """UTF-8 bytes of the longest token."""
        return max(len(text.encode()) for text in self.strings)

    def single_token(self, text: str, field: str) -> int:
        """The one token that a string encodes to; InvalidArgument naming `field` otherwise.

        Where the tokenizer puts a space before a text, the token that reads as the string comes
        first: "cat" and " cat" would else both be the latter, or not one token.
        """
        if self._puts_space and text and text in self._ids_by_string:
            return self._ids_by_string[text]
        ids = self.encode(text) if len(text) <= 4 * self.longest_token else None
        if ids is None:
            raise InvalidArgument(
                f"a string of {len(text)} characters can't be one token; exactly 1 is needed",
                field=field,
                reason="NOT_ONE_TOKEN",
            )
        if len(ids) != 1:
            raise InvalidArgument(
                f"{text!r} encodes to {ids}; exactly 1 token is needed",
                field=field,
                reason="NOT_ONE_TOKEN",
            )
        return ids[0]

    def prompt(
        self,
        text: str,
        context: int,
        field: str,
        *,
        beginning_field: str | None = None,
    ) -> list[int]:
        """Token ids of a prompt that must be neither empty nor longer than the context.

        `beginning_field` names the field that asks for the beginning token, None where none does;
        InvalidArgument names it if the model needs none.
        """
        if beginning_field is not None and self.beginning_token is None:
            raise InvalidArgument(
                "the model's family needs no beginning token; write one into the prompt to have it",
                field=beginning_field,
            )
        if not text:
            raise InvalidArgument(
                "the prompt is empty; at least 1 token is needed",
                field=field,
                reason="EMPTY_PROMPT",
            )
        # Far more text than the context can hold is refused before it costs time to encode.
        if len(text) > context * self.longest_token:
            raise InvalidArgument(
                f"the prompt has {len(text)} characters, more than {context} tokens can hold; "
                f"the model's context is {context} tokens",
                field=field,
                reason="PROMPT_TOO_LONG",
            )
        ids = self.encode(text)
        if not ids:
            raise InvalidArgument(
                f"the prompt {text!r} has no tokens", field=field, reason="EMPTY_PROMPT"
            )
        if beginning_field is not None and self.beginning_token is not None:
            ids = [self.beginning_token, *ids]
        if len(ids) > context:
            raise InvalidArgument(
                f"the prompt has {len(ids)} tokens; the model's context is {context}",
                field=field,
                reason="PROMPT_TOO_LONG",
            )
        return ids


def _find_anchor(tokenizer: Tokenizer) -> tuple[int, str] | None:
    """A token that is a plain letter, to decode others behind it."""
    for letter in string.ascii_letters:
        token = tokenizer.token_to_id(letter)
        if token is not None and tokenizer.decode([token], skip_special_tokens=False) == letter:
            return token, letter
    return None
