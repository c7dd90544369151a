"""`stylora data make`: the files of a task's data in a folder, and the account of what stands in them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stylora.errors import UserError, did_you_mean

from .columns import column_rows
from .parts import FILES, Row
from .unified import unified_rows

TASKS: dict[str, Callable[[int], dict[str, list[Row]]]] = {"unified": unified_rows, "columns": column_rows}


@dataclass(frozen=True, kw_only=True)
class FileAccount:
    """rows: in it; groups: different ones; classes: answers by label, or columns by the field they mean"""

    rows: int
    groups: int
    classes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was written: files by path."""

    task: str
    seed: int
    files: dict[str, FileAccount]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make(task: str, folder: Path, *, seed: int = 0, force: bool = False) -> Made:
    """Write a task's four files. The same bytes for the same seed, on every platform.

    force: replace files that are there. Raises UserError for an unknown task, and for such files without it.
    """
    if task not in TASKS:
        raise UserError("TASK", got=repr(task), expected="a task that data can be made for", do=did_you_mean(task, TASKS))
    paths = {name: folder / f"{name}.jsonl" for name in FILES}
    there = [path for path in paths.values() if path.exists()]
    if there and not force:
        raise UserError(str(there[0]), got="a file that is there already", expected="a new folder", do="give another, or --force")
    if folder.exists() and not folder.is_dir():
        raise UserError(str(folder), got="a file", expected="a folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = TASKS[task](seed)
    for name, rows in files.items():
        write_rows(paths[name], rows)
    return Made(task=task, seed=seed, files={paths[name].as_posix(): account(rows) for name, rows in files.items()})


def write_rows(path: Path, rows: list[Row]) -> None:
    """JSONL, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(temporary, path)


def account(rows: list[Row]) -> FileAccount:
    """Classes in alphabetical order."""
    classes: Counter[str] = Counter()
    for row in rows:
        answer = row["messages"][-1]["content"]
        classes.update(json.loads(answer).values() if answer.startswith("{") else [answer])
    return FileAccount(rows=len(rows), groups=len({row["group"] for row in rows}), classes=dict(sorted(classes.items())))


def show(made: Made, console: Console) -> None:
    """A line a file."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("file", overflow="fold")
    for column in ("rows", "groups", "classes", "fewest", "most"):
        table.add_column(column, justify="right", no_wrap=True)
    for path, found in made.files.items():
        counts = found.classes.values()
        table.add_row(path, *(f"{n:,}" for n in (found.rows, found.groups, len(counts), min(counts), max(counts))))
    console.print(table)
