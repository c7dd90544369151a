"""Bytes -> text: which encoding they are in, how sure that is, and which bytes could not be read.

The one question asked of every encoding is *what does it cost to write these bytes as text in it* (`frequent`): UTF-16
for whole files, the others for every line (`linewise`). Valid UTF-8 is taken at its word without any of this.

Nothing is dropped: a run of bytes that cannot be decoded stands as one U+FFFD and is recorded with its offset.
Knows no files and no HTML, and leaves line ends as they are.

Related: charset-normalizer (https://github.com/jawah/charset_normalizer), which guesses one encoding per file;
PEP 383 (`surrogateescape`), which keeps the undecodable bytes in place until they are counted.
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass, field

import numpy as np

from .frequent import BYTE_COST, COST, code_points, frequent_share
from .linewise import LINEWISE, cheapest_path, line_costs, segments_of

WIDE = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
BOM_GAIN = 50.0  # nats by which a UTF-16 byte order mark speaks for UTF-16: half a line of other evidence outweighs it
SAMPLE = 1 << 16  # bytes; enough to tell UTF-16 and binaries, which do not change half-way
BROKEN = re.compile("[\0\ud800-\udfff]+")  # what the error handlers leave of bytes that are no text; NUL is none either
CONTROL = bytes(sorted(set(range(32)) - set(b"\t\n\v\f\r\x1b")))  # without ESC: logs carry terminal colours
MAGIC = {
    b"PK\x03\x04": "a ZIP archive",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x1f\x8b": "gzip data",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"\xd0\xcf\x11\xe0": "an old Microsoft Office document",
    b"{\\rtf": "an RTF document",
    b"SQLite format 3\0": "an SQLite database",
    b"\x7fELF": "a program",
}


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The text of some bytes, and how it was come by.

    text: byte order mark removed; every undecodable run of bytes is one U+FFFD
    encoding: `utf-8`, `gb18030`, `big5`, `big5-hkscs`, `cp1252`, `utf-16-le`, `utf-16-be`, or several joined by `+`
    confidence: 0..1
    why: the evidence in one clause
    undecoded: `(offset, bytes)` of every undecodable run, in order; NUL counts as undecodable
    """

    text: str
    encoding: str
    confidence: float
    why: str
    undecoded: list[tuple[int, bytes]] = field(default_factory=list)


def decode(data: bytes) -> Decoded:
    """Decode bytes of unknown encoding. Never raises: what cannot be read is recorded in `undecoded`."""
    marked = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = str(memoryview(data)[marked:], "utf-8")
    except UnicodeDecodeError:
        order = _wide_order(data)
        return _decode_linewise(data) if order is None else _decode_wide(data, order)
    why = "byte order mark" if marked else "valid UTF-8"
    if "\0" not in text:
        return Decoded(text=text, encoding="utf-8", confidence=1.0, why=why)
    if (order := _wide_order(data)) is not None:  # English in UTF-16 is valid UTF-8 with a NUL after every letter
        return _decode_wide(data, order)
    text, undecoded = _record(text, data, marked, "utf-8")
    return Decoded(text=text, encoding="utf-8", confidence=1.0, why=f"{why} but for NUL", undecoded=undecoded)


def binary_reason(data: bytes) -> str | None:
    """Why these bytes are no text at all ("a PDF", "31 % control bytes"), or None where they may be text."""
    for magic, name in MAGIC.items():
        if data.startswith(magic):
            return name
    sample = data[:SAMPLE]
    if sample and not sample.strip(b"\0"):
        return "only NUL bytes"
    sample = re.sub(rb"\0+", b"\0", sample)  # a text padded with zeros, as broken downloads are, is still a text
    share = (len(sample) - len(sample.translate(None, CONTROL))) / max(1, len(sample))
    if share <= 0.05 or _wide_order(data) is not None:
        return None
    return f"{100 * share:.0f} % control bytes"


def line_end(block: bytes) -> int:
    """Where to cut a block of a larger file so that both sides can be decoded by themselves; 0 where that is nowhere.

    After the last line end, or, in a block of UTF-8 without any, before its last character.
    """
    if (order := _wide_order(block)) is not None:
        units = np.frombuffer(block, "<u2" if order == "utf-16-le" else ">u2", count=len(block) // 2)
        ends = np.flatnonzero(units == 0x0A) + 1
        split_pair = units[-1] >> 10 == 0xD800 >> 10  # a high surrogate, whose low one comes with the next block
        return 2 * int(ends[-1] if ends.size else len(units) - split_pair)
    # a \r at the very end is left alone: its \n may come with the next block
    if end := max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1:
        return end
    try:
        codecs.utf_8_decode(block[:SAMPLE], "strict", False)
    except UnicodeDecodeError:
        return 0
    return max((at for at in range(max(0, len(block) - 4), len(block)) if block[at] & 0xC0 != 0x80), default=0)


# ------------------------------------------------------------------------------------------------ UTF-16, whole files


def _wide_order(data: bytes) -> str | None:
    """The UTF-16 that a sample is cheaper to write in than in any encoding of single bytes; None where neither is."""
    sample = data[: min(SAMPLE, len(data) // 2 * 2)]
    if not sample:
        return None
    costs = {}
    for order, mark in WIDE.items():
        codes = code_points(sample.decode(order, "surrogatepass"))
        broken = (codes == 0) | ((codes >= 0xD800) & (codes < 0xE000))
        costs[order] = float(COST[codes].sum() + BYTE_COST * broken.sum())  # a broken unit is two broken bytes
        costs[order] -= BOM_GAIN if sample.startswith(mark) else 0
    best = min(costs, key=costs.__getitem__)
    by_lines = float(np.min([line_costs(sample, codec) for codec in LINEWISE], axis=0).sum())
    return best if costs[best] < by_lines else None


def _decode_wide(data: bytes, order: str) -> Decoded:
    marked = 2 if data.startswith(WIDE[order]) else 0
    even = len(data) // 2 * 2
    text = data[marked:even].decode(order, "surrogatepass")
    if even < len(data):
        text += "\ud800"  # half a character at the end is a broken one
    text, undecoded = _record(text, data, marked, order)
    if marked:
        return Decoded(text=text, encoding=order, confidence=1.0, why="byte order mark", undecoded=undecoded)
    share = frequent_share(text)
    why = f"share of frequent characters {share:.2f} as UTF-16"
    return Decoded(text=text, encoding=order, confidence=round(min(1.0, 2 * share), 3), why=why, undecoded=undecoded)


# ------------------------------------------------------------------------------ encodings of single bytes, line by line


def _decode_linewise(data: bytes) -> Decoded:
    costs = np.stack([line_costs(data, codec) for codec in LINEWISE])
    path = cheapest_path(costs)
    texts, undecoded, segments = [], [], segments_of(data, path)
    for codec, start, end in segments:
        part = data[start:end]
        text, runs = _record(part.decode(codec, "surrogateescape"), part, 0, codec)
        texts.append(text)
        undecoded += [(start + at, run) for at, run in runs]
    text = "".join(texts).removeprefix("\ufeff")
    names = list(dict.fromkeys(LINEWISE[codec] for codec, _, _ in segments))
    confidence, why = _judge(text, data, undecoded, segments, costs, path)
    return Decoded(text=text, encoding="+".join(names), confidence=confidence, why=why, undecoded=undecoded)


def _record(text: str, data: bytes, at: int, codec: str) -> tuple[str, list[tuple[int, bytes]]]:
    """Replace every run of broken characters by one U+FFFD and find the bytes it stands for.

    text: `data[at:]`, decoded with the error handler that keeps what is broken
    """
    errors, last, runs = "surrogatepass" if codec in WIDE else "surrogateescape", 0, []
    for match in BROKEN.finditer(text):
        at += len(text[last : match.start()].encode(codec, errors))
        n = len(match[0].encode(codec, errors))
        runs.append((at, data[at : at + n]))
        at, last = at + n, match.end()
    return BROKEN.sub("\ufffd", text), runs


def _judge(
    text: str, data: bytes, undecoded: list[tuple[int, bytes]], segments: list[tuple[str, int, int]],
    costs: np.ndarray, path: np.ndarray,
) -> tuple[float, str]:  # fmt: skip
    """Confidence, and the evidence in one clause, for a line-wise reading."""
    used = list(dict.fromkeys(codec for codec, _, _ in segments))
    # the two Big5s differ in rare characters only, so one does not speak against the other
    big5 = {"cp950", "big5hkscs"}
    others = [c for c in LINEWISE if c not in used and not (c in big5 and big5 & set(used))]
    sums = dict(zip(LINEWISE, costs.sum(axis=1).tolist(), strict=True))
    rival = min(others, key=sums.__getitem__)
    # bytes are not independent witnesses, as a unigram model takes them to be: hence a tenth of the nats
    margin = (sums[rival] - float(costs[path, np.arange(len(path))].sum())) / 10
    certain = 1 / (1 + math.exp(-max(-50.0, min(50.0, margin))))
    n_bad = sum(len(run) for _, run in undecoded)
    share = frequent_share(text)
    if len(used) > 1:
        codec, start, _ = next(segment for segment in segments if segment[0] != used[0])
        return round(certain * min(1.0, 2 * share), 3), f"{LINEWISE[codec]} from byte {start} on"
    if used == ["utf-8"]:
        return round(certain * (1 - n_bad / len(data)), 3), f"valid UTF-8 but for {n_bad} of {len(data)} bytes"
    against = frequent_share(BROKEN.sub("\ufffd", data[:SAMPLE].decode(rival, "surrogateescape")))
    why = f"share of frequent characters {share:.2f} against {against:.2f} as {LINEWISE[rival]}"
    return round(certain * min(1.0, 2 * share), 3), why  # below a half it is no good text, whatever its rivals are
