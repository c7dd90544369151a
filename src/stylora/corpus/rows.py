"""The rows of JSONL, of one JSON array, of Parquet, of a hub dataset and of plain text, one after the other, each with its number.

A row that cannot be parsed comes as a `BadRow` with the reason, and the rows after it still come where the format lets
them. `row_problem` says of any row why it is no text.

Knows no cleaning, no documents and no reports. pyarrow and datasets are imported by the first rows that need them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import IO

from stylora.errors import UserError

HUB = "hf:"
COLUMNS = ("text", "source")
BETWEEN_ELEMENTS = re.compile(r"[\s,]*")
LONGEST = 32 << 20  # characters; an array's element that has not ended by then is a broken one
Rows = Iterable[tuple[int, object]]  # (line or row number from 1, what was parsed there: an object, or a BadRow)


@dataclass(frozen=True)
class BadRow:
    """A row that could not even be parsed, and why."""

    reason: str


class BadParquet(ValueError):
    """A Parquet file without rows of text, and why, in one clause."""


def json_rows(texts: Iterator[str]) -> Rows:
    """The rows of JSONL or of one JSON array, parsed as its texts arrive: its first character tells which it is."""
    first = next(texts, "")
    while not first.strip() and (more := next(texts, "")):
        first += more
    return (_array_rows if first.lstrip().startswith("[") else _line_rows)(chain([first], texts))


def _line_rows(texts: Iterator[str]) -> Rows:
    return ((number, _parsed(line)) for number, line in _lines(texts))


def text_rows(texts: Iterator[str]) -> Rows:
    """The lines of a plain text, each a row of `text`; a line ends at LF, CRLF or CR, as in Python's text files."""
    with_lf = (text.replace("\r\n", "\n").replace("\r", "\n") for text in texts)
    return ((number, {"text": line}) for number, line in _lines(with_lf))


def _lines(texts: Iterator[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    number = 1
    for text in texts:
        lines = text.split("\n")  # not splitlines: U+2028 is legal inside a JSON string
        for i, line in enumerate(lines):
            if line.strip():
                yield number + i, line
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
            more = next(texts, None) if len(buffer) - at < LONGEST else None  # the element may end in the next part
            if more is None:
                yield line, BadRow(f"not valid JSON ({error}); the array was read up to here")
                return
            buffer, at = buffer[at:] + more, 0
            continue
        yield line, row
        line, at = line + buffer.count("\n", at, end), end


def parquet_rows(stream: IO[bytes]) -> Rows:
    """The rows of a Parquet file, only COLUMNS of them. Raises BadParquet where it is none, or has no `text`."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadParquet(f"broken Parquet ({error})") from None
    names = table.schema_arrow.names
    if "text" not in names:
        raise BadParquet(f"no `text` among its columns {', '.join(names)}")

    def rows() -> Rows:
        number = 1
        try:
            for batch in table.iter_batches(batch_size=64, columns=[name for name in names if name in COLUMNS]):
                yield from enumerate(batch.to_pylist(), number)
                number += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            yield number, BadRow(f"broken Parquet ({error}); the file was read up to here")

    return rows()


def hub_split(spec: str) -> tuple[str, str]:
    """(name, split) of `hf:NAME[:SPLIT]`: a hub id or a local dataset folder, and `train` where no split is named."""
    name, colon, split = spec.removeprefix(HUB).rpartition(":")
    if not colon or "/" in split or "\\" in split:  # the colon of a drive, or none
        return spec.removeprefix(HUB), "train"
    return name, split


def hub_rows(spec: str) -> Rows:
    """The rows of a dataset on the hub or in a folder, streamed. Raises UserError where it cannot be loaded."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, split = hub_split(spec)
    try:
        yield from enumerate(load_dataset(name, split=split, streaming=True), 1)
    except (OSError, ValueError, DatasetsError) as error:
        got = f"{type(error).__name__}: {error}"
        raise UserError(spec, got=got, expected="a dataset on the hub or in a folder, and a split it has") from None


def row_problem(row: object) -> str | None:
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
