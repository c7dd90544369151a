"""One opened file of any format -> its documents: READERS has a function for every suffix.

A text, an EPUB or a member of a ZIP is one document (a large text several of the same source); a row of JSONL, JSON,
Parquet or a hub dataset is one document with its own `source`; so is a line of a .txt where lines are texts of their own.
Markup is taken off; a file that gives nothing is skipped with the reason. Knows no folders.
"""

from __future__ import annotations

import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from .decode import binary_reason, decode
from .document import Document, FileReport
from .html import BadEpub, epub_members, html_to_text, looks_like_html
from .intake import Intake, account_for
from .rows import BadParquet, Rows, hub_rows, hub_split, json_rows, parquet_rows, row_problem, text_rows

KEPT_BAD_ROWS = 1000
BOMB_BYTES, BOMB_RATIO = 100 << 20, 200  # a member both larger and denser than any text
BROKEN_ARCHIVE = (zipfile.BadZipFile, BadEpub, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
LONE_SURROGATES = re.compile("[\ud800-\udfff]+")  # JSON may escape them; no tokenizer takes them


@dataclass(frozen=True, kw_only=True)
class Input:
    """One opened file or archive member.

    name: its suffix tells the format, its stem is the default source; origin: where messages say it lies
    """

    stream: IO[bytes]
    name: PurePosixPath
    origin: str
    n_bytes: int


def read_file(intake: Intake, file: Input) -> Iterator[Document]:
    """The documents of one file whose suffix is in READERS."""
    archive = file.name.suffix.lower() == ".zip"  # its members have reports of their own; it only if it is skipped
    report = FileReport(path=file.origin, n_bytes=file.n_bytes)
    if not archive:
        intake.add(report)
    try:
        suffix = file.name.suffix.lower()
        read = _read_lines if intake.lines and suffix == ".txt" else READERS[suffix]
        yield from read(intake, file, report)
    except BROKEN_ARCHIVE as error:
        intake.skip(report, f"broken: {error}")
    if archive and report.skipped is not None:
        intake.add(report)


def read_hub(intake: Intake, spec: str) -> Iterator[Document]:
    """The documents of a hub id or a local dataset folder, `hf:NAME[:SPLIT]`."""
    report = FileReport(path=spec, encoding="utf-8", confidence=1.0, why="datasets")
    intake.add(report)
    name, _ = hub_split(spec)
    yield from _row_documents(intake, report, hub_rows(spec), PurePosixPath(name).name)


def hidden(name: str) -> bool:
    """Is a file or folder of this name nothing that a user put there to be read?"""
    return name.startswith(".") or name == "__MACOSX"


# ------------------------------------------------------------------------------------------------------ whole texts


def _read_text(intake: Intake, file: Input, report: FileReport) -> Iterator[Document]:
    html, lines = False, 0
    for number, (part, decoded) in enumerate(intake.decoded_parts(file.stream, report), 1):
        html = html or looks_like_html(decoded.text)
        text = html_to_text(decoded.text) if html else decoded.text
        origin = file.origin if number == 1 else f"{file.origin}#{number}"
        document = intake.document(report, text, source=file.name.stem, origin=origin, raw=part, line=lines)
        lines += text.count("\n")
        if document is not None:
            yield document
    if html:
        report.counts["html"] = 1
    if not report.documents and report.skipped is None:
        intake.skip(report, "nothing left after cleaning" if report.removed else "nothing but blanks")


def _read_epub(intake: Intake, file: Input, report: FileReport) -> Iterator[Document]:
    """One document; offsets in the report count over its members joined in reading order."""
    texts: list[str] = []
    members: list[bytes] = []
    with zipfile.ZipFile(file.stream) as archive:
        for name in epub_members(archive):
            if (refusal := _refusal(archive.getinfo(name))) is not None:
                raise BadEpub(f"{name} is {refusal}")
            data = archive.read(name)
            if (reason := binary_reason(data)) is not None:
                raise BadEpub(f"{name} is no text ({reason})")
            decoded = decode(data)
            account_for(report, decoded, sum(map(len, members)))
            members.append(data)
            texts.append(html_to_text(decoded.text))
    text = "\n\n".join(filter(None, texts))
    document = intake.document(report, text, source=file.name.stem, origin=file.origin, raw=b"".join(members))
    if document is None:
        intake.skip(report, "no text in it")
    else:
        yield document


def _read_zip(intake: Intake, file: Input, report: FileReport) -> Iterator[Document]:
    usable = 0
    with zipfile.ZipFile(file.stream) as archive:
        members = {_member_name(info): info for info in archive.infolist() if not info.is_dir()}
        for name in sorted(members):
            info, path = members[name], PurePosixPath(name)
            if path.suffix.lower() not in READERS or any(map(hidden, path.parts)):
                continue
            usable += 1
            origin = f"{file.origin}!/{name}"
            if (refusal := _refusal(info)) is not None:
                refused = FileReport(path=origin, n_bytes=info.file_size)
                intake.add(refused)
                intake.skip(refused, refusal)
                continue
            with archive.open(info) as stream:
                seekable = io.BytesIO(stream.read()) if path.suffix.lower() in (".epub", ".parquet") else stream
                yield from read_file(intake, Input(stream=seekable, name=path, origin=origin, n_bytes=info.file_size))
    if not usable:
        intake.skip(report, "no usable file in it")


def _member_name(info: zipfile.ZipInfo) -> str:
    """The name as it was meant: without the UTF-8 flag it is mostly GBK, which zipfile takes for cp437."""
    return info.filename if info.flag_bits & 0x800 else decode(info.filename.encode("cp437")).text


def _refusal(info: zipfile.ZipInfo) -> str | None:
    """Why a member is not even opened."""
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.filename.lower().endswith(".zip"):
        return "an archive in an archive; unpack it first"
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        return f"larger than any text: unpacks to {info.file_size // info.compress_size} times its size"
    return None


# -------------------------------------------------------------------------------------------------------------- rows


def _read_json(intake: Intake, file: Input, report: FileReport) -> Iterator[Document]:
    texts = (decoded.text for _, decoded in intake.decoded_parts(file.stream, report))
    yield from _row_documents(intake, report, json_rows(texts), file.name.stem)


def _read_lines(intake: Intake, file: Input, report: FileReport) -> Iterator[Document]:
    texts = (decoded.text for _, decoded in intake.decoded_parts(file.stream, report))
    yield from _row_documents(intake, report, text_rows(texts), file.name.stem)


def _read_parquet(intake: Intake, file: Input, report: FileReport) -> Iterator[Document]:
    try:
        rows = parquet_rows(file.stream)
    except BadParquet as error:
        return intake.skip(report, str(error))
    report.encoding, report.confidence, report.why = "utf-8", 1.0, "Parquet"
    yield from _row_documents(intake, report, rows, file.name.stem)


def _row_documents(intake: Intake, report: FileReport, rows: Rows, stem: str) -> Iterator[Document]:
    bad = 0
    for number, row in rows:
        problem = row_problem(row)
        document = None
        if problem is None:
            assert isinstance(row, Mapping)
            text, n_broken = LONE_SURROGATES.subn("\ufffd", row["text"])
            if n_broken:
                report.counts["lone surrogates"] = report.counts.get("lone surrogates", 0) + n_broken
            if looks_like_html(text):
                text = html_to_text(text)
                report.counts["html"] = report.counts.get("html", 0) + 1
            source, origin = row.get("source") or stem, f"{report.path}:{number}"
            document = intake.document(report, text, source=source, origin=origin, raw=text.encode(), row=number)
            problem = "nothing left after cleaning"
        if document is not None:
            yield document
            continue
        bad += 1
        if len(report.bad_rows) < KEPT_BAD_ROWS:
            report.bad_rows.append((number, str(problem)))
        report.counts["bad rows"] = bad
    if not report.documents and report.skipped is None:
        first = f" usable of {bad}; row {report.bad_rows[0][0]}: {report.bad_rows[0][1]}" if bad else "s"
        intake.skip(report, f"no row{first}")


READERS: dict[str, Callable[[Intake, Input, FileReport], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".epub": _read_epub,
    ".zip": _read_zip,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
