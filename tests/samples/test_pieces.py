"""Pieces put together are the text, for byte-level vocabularies byte by byte; SentencePiece's way of writing is undone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from stylora.model.tokenizer_file import TINY
from stylora.samples.pieces import byte_letters, piece_of


def as_bytes(piece: str | bytes) -> bytes:
    return piece.encode("utf-8") if isinstance(piece, str) else piece


def test_letters_are_those_of_the_library():
    from tokenizers import pre_tokenizers

    assert sorted(byte_letters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_letters().values()) == list(range(256))
    decode = decoders.ByteLevel().decode
    assert all(decode([letter]) == chr(byte) for letter, byte in byte_letters().items() if byte < 0x80)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_byte_level_pieces_are_the_bytes_of_the_text(bpe, text):
    piece = piece_of(bpe)
    pieces = [piece(token) for token in bpe.encode(text, add_special_tokens=False).ids]
    assert b"".join(map(as_bytes, pieces)) == text.encode("utf-8")
    for one in pieces:  # bytes only where they are no characters
        if isinstance(one, bytes):
            with pytest.raises(UnicodeDecodeError):
                one.decode("utf-8")


def test_sentencepiece_blanks_and_bytes():
    vocabulary = {"<unk>": 0, "▁剑": 1, "<0xE5>": 2, "<0x41>": 3, "<0xE5>x": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    piece = piece_of(tokenizer)
    assert [piece(token) for token in range(1, 5)] == [" 剑", b"\xe5", "A", "<0xE5>x"]


def test_special_tokens_and_ids_without_a_word():
    if not (TINY / "tokenizer.json").is_file():
        pytest.skip("the bundled base is not there yet")
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    piece = piece_of(tokenizer)
    assert piece(tokenizer.token_to_id("<|im_end|>")) == "<|im_end|>"
    assert piece(10**6) == "<1000000>"
