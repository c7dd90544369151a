"""`<output>.partial`: the outcomes of the rows so far, one JSON object a line behind a header, so that nothing is computed twice.

    {"stylora": "predict", "base": "tiny", "adapters": ["9f..."], "input": "3c...", "column": "车型", ...}
    {"prediction": "Transit Bus", "confidence": 0.9312, "known": true}
    {"prediction": "Moto                                    <- a kill cut it off: this line is dropped, and its row answered again

The header says what the outcomes depend on. Another header is refused: half a table of one model and half of another would be neither's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stylora.errors import UserError

from .folder import write_text
from .prediction_files import Outcome

MARK = {"stylora": "predict"}
FINGERPRINTS = ("adapters", "task", "input")  # told as changed: nobody reads a hash
FORCE = "give --force to begin anew"


def open_log(path: Path, header: Mapping[str, Any], *, force: bool) -> list[Outcome]:
    """The outcomes that lie there; the file ends behind the last whole one from now on. Begins it where there is none.

    force: begins it as well in place of a file that is none, or whose header differs; otherwise that raises UserError. With the same header
    it goes on, so that an interrupted command with --force can be given again as it was.
    """
    ours = {**MARK, **header}
    if not path.exists() or (force and _first(path) != ours):
        write_text(path, _line(ours))
        return []
    with path.open("rb+") as file:
        theirs = _object(file.readline())
        if theirs is None or not MARK.items() <= theirs.items():
            raise UserError(str(path), got="a file that is no unfinished table", expected="none, or one of this command", do=FORCE)
        _check(path, theirs, ours)
        found: list[Outcome] = []
        end = file.tell()
        while (row := _object(file.readline())) is not None and set(row) == set(Outcome._fields):
            found.append(Outcome(**row))
            end = file.tell()
        file.truncate(end)
    return found


def append(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write them behind the others, out of this process' hands."""
    with path.open("a", encoding="utf-8", newline="") as file:
        file.writelines(_line(outcome._asdict()) for outcome in outcomes)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _first(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        return _object(file.readline())


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
