"""Which piece of a tokenizer speaks for which of the subject model's tokens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from services.simulation.simulators.piece_alignment import NO_PIECE, PairTokenizer
from tests.unit.token_head_folders import KINDS, byte_level, sentence_piece, word_piece

TOKENIZERS = {kind: make() for kind, make in KINDS.items()}
PAIRED = {kind: PairTokenizer(tokenizer.to_str()) for kind, tokenizer in TOKENIZERS.items()}


def spoken(kind: str, *tokens: str) -> list[str | None]:
    """The piece that speaks for each token, as text."""
    aligned = PAIRED[kind].align(tokens)
    return [
        None if piece == NO_PIECE else TOKENIZERS[kind].id_to_token(aligned.ids[piece])
        for piece in aligned.piece_of_token
    ]


def test_the_last_piece_of_a_token_speaks_for_it() -> None:
    assert spoken("sentence piece", "the", " li", "on") == ["▁the", "▁lion", "▁lion"]
    assert spoken("sentence piece", " lions") == ["s"]


def test_what_a_tokenizer_drops_has_no_piece() -> None:
    assert spoken("word piece", "The", " ", "", "\n\n", "the") == ["the", None, None, None, "the"]
    assert spoken("byte level", "\n\n", "", " ")[1] is None
    assert None not in (spoken("byte level", "\n\n", " ", "  x"))


def test_white_space_keeps_its_piece_though_the_frame_trims_places() -> None:
    tokens = ["and", " ", " ", " the"]
    plain = byte_level().encode("and   the")
    assert any(start == end for start, end in plain.offsets)
    assert None not in spoken("byte level", *tokens)


def test_bytes_of_a_character_end_with_its_last() -> None:
    assert spoken("sentence piece", "lion", "日", "the")[1] == "<0xA5>"
    assert spoken("byte level", "é", "x")[0] is not None


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_becomes_a_special_piece(kind: str) -> None:
    special = {token["id"] for token in json.loads(TOKENIZERS[kind].to_str())["added_tokens"]} - {
        TOKENIZERS[kind].token_to_id("<unk>"),
        TOKENIZERS[kind].token_to_id("[UNK]"),
    }
    text = "a <|endoftext|> </s><s> [CLS] [SEP] <pad>"
    assert special
    assert not special & set(PAIRED[kind].text_ids(text))
    assert not special & set(PAIRED[kind].align([text, "</s>", "[PAD]"]).ids)


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_is_the_tokenizers_own(kind: str) -> None:
    tokenizer, paired = TOKENIZERS[kind], PAIRED[kind]
    first, second = "the lion", "and then"
    own = tokenizer.encode(first, second)
    ids, types = paired.template.filled(paired.text_ids(first), paired.text_ids(second))
    assert (ids, types) == (own.ids, own.type_ids)
    assert paired.template.pieces == own.special_tokens_mask.count(1)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    tokens=st.lists(
        st.one_of(
            st.sampled_from(
                [" ", "", "\n", "\t", "lion", " the", "�", "é", "e\u0301", "日", "\ud83d"]
            ),
            st.text(max_size=6),
        ),
        max_size=20,
    ),
)
@settings(max_examples=150, deadline=None)
def test_a_piece_reaches_into_its_token_and_no_later_one_does(kind: str, tokens: list[str]) -> None:
    aligned = PAIRED[kind].align(tokens)
    bare = json.loads(TOKENIZERS[kind].to_str())
    plain = Tokenizer.from_str(json.dumps({**bare, "post_processor": None}))
    plain.encode_special_tokens = True
    text = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in "".join(tokens))
    spans = plain.encode(text, add_special_tokens=False).offsets
    assert len(aligned.piece_of_token) == len(tokens)
    start = 0
    for token, piece in zip(tokens, aligned.piece_of_token, strict=True):
        end = start + len(token)
        reaching = [
            number
            for number, (first, last) in enumerate(spans)
            if first < end and last > start and first < last and start < end
        ]
        assert piece == (reaching[-1] if reaching else NO_PIECE)
        start = end


def test_a_tokenizer_that_drops_letters_is_refused() -> None:
    tokenizer = word_piece()
    tokenizer.normalizer = normalizers.Replace("a", "")
    with pytest.raises(ValueError, match="no piece for the letter a"):
        PairTokenizer(tokenizer.to_str())


def test_vocabulary_size_counts_added_pieces() -> None:
    tokenizer = sentence_piece()
    before = PairTokenizer(tokenizer.to_str()).vocabulary_size
    tokenizer.add_tokens(["<extra>"])
    assert PairTokenizer(tokenizer.to_str()).vocabulary_size == before + 1
