"""Tables that `stylora predict` reads and writes: rows of CSV, TSV, JSONL, a JSON array or Parquet, in the encodings that novels may have.

    in     id,车型          out    id,车型,prediction,confidence,known
           7,公交                  7,公交,Transit Bus,0.9312,true
           8,                      8,,,,false

Nothing is guessed where it would cost data: a row of another length than the header, a quote without its end, a line that is no JSON are
refused with their line. Knows no models.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from stylora.corpus.clean import Cleaning
from stylora.corpus.document import FileReport
from stylora.corpus.formats import LONE_SURROGATES
from stylora.corpus.intake import Intake
from stylora.corpus.rows import BadRow, json_rows
from stylora.errors import UserError, did_you_mean

Row = dict[str, Any]
DELIMITERS = ",;\t"
BROKEN = "\ufffd"


class Outcome(NamedTuple):
    """What is told of a row; prediction and confidence (0..1, 4 decimals) are None where its cell is empty."""

    prediction: str | None
    confidence: float | None
    known: bool


NOTHING = Outcome(None, None, False)


@dataclass(frozen=True, kw_only=True)
class Table:
    """N rows.

    columns: every field of any row, in order; rows: [N] fields by name; texts: [N], what the column has, "" where that is blank
    undecoded: how many runs of bytes were no text; each stands as U+FFFD
    """

    columns: list[str]
    rows: list[Row]
    texts: list[str]
    undecoded: int = 0


def read_table(path: Path, column: str, *, limit: int | None = None) -> Table:
    """A file's first `limit` rows. column: a field, or a dotted path through JSON objects, as in `request.text`

    Raises UserError for a file of another kind, one that cannot be read whole, or that has no such column.
    """
    read = READERS.get(path.suffix.lower())
    if path.is_dir() or read is None:
        got = "a folder" if path.is_dir() else f"a file ending in {path.suffix or 'nothing'}"
        raise UserError(str(path), got=got, expected="a table in " + ", ".join(READERS))
    if not path.is_file():
        raise UserError(str(path), got="no such file", expected="a table in " + ", ".join(READERS))
    report = FileReport(path=path.as_posix())
    columns, rows = read(path, report)
    if not rows:
        raise UserError(str(path), got="no rows", expected="a table with at least one")
    texts = _column(path, rows, columns, column)
    taken = [name for name in Outcome._fields if name in columns]
    if taken:
        raise UserError(str(path), got=f"a column `{taken[0]}`", expected="that name free for what is written", do="rename the column")
    return Table(columns=columns, rows=rows[:limit], texts=texts[:limit], undecoded=len(report.undecoded))


def write_table(path: Path, table: Table, outcomes: Sequence[Outcome]) -> None:
    """Every row with its outcome behind its own fields, as CSV or JSONL by the suffix; whole or not at all."""
    pairs = zip(table.rows, outcomes, strict=True)
    with _whole(path) as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(_json({**row, **outcome._asdict()}) + "\n" for row, outcome in pairs)
            return
        writer = csv.writer(file)
        writer.writerow([*table.columns, *Outcome._fields])
        for row, (prediction, confidence, known) in pairs:
            told = (prediction, None if confidence is None else f"{confidence:.4f}", known)
            writer.writerow(map(_cell, (*(row.get(name) for name in table.columns), *told)))


# ---------------------------------------------------------------------------------------------------------- reading


def _read_csv(path: Path, report: FileReport) -> tuple[list[str], list[Row]]:
    text = _text(path, report)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a cell may be a chapter
    records = _records(path, text, "\t" if path.suffix.lower() == ".tsv" else _delimiter(text))
    _, columns = next((each for each in records if each[1]), (0, []))
    twice = next((name for i, name in enumerate(columns) if name in columns[:i]), None)
    if twice is not None:
        raise UserError(f"{path}:1", got=f"two columns named '{twice}'", expected="a name of its own for each")
    rows = []
    for line, record in _without_blank(records, len(columns)):
        if len(record) != len(columns):
            got = f"{len(record)} fields in a row that ends here"
            raise UserError(f"{path}:{line}", got=got, expected=f"{len(columns)}, as the header has", do="put fields with commas in quotes")
        rows.append(dict(zip(columns, record, strict=True)))
    return columns, rows


def _delimiter(text: str) -> str:
    """The one that parts the header into most names; a comma where none does."""
    return max(DELIMITERS, key=lambda each: len(next(csv.reader(io.StringIO(text, newline=""), delimiter=each), [])))


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line it ends on, fields) of each; a blank line has none."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        yield from ((reader.line_num, record) for record in reader)
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        raise UserError(where, got=f"broken CSV ({error})", expected="a quote that opens a field to close it") from None


def _without_blank(records: Iterator[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, list[str]]]:
    """Without blank lines. In a table of one column they are blank cells, which csv writes so, but for those that the file ends with."""
    blank: list[int] = []
    for line, record in records:
        if not record:
            blank.append(line)
            continue
        if width == 1:
            yield from ((before, [""]) for before in blank)
        blank.clear()
        yield line, record


def _read_json(path: Path, report: FileReport) -> tuple[list[str], list[Row]]:
    rows = []
    for number, row in json_rows(iter([_text(path, report)])):
        if not isinstance(row, dict):
            got = row.reason if isinstance(row, BadRow) else _json(row)[:40]
            raise UserError(f"{path}:{number}", got=got, expected="a JSON object for each row")
        rows.append(row)
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _read_parquet(path: Path, report: FileReport) -> tuple[list[str], list[Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        raise UserError(str(path), got=f"broken Parquet ({error})", expected="a Parquet file") from None
    return table.column_names, table.to_pylist()


READERS: dict[str, Callable[[Path, FileReport], tuple[list[str], list[Row]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _text(path: Path, report: FileReport) -> str:
    with path.open("rb") as stream:
        text = "".join(decoded.text for _, decoded in Intake(Cleaning(), None).decoded_parts(stream, report))
    if report.skipped is not None:
        raise UserError(str(path), got=report.skipped, expected="a table in " + ", ".join(READERS))
    return text


def _column(path: Path, rows: Sequence[Row], columns: Sequence[str], name: str) -> list[str]:
    """The column's text in every row."""
    values = [_value(row, name) for row in rows]
    if name not in columns and not any(values):
        known = dict.fromkeys([*columns, *(dotted for row in rows for dotted in _paths(row))])
        raise UserError("--column", got=f"'{name}'", expected=f"a column of {path}", do=did_you_mean(name, known))
    texts = [LONE_SURROGATES.sub(BROKEN, _cell(value[0])) if value else "" for value in values]
    return [text if text.strip() else "" for text in texts]


def _value(row: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """(the value,) of the field of that name, or at the end of that path; () where there is none."""
    if name in row:
        return (row[name],)
    here: Any = row
    for key in name.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return ()
        here = here[key]
    return (here,)


def _paths(row: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The dotted paths to what is no object."""
    for key, value in row.items():
        yield from _paths(value, f"{above}{key}.") if isinstance(value, Mapping) else [f"{above}{key}"]


# ---------------------------------------------------------------------------------------------------------- writing


@contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A text file that takes its place when all is written; line ends are written as they are given."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def _cell(value: Any) -> str:
    """A value as a cell has it: texts as they are, nothing for null, all else as in JSON."""
    return "" if value is None else LONE_SURROGATES.sub(BROKEN, value) if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    """On one line. Dates and decimals, which Parquet has, become texts; halves of a character, which UTF-8 has not, stay escaped."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return json.dumps(value, default=str) if LONE_SURROGATES.search(text) else text
