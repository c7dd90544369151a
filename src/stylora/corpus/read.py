"""Files and folders -> documents, one after the other, with a report on every file.

A text, an EPUB or a member of a ZIP is one document; a row of JSONL, of a JSON array, of Parquet or of a hub dataset is
one document with its own `source`. Everything goes decode -> HTML taken off -> `clean`. Never more than one part of one
file is in memory, so 1 GB of text needs far less than 1 GB: texts of more than PART bytes become several documents of
the same source.

A file that gives nothing is skipped with the reason; only a corpus that gives nothing at all is an error. Knows no
chapters, splits and tokens. pyarrow and datasets are imported by the first file that needs them.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import IO

from stylora.corpus.clean import Cleaning, SeenParagraphs, clean
from stylora.corpus.decode import Decoded, binary_reason, decode, line_end
from stylora.corpus.document import Document, FileReport
from stylora.corpus.html import BadEpub, epub_members, html_to_text, looks_like_html
from stylora.errors import UserError

PART = 16 << 20  # bytes of one text that are in memory at a time
HUB = "hf:"
READABLE = 0.7  # share of a part's bytes that must decode for it to be text
DOUBTFUL = 0.1  # confidence under which a reading is gibberish: less than a twentieth of it frequent characters
KEPT_BAD_ROWS = 1000
BOMB_BYTES, BOMB_RATIO = 100 << 20, 200  # a member both larger and denser than any text
BETWEEN_ELEMENTS = re.compile(r"[\s,]*")
BROKEN_ARCHIVE = (zipfile.BadZipFile, BadEpub, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
LONE_SURROGATES = re.compile("[\ud800-\udfff]+")  # JSON may escape them; no tokenizer takes them


@dataclass(frozen=True)
class BadRow:
    """A row that could not even be parsed, and why."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class _Input:
    """One opened file or archive member: `stem` is the default source, `origin` where messages say it lies."""

    stream: IO[bytes]
    suffix: str
    stem: str
    origin: str
    n_bytes: int


@dataclass
class _Reading:
    """One pass over a corpus: its settings, what cleaning remembers, and the account of it."""

    cleaning: Cleaning
    reports: list[FileReport] | None
    seen: SeenParagraphs = field(default_factory=SeenParagraphs)
    documents: int = 0
    skipped: list[str] = field(default_factory=list)

    def open_report(self, path: str, n_bytes: int) -> FileReport:
        report = FileReport(path=path, n_bytes=n_bytes)
        if self.reports is not None:
            self.reports.append(report)
        return report

    def skip(self, report: FileReport, reason: str) -> None:
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


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """The usable files among files and folders, each once; folders recursively, in the order of their names.

    Hidden files and folders are passed over unless named themselves. Raises UserError for a path that is missing or
    cannot be read, a file of another kind, and a folder without a usable file.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        try:
            files = sorted(_walk(path), key=lambda p: p.as_posix()) if path.is_dir() else [path]
            missing = not path.exists()
        except OSError as error:
            raise _unreadable(error.filename or path, error) from None
        if missing:
            raise UserError(str(path), got="nothing there", expected="a file or folder", do="check the path")
        usable = [file for file in files if file.suffix.lower() in READERS]
        if not usable:
            got = f"a folder of {len(files)} files, none usable" if path.is_dir() else f"a '{path.suffix}' file"
            raise UserError(str(path), got=got, expected="one of " + " ".join(READERS))
        for file in usable:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def read_documents(
    paths: Sequence[str | Path], cleaning: Cleaning, *, reports: list[FileReport] | None = None
) -> Iterator[Document]:
    """Read files, folders and hub datasets (`hf:owner/name[:split]`, `hf:folder`) into cleaned documents, streaming.

    paths: in this order; the same paths give the same documents in the same order
    reports: gets one report per file, archive member or dataset, filled while its documents are read
    Raises UserError at once for a bad path; while reading for a file that cannot be opened or a dataset that cannot be
    loaded; at the end where nothing at all was usable.
    """
    groups: list[str | list[Path]] = []
    known: set[Path] = set()
    for path in paths:
        if isinstance(path, str) and path.startswith(HUB):
            groups.append(path)
        else:
            files = [file for file in find_files([path]) if file.resolve() not in known]
            known.update(file.resolve() for file in files)
            groups.append(files)
    return _documents(groups, _Reading(cleaning, reports), ", ".join(map(str, paths)))


def _documents(groups: list[str | list[Path]], reading: _Reading, where: str) -> Iterator[Document]:
    for group in groups:
        if isinstance(group, str):
            yield from _read_hub(reading, group)
            continue
        for file in group:
            try:
                stream = file.open("rb")
            except OSError as error:
                raise _unreadable(file, error) from None
            with stream:
                size = os.fstat(stream.fileno()).st_size
                yield from _read(reading, _input(stream, file.name, file.as_posix(), size))
    if not reading.documents:
        shown = "; ".join(reading.skipped[:10])
        more = f"; and {len(reading.skipped) - 10} more" if len(reading.skipped) > 10 else ""
        raise UserError(where, got=f"no usable text ({shown}{more})", expected="at least one file with text")


def _unreadable(path: str | Path, error: OSError) -> UserError:
    got = error.strerror or str(error)
    return UserError(str(path), got=got, expected="a readable file or folder", do="check its permissions")


def _walk(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not _hidden(name)]
        yield from (Path(parent, name) for name in names if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _input(stream: IO[bytes], name: str, origin: str, n_bytes: int) -> _Input:
    path = PurePosixPath(name)
    return _Input(stream=stream, suffix=path.suffix.lower(), stem=path.stem, origin=origin, n_bytes=n_bytes)


def _read(reading: _Reading, file: _Input) -> Iterator[Document]:
    if file.suffix == ".zip":  # its members have reports of their own
        report = FileReport(path=file.origin, n_bytes=file.n_bytes)
    else:
        report = reading.open_report(file.origin, file.n_bytes)
    try:
        yield from READERS[file.suffix](reading, file, report)
    except BROKEN_ARCHIVE as error:
        reading.skip(report, f"broken: {error}")
    if report.skipped is not None and file.suffix == ".zip" and reading.reports is not None:
        reading.reports.append(report)


# ------------------------------------------------------------------------------------------------------ whole texts


def _read_text(reading: _Reading, file: _Input, report: FileReport) -> Iterator[Document]:
    html, lines = False, 0
    for number, (part, decoded) in enumerate(_decoded_parts(reading, file, report), 1):
        html = html or looks_like_html(decoded.text)
        text = html_to_text(decoded.text) if html else decoded.text
        origin = file.origin if number == 1 else f"{file.origin}#{number}"
        document = reading.document(report, text, source=file.stem, origin=origin, raw=part, line=lines)
        lines += text.count("\n")
        if document is not None:
            yield document
    if html:
        report.counts["html"] = 1
    if not report.documents and report.skipped is None:
        reading.skip(report, "nothing left after cleaning" if report.removed else "nothing but blanks")


def _decoded_parts(reading: _Reading, file: _Input, report: FileReport) -> Iterator[tuple[bytes, Decoded]]:
    """The parts of a text with their bytes, accounted for in the report; ends with a skip where they are no text."""
    offset = 0
    for part in _parts(file.stream):
        if offset == 0 and (reason := binary_reason(part)) is not None:
            reading.skip(report, f"binary ({reason})")
            return
        decoded = decode(part)
        n_bad = sum(len(run) for _, run in decoded.undecoded)
        if n_bad > (1 - READABLE) * len(part) or decoded.confidence < DOUBTFUL:
            rest = f"from byte {offset} on " if offset else ""
            best = f"{decoded.encoding} with confidence {decoded.confidence:.2f}, {n_bad} of {len(part)} bytes bad"
            reading.skip(report, f"{rest}in no known encoding (at best {best})")
            return
        _account(report, decoded, offset)
        offset += len(part)
        yield part, decoded
    if offset == 0:
        reading.skip(report, "empty")


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


def _account(report: FileReport, decoded: Decoded, offset: int) -> None:
    names = dict.fromkeys([*report.encoding.split("+"), *decoded.encoding.split("+")])
    if not report.encoding or decoded.confidence < report.confidence:  # of several parts, the most doubtful
        report.confidence, report.why = decoded.confidence, decoded.why
    report.encoding = "+".join(name for name in names if name)
    report.undecoded += [(offset + at, run) for at, run in decoded.undecoded]


def _read_epub(reading: _Reading, file: _Input, report: FileReport) -> Iterator[Document]:
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
            _account(report, decoded, sum(map(len, members)))
            members.append(data)
            texts.append(html_to_text(decoded.text))
    text = "\n\n".join(filter(None, texts))
    document = reading.document(report, text, source=file.stem, origin=file.origin, raw=b"".join(members))
    if document is None:
        reading.skip(report, "no text in it")
    else:
        yield document


def _read_zip(reading: _Reading, file: _Input, report: FileReport) -> Iterator[Document]:
    usable = 0
    with zipfile.ZipFile(file.stream) as archive:
        members = {_member_name(info): info for info in archive.infolist() if not info.is_dir()}
        for name in sorted(members):
            info, path = members[name], PurePosixPath(name)
            if path.suffix.lower() not in READERS or any(map(_hidden, path.parts)):
                continue
            usable += 1
            origin = f"{file.origin}!/{name}"
            if (refusal := _refusal(info)) is not None:
                reading.skip(reading.open_report(origin, info.file_size), refusal)
                continue
            with archive.open(info) as stream:
                seekable = io.BytesIO(stream.read()) if path.suffix.lower() in (".epub", ".parquet") else stream
                yield from _read(reading, _input(seekable, name, origin, info.file_size))
    if not usable:
        reading.skip(report, "no usable file in it")


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

Rows = Iterable[tuple[int, object]]  # (line or row number from 1, what was parsed there: an object, or a BadRow)


def _read_json(reading: _Reading, file: _Input, report: FileReport) -> Iterator[Document]:
    """JSONL or one JSON array, whatever the file is called: the first character tells."""
    texts = (decoded.text for _, decoded in _decoded_parts(reading, file, report))
    first = next(texts, "")
    while not first.strip() and (more := next(texts, "")):
        first += more
    rows = _array_rows if first.lstrip().startswith("[") else _line_rows
    yield from _row_documents(reading, report, rows(_chain(first, texts)), file.stem, file.origin)


def _chain(first: str, texts: Iterator[str]) -> Iterator[str]:
    yield first
    yield from texts


def _line_rows(texts: Iterator[str]) -> Rows:
    number = 1
    for text in texts:
        lines = text.split("\n")  # not splitlines: U+2028 is legal inside a JSON string
        for i, line in enumerate(lines):
            if line.strip():
                yield number + i, _parsed(line)
        number += len(lines) - 1


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return BadRow(f"not readable JSON ({error})")


def _array_rows(texts: Iterator[str]) -> Rows:
    """The elements of one JSON array, parsed as they arrive; nothing can be read after a broken one."""
    decoder, buffer, line = json.JSONDecoder(), next(texts), 1
    at = buffer.index("[") + 1
    line += buffer.count("\n", 0, at)
    while True:
        gap = BETWEEN_ELEMENTS.match(buffer, at)
        assert gap is not None, "the pattern matches nothing, too"
        line, at = line + gap[0].count("\n"), gap.end()
        if buffer.startswith("]", at):
            if (buffer[at + 1 :] + next(texts, "")).strip():
                yield line, BadRow("text after the end of the array was not read")
            return
        try:
            row, end = decoder.raw_decode(buffer, at)
        except (ValueError, RecursionError) as error:
            more = next(texts, None) if len(buffer) - at < 2 * PART else None  # the element may end in the next part
            if more is None:
                yield line, BadRow(f"not valid JSON ({error}); the array was read up to here")
                return
            buffer, at = buffer[at:] + more, 0
            continue
        yield line, row
        line, at = line + buffer.count("\n", at, end), end


def _read_parquet(reading: _Reading, file: _Input, report: FileReport) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    def rows(table: pyarrow.parquet.ParquetFile, columns: list[str]) -> Rows:
        number = 1
        try:
            for batch in table.iter_batches(batch_size=64, columns=columns):
                yield from enumerate(batch.to_pylist(), number)
                number += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            yield number, BadRow(f"broken Parquet ({error}); the file was read up to here")

    try:
        table = pyarrow.parquet.ParquetFile(file.stream)
    except (pyarrow.ArrowException, OSError) as error:
        return reading.skip(report, f"broken Parquet ({error})")
    columns = [name for name in table.schema_arrow.names if name in ("text", "source")]
    if "text" not in columns:
        return reading.skip(report, f"no `text` among its columns {', '.join(table.schema_arrow.names)}")
    report.encoding, report.confidence, report.why = "utf-8", 1.0, "Parquet"
    yield from _row_documents(reading, report, rows(table, columns), file.stem, file.origin)


def _read_hub(reading: _Reading, spec: str) -> Iterator[Document]:
    """A hub id or a local dataset folder, streamed; the split is the part after the last colon, else `train`."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, colon, split = spec.removeprefix(HUB).rpartition(":")
    if not colon or "/" in split or "\\" in split:  # the colon of a drive, or none
        name, split = spec.removeprefix(HUB), "train"
    report = reading.open_report(spec, 0)
    report.encoding, report.confidence, report.why = "utf-8", 1.0, "datasets"

    def rows() -> Rows:
        try:
            yield from enumerate(load_dataset(name, split=split, streaming=True), 1)
        except (OSError, ValueError, DatasetsError) as error:
            got = f"{type(error).__name__}: {error}"
            raise UserError(spec, got=got, expected="a dataset on the hub or in a folder, and a split it has") from None

    yield from _row_documents(reading, report, rows(), PurePosixPath(name).name, spec)


def _row_documents(reading: _Reading, report: FileReport, rows: Rows, stem: str, path: str) -> Iterator[Document]:
    bad = 0
    for number, row in rows:
        problem = _problem(row)
        document = None
        if problem is None:
            assert isinstance(row, Mapping)
            text, n_broken = LONE_SURROGATES.subn("\ufffd", row["text"])
            if n_broken:
                report.counts["lone surrogates"] = report.counts.get("lone surrogates", 0) + n_broken
            if looks_like_html(text):
                text = html_to_text(text)
                report.counts["html"] = report.counts.get("html", 0) + 1
            source, origin = row.get("source") or stem, f"{path}:{number}"
            document = reading.document(report, text, source=source, origin=origin, raw=text.encode(), row=number)
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
        reading.skip(report, f"no row{first}")


def _problem(row: object) -> str | None:
    """Why a row is no text, in one clause; None where it is one."""
    if isinstance(row, BadRow):
        return row.reason
    if not isinstance(row, Mapping):
        return f"{_kind(row)}, expected an object with `text`"
    if "text" not in row:
        return f"no `text` among its keys {', '.join(map(str, list(row)[:10]))}"
    if not isinstance(row["text"], str):
        return f"`text` is {_kind(row['text'])}, expected a string"
    if not row["text"].strip():
        return "`text` is empty"
    if not isinstance(row.get("source"), str | None):
        return f"`source` is {_kind(row['source'])}, expected a string"
    return None


def _kind(value: object) -> str:
    """What a value is called in JSON."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "an array" if isinstance(value, list) else "an object")


READERS: dict[str, Callable[[_Reading, _Input, FileReport], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".epub": _read_epub,
    ".zip": _read_zip,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
