"""The records the corpus layer hands on: a document of plain text with where it came from.

Knows no tokenizers and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text on its way to the tokenizer: a book, an article, or one row of a JSONL file.

    text: decoded and cleaned, `\\n` between paragraphs
    source: the label that splits and mixes use: the book's name for a novel, the row's `source` for a JSONL row
    origin: where it lies, for messages: `data/a.txt`, `novels.zip!/b.txt`, `rows.jsonl:17`
    fingerprint: hex BLAKE2b-128 of the raw bytes it was decoded from (the row's text for rows); half of every sample id
    """

    text: str
    source: str
    origin: str
    fingerprint: str


@dataclass(kw_only=True)
class FileReport:
    """What happened to one file on the way in: how it was decoded, what was cleaned away, or why it was skipped.

    path: as in `Document.origin` (without a row number)
    n_bytes: size on disk (or in the archive)
    encoding: `utf-8`, `gb18030`, `big5`, `utf-16-le`, ...; several joined by `+` where the file changes half-way
    confidence: 0..1, how sure the decoder is
    why: the evidence in one clause ("byte order mark", "valid UTF-8", "share of frequent characters 0.93 against 0.41 for big5")
    undecoded: `(offset, bytes)` for every run of bytes that could not be decoded; each stands as U+FFFD in the text
    counts: cleaning step -> how many characters, lines or paragraphs it changed
    removed: `(step, line number, text)` for what cleaning took out, to be shown on request
    bad_rows: `(line or row number, reason)` of the first 1 000 rows that gave no document; `counts["bad rows"]` has all
    skipped: the reason the file gave no document; None when it did
    documents: how many documents it gave
    """

    path: str
    n_bytes: int = 0
    encoding: str = ""
    confidence: float = 0.0
    why: str = ""
    undecoded: list[tuple[int, bytes]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    removed: list[tuple[str, int, str]] = field(default_factory=list)
    bad_rows: list[tuple[int, str]] = field(default_factory=list)
    skipped: str | None = None
    documents: int = 0
