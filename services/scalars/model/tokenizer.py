"""Text to tokens and back, with a model's own tokenizer.json.

No special token is added; one that is written in the text is recognised as one.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from services.scalars.model.checkpoint import MODEL_KEY
from shared.errors import ConfigurationError, InvalidArgument


class TextTokenizer:
    """A byte-level tokenizer whose ids fit a model's vocabulary."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size

    @classmethod
    def load(cls, directory: Path, vocab_size: int) -> TextTokenizer:
        """Reads tokenizer.json; ConfigurationError where it is missing, broken or too large."""
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
        return cls(tokenizer, vocab_size)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; empty for the empty text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token: int) -> str:
        """The string of one token; a partial UTF-8 sequence decodes to U+FFFD.

        A row of the embedding that the tokenizer has no token for decodes to the empty string.
        """
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    @cached_property
    def strings(self) -> tuple[str, ...]:
        """The string of every token id."""
        decoded: list[str] = self._tokenizer.decode_batch(
            [[token] for token in range(self.vocab_size)], skip_special_tokens=False
        )
        return tuple(decoded)

    @cached_property
    def longest_token(self) -> int:
        """UTF-8 bytes of the longest token."""
        return max(len(text.encode()) for text in self.strings)

    def single_token(self, text: str, field: str) -> int:
        """The one token that a string encodes to; InvalidArgument naming `field` otherwise."""
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

    def prompt(self, text: str, context: int, field: str) -> list[int]:
        """Token ids of a prompt that must be neither empty nor longer than the context."""
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
        if len(ids) > context:
            raise InvalidArgument(
                f"the prompt has {len(ids)} tokens; the model's context is {context}",
                field=field,
                reason="PROMPT_TOO_LONG",
            )
        return ids
