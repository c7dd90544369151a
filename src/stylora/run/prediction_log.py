"""`<output>.partial`: the outcomes of the rows so far, one JSON object a line behind a header, so that nothing is computed twice.

    {"stylora": "predict", "base": "tiny", "adapters": ["9f..."], "input": "3c...", "column": "车型", ...}
    {"prediction": "Transit Bus", "confidence": 0.9312, "known": true}
    {"prediction": "Moto                                    <- a kill cut it off: this line is dropped, and its row answered again

The header says what the outcomes depend on. Another header is refused: half a table of one model and half of another would be neither's.
`stylora data pairs` keeps its passages in the same way (`open_rows`, `append_rows`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stylora.errors import UserError

from .folder import write_text
from .prediction_files import Outcome

MARK = {"stylora": "predict"}
FINGERPRINTS = ("adapters", "task", "input", "text")  # told as changed: nobody reads a hash
FORCE = "give --force to begin anew"


def open_log(path: Path, header: Mapping[str, Any], *, force: bool) -> list[Outcome]:
    """The outcomes that lie there; see `open_rows`."""
    return [Outcome(**row) for row in open_rows(path, {**MARK, **header}, Outcome._fields, force=force)]


def append(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write them behind the others, out of this process' hands."""
    append_rows(path, (outcome._asdict() for outcome in outcomes))


def open_rows(path: Path, ours: Mapping[str, Any], keys: Collection[str], *, force: bool) -> list[dict[str, Any]]:
    """The rows that lie there; the file ends behind the last whole one from now on. Begins it where there is none.

    ours: the header, whose `stylora` names the command; keys: of every row
    force: begins it as well in place of a file that is none, or whose header differs; otherwise that raises UserError, but where no row is
    lost by it: a model that did not open leaves only a header. With the same header it goes on, so that an interrupted command with --force
    can be given again as it was.
    """
    if not path.exists() or (_first(path) != ours and (force or _begun(path, ours))):
        write_text(path, _line(ours))
        return []
    with path.open("rb+") as file:
        theirs = _object(file.readline())
        if theirs is None or theirs.get("stylora") != ours["stylora"]:
            raise UserError(str(path), got="a file that is no unfinished table", expected="none, or one of this command", do=FORCE)
        _check(path, theirs, ours)
        found: list[dict[str, Any]] = []
        end = file.tell()
        while (row := _object(file.readline())) is not None and set(row) == set(keys):
            found.append(row)
            end = file.tell()
        file.truncate(end)
    return found


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write them behind the others, out of this process' hands."""
    with path.open("a", encoding="utf-8", newline="") as file:
        file.writelines(map(_line, rows))


def check_output(source: Path, output: Path, partial: Path, suffixes: Sequence[str], force: bool) -> None:
    """May the output be written? Raises UserError for another kind of file, no folder, the input itself, and a file that is there, unless
    forced or gone on with."""
    if output.suffix.lower() not in suffixes:
        raise UserError("--output", got=str(output), expected="a file in " + " or ".join(suffixes))
    if output.is_dir() or not output.parent.is_dir():
        raise UserError("--output", got=str(output), expected="a file in a folder that is there")
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError("--output", got="the file of --input", expected="another one")
    if output.exists() and not partial.exists() and not force:
        raise UserError("--output", got=f"{output}, which is there already", expected="a new file", do="give --force to replace it")


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keep other processes from writing `output`. Raises UserError where one does."""
    lock = FileLock(output.with_name(output.name + ".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(str(output), got="a table that another process is writing", expected="one at a time") from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _first(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        return _object(file.readline())


def _begun(path: Path, ours: Mapping[str, Any]) -> bool:
    """Is it a header of this command, and no row?"""
    with path.open("rb") as file:
        theirs = _object(file.readline())
        return theirs is not None and theirs.get("stylora") == ours["stylora"] and _object(file.readline()) is None


def _object(line: bytes) -> dict[str, Any] | None:
    """A whole line; None for half of one, for no object and for none."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:  # what a power cut leaves
        return None
    return value if isinstance(value, dict) else None


def _check(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    if differing:
        told = [f"{key} changed" if key in FINGERPRINTS else f"{key} {_told(theirs.get(key))}, now {_told(ours[key])}" for key in differing]
        raise UserError(
            str(path), got="an unfinished table with other settings: " + "; ".join(told), expected="the same as now",
            do=f"give those it was begun with to go on, or {FORCE.removeprefix('give ')}",
        )  # fmt: skip


def _told(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
