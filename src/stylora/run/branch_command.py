"""The options of `stylora branches`: one trunk shown as it is decoded, or a file of rows. Decodes nothing itself."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from stylora.errors import UserError

from . import show_branches
from .branch_questions import Asked, from_options
from .branch_table import branch_table
from .branches import Asking, Ready, branches, words


def one_trunk(
    model: str, main: str | None, prompts: list[str], count: int | None, asking: Asking, *, chat: bool, plain: bool, as_json: bool,
    console: Console,
) -> dict[str, Any]:  # fmt: skip
    """Decode and show the branches of `main`: panes in a terminal, else a line a branch on stdout; nothing with `as_json`."""
    if main is None:
        raise UserError("--main", got="none", expected="what the branches have in common, or --input with a file of rows")

    def show(ready: Ready, asked: Asked) -> AbstractContextManager[show_branches.Take]:
        titles = [words(opening) for opening in asked.openings]
        if as_json:
            return show_branches.silent()
        if console.is_terminal and not plain:
            return show_branches.panes(console, titles)
        return show_branches.plain(sys.stdout.write, titles)

    return branches(model, from_options(main, prompts, count, chat=chat), asking, show)


def file_of_rows(
    model: str, source: Path, output: Path | None, asking: Asking, console: Console, given: dict[str, bool]
) -> dict[str, Any]:
    """Decode every row of a file. given: options of a single trunk, and whether they were given, which is refused"""
    idle = next((flag for flag, there in given.items() if there), None)
    if idle is not None:
        raise UserError(idle, got="that and --input", expected="one of them", do="say it in the rows")
    if output is None:
        raise UserError("--output", got="none", expected="the .jsonl to write")
    return branch_table(model, source, output, asking=asking, console=console)
