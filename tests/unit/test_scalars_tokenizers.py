"""Tokenizers of both kinds, and which token belongs before a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from services.scalars.model.subject import load_subject
from services.scalars.model.tokenizer import TextTokenizer
from shared.errors import ConfigurationError, InvalidArgument
from tests.unit.scalars_checkpoint import make_tokenizer, write_checkpoint
from tests.unit.scalars_llama_checkpoint import (
    byte_level_tokenizer,
    metaspace_tokenizer,
    write_llama_checkpoint,
)

TEXTS = ("The cat sat on the mat.", "naïve café, Straße 東京", "a  b\n c\t", "42", " the cat ", "é")


def load(tokenizer: Tokenizer) -> TextTokenizer:
    return TextTokenizer(tokenizer, tokenizer.get_vocab_size() + 3)


def first_scheme_tokenizer() -> Tokenizer:
    """As newer files of Llama 2 have it: a step of its own puts the space before the text."""
    tokenizer = metaspace_tokenizer()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def metaspace_decoder_tokenizer() -> Tokenizer:
    tokenizer = first_scheme_tokenizer()
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_strings_of_byte_level_tokens_make_the_text(text: str) -> None:
    tokenizer = load(byte_level_tokenizer())
    strings = [tokenizer.decode(token) for token in tokenizer.encode(text)]
    whole = "".join(strings)
    assert whole == text or "\ufffd" in whole
    assert strings == [
        make_tokenizer().decode([token], skip_special_tokens=False)
        for token in tokenizer.encode(text)
    ]


@pytest.mark.parametrize(
    "make", [metaspace_tokenizer, first_scheme_tokenizer, metaspace_decoder_tokenizer]
)
def test_strings_of_metaspace_tokens_keep_their_spaces(make: Any) -> None:
    tokenizer = load(make())
    strings = [tokenizer.decode(token) for token in tokenizer.encode("The cat sat")]
    assert "".join(strings) == " The cat sat"
    assert strings[-2:] == [" cat", " sat"]
    assert tokenizer.strings[tokenizer.encode("The cat sat")[1]] == " cat"


def test_bytes_of_metaspace_tokens() -> None:
    tokenizer = load(metaspace_tokenizer())
    ids = tokenizer.encode("a\n東")
    assert [tokenizer.decode(token) for token in ids][-4:] == ["\n", "\ufffd", "\ufffd", "\ufffd"]


def test_every_string_can_name_its_token() -> None:
    tokenizer = load(metaspace_tokenizer())
    for text in (" cat", " the", "e"):
        token = tokenizer.single_token(text, "target")
        assert tokenizer.decode(token) == text
        # The one that stands for it in a text, though a byte may read the same.
        assert token == tokenizer.encode("x" + text)[-1]
    # Without the space there may be no such token; then it is read as a text is.
    assert " France." in tokenizer.strings
    assert "France." not in tokenizer.strings
    assert tokenizer.decode(tokenizer.single_token("France.", "target")) == " France."
    with pytest.raises(InvalidArgument, match="exactly 1"):
        tokenizer.single_token(" cat sat", "target")
    with pytest.raises(InvalidArgument, match="exactly 1"):
        tokenizer.single_token("", "target")


def test_rows_without_a_token_are_empty() -> None:
    for make in (byte_level_tokenizer, metaspace_tokenizer):
        tokenizer = load(make())
        assert tokenizer.strings[-3:] == ("", "", "")
        assert tokenizer.decode(tokenizer.vocab_size - 1) == ""


def test_a_tokenizer_without_letters_is_read_too() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "1": 1, "2": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert load(tokenizer).strings == ("<unk>", "1", "2", "", "", "")


def beginning(
    directory: Path, settings: dict[str, Any] | None = None, **arguments: Any
) -> tuple[str, int | None]:
    write_llama_checkpoint(directory, **arguments)
    if settings is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    subject = load_subject("tiny", str(directory), "cpu")
    return subject.beginning_token, subject.tokenizer.beginning_token


def test_what_the_tokenizer_puts_before_a_text(tmp_path: Path) -> None:
    assert beginning(tmp_path / "a") == ("<|endoftext|>", 0)
    assert beginning(tmp_path / "b", tokenizer=metaspace_tokenizer()) == ("<s>", 1)


def test_what_the_settings_of_the_tokenizer_say(tmp_path: Path) -> None:
    assert beginning(tmp_path / "no", {"add_bos_token": False, "bos_token": "<s>"}) == ("", None)
    added = {"add_bos_token": True, "bos_token": {"content": "</s>"}}
    assert beginning(tmp_path / "yes", added, tokenizer=metaspace_tokenizer()) == ("</s>", 2)
    with pytest.raises(ConfigurationError, match="'<none>', which is not a token") as caught:
        beginning(tmp_path / "unknown", {"add_bos_token": True, "bos_token": "<none>"})
    assert caught.value.key == "model.path"
    (tmp_path / "yes" / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"tokenizer_config\.json is not JSON"):
        load_subject("tiny", str(tmp_path / "yes"), "cpu")


def test_what_the_family_needs(tmp_path: Path) -> None:
    plain = make_tokenizer()  # says nothing of its own
    assert beginning(tmp_path / "llama", tokenizer=plain) == ("<|endoftext|>", 0)
    assert beginning(tmp_path / "qwen", variant="qwen3", tokenizer=plain) == ("", None)
    # A number that is no special token of this tokenizer means another one.
    assert beginning(tmp_path / "other", tokenizer=plain, config={"bos_token_id": 7}) == ("", None)
    assert beginning(tmp_path / "none", tokenizer=plain, config={"bos_token_id": None}) == (
        "",
        None,
    )
    assert (
        load_subject("tiny", str(write_checkpoint(tmp_path / "gpt2")), "cpu").beginning_token == ""
    )


def test_the_beginning_token_is_put_on_request_only(tmp_path: Path) -> None:
    write_llama_checkpoint(tmp_path)
    tokenizer = load_subject("tiny", str(tmp_path), "cpu").tokenizer
    plain = tokenizer.prompt("The cat", 8, "prompt")
    assert plain == tokenizer.encode("The cat")
    assert tokenizer.prompt("The cat", 8, "prompt", beginning_field="begin") == [0, *plain]
    with pytest.raises(InvalidArgument, match=rf"{len(plain) + 1} tokens; the model's context"):
        tokenizer.prompt("The cat", len(plain), "prompt", beginning_field="begin")
    needless = load(make_tokenizer())
    with pytest.raises(InvalidArgument, match="needs no beginning token") as caught:
        needless.prompt("The cat", 8, "prompt", beginning_field="begin")
    assert caught.value.field == "begin"
