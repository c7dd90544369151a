"""One pass over a corpus: texts go in, cleaned documents come out, and what happened stands in the files' reports.

Cleaning remembers paragraphs from one file to the next, so a pass has one `Intake`. Texts of more than PART bytes come in
parts, each decoded and cleaned by itself: never more than one part of one file is in memory.

Knows no file formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import IO

from .clean import Cleaning, SeenParagraphs, clean
from .decode import Decoded, binary_reason, decode, line_end
from .document import Document, FileReport

PART = 16 << 20  # bytes of one text that are in memory at a time
READABLE = 0.7  # share of a part's bytes that must decode for it to be text
DOUBTFUL = 0.1  # confidence under which a reading is gibberish: less than a twentieth of it frequent characters


@dataclass
class Intake:
    """The settings of a pass, what cleaning remembers, and the account of it.

    reports: gets the report of every file; None where nobody will look, and nothing taken out is kept
    lines: is each line of a .txt a text of its own?
    documents: given so far; skipped: `path: reason` of the files that gave none
    """

    cleaning: Cleaning
    reports: list[FileReport] | None
    lines: bool = False
    seen: SeenParagraphs = field(default_factory=SeenParagraphs)
    documents: int = 0
    skipped: list[str] = field(default_factory=list)

    def add(self, report: FileReport) -> None:
        """Begin the account of the file that is read next."""
        if self.reports is not None:
            self.reports.append(report)

    def skip(self, report: FileReport, reason: str) -> None:
        """Say why this file gives no document, or no more of them."""
        report.skipped = reason
        self.skipped.append(f"{report.path}: {reason}")

    def document(
        self, report: FileReport, text: str, *, source: str, origin: str, raw: bytes, row: int = 0, line: int = 0
    ) -> Document | None:
        """Clean one text; None where nothing is left of it.

        row: the number by which `removed` names a text that is a row; of others it names the lines, `line` further on
        """
        cleaned = clean(text, self.cleaning, self.seen)
        for step, n in cleaned.counts.items():
            report.counts[step] = report.counts.get(step, 0) + n
        if self.reports is not None:
            report.removed += [(step, row or line + at, gone) for step, at, gone in cleaned.removed]
        if not cleaned.text or cleaned.text.isspace():
            return None
        report.documents += 1
        self.documents += 1
        fingerprint = blake2b(raw, digest_size=16).hexdigest()
        return Document(text=cleaned.text, source=source, origin=origin, fingerprint=fingerprint)

    def decoded_parts(self, stream: IO[bytes], report: FileReport) -> Iterator[tuple[bytes, Decoded]]:
        """The parts of a text with their bytes, accounted for in the report; ends with a skip where they are no text."""
        offset = 0
        for part in _parts(stream):
            if offset == 0 and (reason := binary_reason(part)) is not None:
                self.skip(report, f"binary ({reason})")
                return
            decoded = decode(part)
            n_bad = sum(len(run) for _, run in decoded.undecoded)
            if n_bad > (1 - READABLE) * len(part) or decoded.confidence < DOUBTFUL:
                rest = f"from byte {offset} on " if offset else ""
                best = f"{decoded.encoding} with confidence {decoded.confidence:.2f}, {n_bad} of {len(part)} bytes bad"
                self.skip(report, f"{rest}in no known encoding (at best {best})")
                return
            account_for(report, decoded, offset)
            offset += len(part)
            yield part, decoded
        if offset == 0:
            self.skip(report, "empty")


def account_for(report: FileReport, decoded: Decoded, offset: int) -> None:
    """Add to the report what was decoded `offset` bytes into its file."""
    names = dict.fromkeys([*report.encoding.split("+"), *decoded.encoding.split("+")])
    if not report.encoding or decoded.confidence < report.confidence:  # of several parts, the most doubtful
        report.confidence, report.why = decoded.confidence, decoded.why
    report.encoding = "+".join(name for name in names if name)
    report.undecoded += [(offset + at, run) for at, run in decoded.undecoded]


def _parts(stream: IO[bytes]) -> Iterator[bytes]:
    """The bytes of a file in parts of about PART, cut at line ends."""
    rest = b""
    while block := stream.read(PART):
        rest = rest + block if rest else block
        if len(block) == PART and (cut := line_end(rest)):
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest
