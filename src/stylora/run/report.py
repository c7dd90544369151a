"""`stylora report` and `stylora compare`: put what the folders of runs hold into a page, plots and a table. Imports no torch."""

from __future__ import annotations

import locale
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from stylora import __version__
from stylora.errors import UserError
from stylora.report.page import page
from stylora.report.panels import panels
from stylora.report.plot import save_png
from stylora.report.stage import Stage
from stylora.report.table import as_json, sentences, table
from stylora.report.words import LANGUAGES

from .folder import write_text
from .reported import read, read_stages
from .runs import REPORT, find_run


def report(name: str, *, out: Path | None, png: Path | None, language: str, console: Console) -> dict[str, Any]:
    """One run with all its stages, or one stage. Writes the page and, where asked for, the plots; shows the table; what --json prints."""
    found = read(name)
    return _write(found.stages, out or found.folder / REPORT, png, title=found.title, language=language, console=console)


def compare(names: Sequence[str], *, out: Path | None, png: Path | None, language: str, console: Console) -> dict[str, Any]:
    """Several runs or stages beside each other. Raises UserError for fewer than two, and for one that is given twice."""
    runs = [find_run(name) for name in names]
    paths = [run.folder.path.resolve() for group in runs for run in group]
    if len(names) < 2:
        raise UserError("RUN", got="one", expected="two runs or more", do="`stylora report` shows one")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError("RUN", got=f"{twice} twice", expected="different runs")
    stages = read_stages(runs)
    title = " · ".join(dict.fromkeys(stage.run for stage in stages))
    return _write(stages, out or Path("compare.html"), png, title=title, language=language, console=console, compared=True)


def _write(
    stages: list[Stage], out: Path, png: Path | None, *, title: str, language: str, console: Console, compared: bool = False
) -> dict[str, Any]:  # fmt: skip
    """The page, the plots, the table."""
    if out.is_dir():
        raise UserError("--out", got=f"a folder, {out}", expected="a file", do=f"give {out / 'report.html'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page(stages, title=title, language=language, version=__version__, compared=compared))
    drawn = []
    for panel in panels(stages, compared=compared) if png is not None else []:
        assert png is not None
        png.mkdir(parents=True, exist_ok=True)
        drawn.append(png / f"{panel.key}.png")
        save_png(panel, drawn[-1], language)
    shown = table(stages, language, compared=compared)
    console.print(shown, width=None if console.is_terminal else 1000, crop=False)
    for said in sentences(stages, compared=compared):
        console.print(said.of(language), markup=False, highlight=False, soft_wrap=True)
    for stage in stages:
        for trouble in stage.troubles:
            console.print(trouble, style="yellow", markup=False, highlight=False, soft_wrap=True)
    for path in [out, *drawn]:
        console.print(f"wrote      {path}", markup=False, highlight=False, soft_wrap=True)
    return {"html": str(out), "png": [str(path) for path in drawn], **as_json(stages, compared=compared)}


def choose_language(asked: str) -> str:
    """`en` or `zh`; `auto` is what the system speaks. Raises UserError for another."""
    if asked in LANGUAGES:
        return asked
    if asked != "auto":
        raise UserError("--lang", got=repr(asked), expected="one of: auto, " + ", ".join(LANGUAGES))
    named = next((os.environ[key] for key in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(key)), None) or locale.getlocale()[0] or ""
    return "zh" if named.lower().startswith(("zh", "chinese")) else "en"
