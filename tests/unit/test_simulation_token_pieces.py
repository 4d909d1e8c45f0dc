"""Prompts encoded by pieces, with tokenizers of many kinds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from services.simulation.errors import InvalidInput
from services.simulation.prompts.simulation import AllAtOncePrompt, simulation_prompt
from services.simulation.simulators.token_pieces import (
    MAX_PIECE_CHARACTERS,
    NOT_TEXT,
    NOTHING_LEFT,
    TOO_LONG,
    UNKNOWN_TEXT,
    PieceTokenizer,
    beginning_ids,
)
from services.simulation.simulators.value_reading import ValueReading
from shared.errors import FailedPrecondition
from tests.unit.simulation_tokenizers import (
    KINDS,
    byte_level,
    sentencepiece_bpe,
    text_of,
    unigram,
    wordpiece,
)

BUILT: dict[str, tuple[Tokenizer, PieceTokenizer]] = {}

EXACT = [name for name in KINDS if not name.startswith("WordPiece")]
"""Kinds that keep every character, upper case and blanks too."""

ODD = [
    "",
    " ",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "\t\t",
    "\tunknown",
    "x\ty\n",
    "\r\n",
    "\0",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "▁",
    "\ufffd",
    "é",
    "e\u0301",
    "漢字",
    "👩‍👩‍👧",
    "\u202e",
    " the",
    "ist",
    "10",
    "unknown",
    "<start>",
    "a" * 500,
]


def built(kind: str) -> tuple[Tokenizer, PieceTokenizer]:
    if kind not in BUILT:
        tokenizer = KINDS[kind]()
        BUILT[kind] = tokenizer, PieceTokenizer(tokenizer.to_str())
    return BUILT[kind]


@pytest.mark.parametrize("kind", EXACT)
def test_ids_stand_for_the_text_and_nothing_else(kind: str) -> None:
    tokenizer, pieces = built(kind)
    prompt = simulation_prompt("few_shot-1", AllAtOncePrompt)
    for text in [*prompt.shared, *prompt.explained("names of colors"), *prompt.lines(["a", " b"])]:
        piece = pieces.piece(text)
        assert not piece.problem
        assert text_of(tokenizer, piece.ids) == text


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("text", ODD)
def test_odd_tokens_are_written_as_they_are_or_reported(kind: str, text: str) -> None:
    tokenizer, pieces = built(kind)
    piece = pieces.piece(text)
    # SentencePiece writes a space so, and can't tell the two apart.
    expected = text.replace("▁", " ") if kind.startswith("SentencePiece") else text
    assert piece.problem or text_of(tokenizer, piece.ids) == expected
    if kind.startswith("byte level"):
        assert not piece.problem


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_characters="▁")))
def test_any_text_is_written_as_it_is_or_reported(kind: str, text: str) -> None:
    tokenizer, pieces = built(kind)
    piece = pieces.piece(text)
    assert piece.problem or text_of(tokenizer, piece.ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_joined_without_folding_what_separates_them(kind: str) -> None:
    _, pieces = built(kind)
    tab, end = pieces.piece("\t").ids, pieces.piece("\n").ids
    (line,) = [pieces.joined(("house", "\t", "unknown", "\n"), "x")]
    assert line == pieces.piece("house").ids + tab + pieces.piece("unknown").ids + end
    # Encoded in one go, the tab goes into a token with what stands beside it.
    if kind == "byte level, as Llama 3":
        whole = tuple(built(kind)[0].encode("house\tunknown\n", add_special_tokens=False).ids)
        assert whole != line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["<|endoftext|>", "<s>", "</s>", "[CLS]", "[SEP]", "[PAD]"])
def test_names_of_commands_are_text(kind: str, text: str) -> None:
    tokenizer, pieces = built(kind)
    commands = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert commands
    assert pieces.piece(text).problem or commands.isdisjoint(pieces.piece(text).ids)
    for ids in (pieces.piece(f"a {text} b").ids,):
        unknown = {tokenizer.token_to_id(name) for name in ("<unk>", "[UNK]")}
        assert (commands - unknown).isdisjoint(ids)


def test_no_space_is_put_before_a_piece() -> None:
    for tokenizer in (sentencepiece_bpe(), unigram()):
        pieces = PieceTokenizer(tokenizer.to_str())
        assert tokenizer.encode("house", add_special_tokens=False).tokens[0].startswith("▁")
        assert not tokenizer.id_to_token(pieces.piece("house").ids[0]).startswith("▁")
        assert tokenizer.id_to_token(pieces.piece(" house").ids[0]).startswith("▁")


def test_bytes_stand_for_what_has_no_token() -> None:
    tokenizer = sentencepiece_bpe()
    pieces = PieceTokenizer(tokenizer.to_str())
    assert [tokenizer.id_to_token(i) for i in pieces.piece("\t").ids] == ["<0x09>"]
    names = [tokenizer.id_to_token(i) for i in pieces.piece("漢").ids]
    assert names == ["<0xE6>", "<0xBC>", "<0xA2>"]
    # The name of a byte is text too.
    assert tokenizer.token_to_id("<0x0A>") not in pieces.piece("<0x0A>").ids


def test_a_character_that_the_vocabulary_lacks_is_reported() -> None:
    for tokenizer in (sentencepiece_bpe(byte_fallback=False), wordpiece(blanks=True)):
        pieces = PieceTokenizer(tokenizer.to_str())
        assert pieces.piece("漢").problem == UNKNOWN_TEXT
        with pytest.raises(InvalidInput, match="no ids") as caught:
            pieces.joined(["a", "漢"], "explanation")
        assert (caught.value.field, caught.value.reason) == (
            "explanation",
            "TEXT_NOT_IN_VOCABULARY",
        )


def test_a_character_that_vanishes_is_reported() -> None:
    vocabulary = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789 \t\n<>")}
    pieces = PieceTokenizer(_without_pre_tokenizer(Tokenizer(models.BPE(vocabulary, []))))
    assert pieces.piece("abc").problem == ""
    assert pieces.piece("aéc").problem == UNKNOWN_TEXT
    assert pieces.piece("é").problem == UNKNOWN_TEXT


def test_a_blank_of_which_nothing_is_left_is_reported() -> None:
    pieces = built("WordPiece with blanks")[1]
    assert pieces.piece(" ").problem == NOTHING_LEFT
    assert pieces.piece("").problem == ""
    assert pieces.piece(" House").ids == pieces.piece("house").ids


def test_what_is_no_text_is_reported() -> None:
    pieces = built("byte level")[1]
    assert pieces.piece("a\ud83d").problem == NOT_TEXT
    assert pieces.piece("a" * (MAX_PIECE_CHARACTERS + 1)).problem == TOO_LONG


@pytest.mark.parametrize(
    ("tokenizer", "what"),
    [
        (wordpiece(blanks=False), "has no ids for '\\t'"),
        (sentencepiece_bpe(byte_fallback=False), "has no ids for '\\t'"),
    ],
)
def test_a_tokenizer_without_a_tab_is_refused(tokenizer: Tokenizer, what: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        ValueReading.of(PieceTokenizer(tokenizer.to_str()))
    assert what in caught.value.message
    assert caught.value.reason == "TOKENIZER_NOT_SERVED"


def test_a_tokenizer_without_a_newline_is_refused() -> None:
    vocabulary = {c: i for i, c in enumerate("abc0123456789\t ")}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    with pytest.raises(FailedPrecondition, match=r"has no ids for '\\n'"):
        ValueReading.of(PieceTokenizer(_without_pre_tokenizer(tokenizer)))


def test_a_tokenizer_that_makes_blanks_of_tabs_is_refused() -> None:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Replace("\t", " ")
    with pytest.raises(FailedPrecondition, match="as another blank"):
        ValueReading.of(PieceTokenizer(tokenizer.to_str()))


def test_a_tokenizer_that_gives_all_numbers_one_id_is_refused() -> None:
    vocabulary = {"<unk>": 0, "#": 1, "\t": 2, "\n": 3, " ": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(_digits(), "#")
    with pytest.raises(FailedPrecondition, match="doesn't tell apart '0, 1, 2"):
        ValueReading.of(PieceTokenizer(_without_pre_tokenizer(tokenizer)))


def test_what_begins_a_text_is_found() -> None:
    transformers = pytest.importorskip("transformers")

    def begins(tokenizer: Any) -> tuple[int, ...]:
        return beginning_ids(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer))

    assert begins(byte_level()) == ()
    assert begins(KINDS["byte level, as Llama 3"]()) == (0,)
    sentencepiece = sentencepiece_bpe()
    assert begins(sentencepiece) == (sentencepiece.token_to_id("<s>"),)
    # What a tokenizer puts behind a text is left out.
    bert = wordpiece(blanks=True)
    assert begins(bert) == (bert.token_to_id("[CLS]"),)


def _digits() -> Any:
    from tokenizers import Regex

    return Regex("[0-9]+")


def _without_pre_tokenizer(tokenizer: Tokenizer) -> str:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    return str(tokenizer.to_str())
