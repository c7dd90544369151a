"""Token id -> what it is written as: the `piece` that drawings of forests ask for (forest/draw.py).

Byte-level vocabularies write bytes as letters (the table of GPT-2's `encoder.py`: Ġ is a blank) and cut characters; SentencePiece writes a
blank as ▁ and single bytes as `<0xE5>`. Knows tokenizers, no forests.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tokenizers import Tokenizer

BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def piece_of(tokenizer: Tokenizer) -> Callable[[int], str | bytes]:
    """The function id -> text, or bytes where a token is a part of a character. An id without a word is `<12345>`."""
    special = {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items()}
    letters = byte_letters() if tokenizer.decoder is not None and tokenizer.decoder.decode(["Ġ"]) == " " else None

    def piece(token: int) -> str | bytes:
        if token in special:
            return special[token]
        word = tokenizer.id_to_token(token)
        if word is None:
            return f"<{token}>"
        if letters is not None:
            return whole(bytes(letters[letter] for letter in word))
        byte = BYTE.fullmatch(word)
        return whole(bytes.fromhex(byte[1])) if byte else word.replace("▁", " ")

    return piece


def whole(data: bytes) -> str | bytes:
    """The characters these bytes are, or the bytes themselves where they are parts of some."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def byte_letters() -> dict[str, int]:
    """Letter -> byte: printable Latin-1 stands for itself, the other bytes in order for U+0100, U+0101, ..."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
