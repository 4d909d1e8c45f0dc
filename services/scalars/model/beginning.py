"""Which token a model was trained to see before a text.

Families differ: Llama needs one, GPT-2 and Qwen do not. The files of the tokenizer decide, in the
order in which the library heeds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from services.scalars.model.checkpoint import MODEL_KEY, read_object
from shared.errors import ConfigurationError

_FILE = "tokenizer_config.json"
_FAMILIES_THAT_NEED_ONE = frozenset({"llama", "mistral"})


def find_beginning_token(
    directory: Path, config: Mapping[str, Any], tokenizer: Tokenizer
) -> int | None:
    """The id of the token to put before a text, None where the model needs none.

    What decides: `add_bos_token` of tokenizer_config.json; what the tokenizer itself puts before a
    text; the family, whose token is the `bos_token` of tokenizer_config.json or the `bos_token_id`
    of config.json, if it is one of the tokenizer's special tokens. Raises ConfigurationError where
    tokenizer_config.json can't be read or asks for a token that the tokenizer doesn't have.
    """
    file = directory / _FILE
    settings = read_object(file) if file.is_file() else {}
    wanted = settings.get("add_bos_token")
    if wanted is False:
        return None
    named = _named(settings, tokenizer)
    if wanted is True:
        if named is None:
            raise ConfigurationError(
                MODEL_KEY,
                f"{_FILE}: add_bos_token is true, but bos_token is {settings.get('bos_token')!r}, "
                "which is not a token of tokenizer.json",
            )
        return named
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    if len(whole) > len(plain) and whole[0] != plain[0]:
        return int(whole[0])
    if config.get("model_type") in _FAMILIES_THAT_NEED_ONE:
        return named if named is not None else _numbered(config, tokenizer)
    return None


def _named(settings: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    token = settings.get("bos_token")
    if isinstance(token, dict):
        token = token.get("content")
    found: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return found


def _numbered(config: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    token = config.get("bos_token_id")
    if isinstance(token, bool) or not isinstance(token, int):
        return None
    added = tokenizer.get_added_tokens_decoder().get(token)
    return token if added is not None and added.special else None
