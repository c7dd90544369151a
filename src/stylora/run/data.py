"""`stylora data`: what reading a corpus does to it, before anything is trained: every file, the split, the windows.

The same reading as in training, through the same cache, so what is shown is what will be read. Imports no torch and opens no model.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stylora.corpus.document import FileReport
from stylora.corpus.read import find_files
from stylora.corpus.rows import HUB
from stylora.errors import UserError
from stylora.model.tokenizer_file import context_length
from stylora.recipe.recipe import Recipe, load_recipe, parse_recipe
from stylora.samples.branch_data import BranchData
from stylora.samples.branch_rows import holds_branches
from stylora.samples.branch_summary import BranchSummary
from stylora.samples.chat_data import ChatData, ChatSummary
from stylora.samples.conversations import holds_conversations
from stylora.samples.jsonl_mix import Mix
from stylora.samples.settings import Data
from stylora.samples.store import Piece, report_row
from stylora.samples.text import PARTS, Summary

from .branch_scan import BranchScan, show_branches
from .chat import ChatScan, account_of_chat, show_chat
from .plan import open_tokenizer, read_data

ROWS = (".jsonl", ".json", ".parquet")
RECIPES = (".yaml", ".yml")
SHOWN = 20  # offsets or rows named for a file; `--json` has them all
PART_OF_FILE = re.compile(r"[#:]\d+$")  # of a piece's origin: the part of a large file, the row of a table


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One file as it was read. chapters: with a heading; tokens: of what is left of it"""

    report: FileReport
    characters: int
    chapters: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a stage's data is. base: whose tokenizer counted"""

    base: str
    data: Data
    files: list[FileRow]
    summary: Summary

    def as_json(self) -> dict[str, Any]:
        """Everything in it as JSON can carry it: also every undecoded byte with its offset, and every text that cleaning took out."""
        files = [
            {**report_row(row.report), "characters": row.characters, "chapters": row.chapters, "tokens": row.tokens} for row in self.files
        ]
        told = self.summary.as_json()
        del told["reports"]  # they are the files
        return {"base": self.base, "data": self.data.model_dump(mode="json"), "files": files, **told}


def scan_recipe(arguments: Sequence[str], base: str | None) -> Recipe:
    """The recipe of `data ARGUMENT...`: the first is a recipe and the others override it, or paths of text and overrides stand mixed.

    base: replaces the recipe's; None keeps it, `tiny` for paths
    """
    first = Path(arguments[0])
    replaced = [] if base is None else [f"base={base}"]
    if first.suffix.lower() in RECIPES:
        return load_recipe(first, [*replaced, *arguments[1:]])
    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    paths = [argument for argument in arguments if argument not in overrides]
    if not paths:
        raise UserError(arguments[0], got="only overrides", expected="files, folders or a recipe before them")
    train = paths if len(paths) > 1 else paths[0]
    data: dict[str, Any] = {"format": data_format(paths), "train": train}
    if data["format"] in ("novels", "text"):
        data["window"] = window_for(base or "tiny")
    return parse_recipe({"base": base or "tiny", "stages": [{"data": data}]}, overrides, name="data")


def data_format(paths: Sequence[str]) -> str:
    """`chat` where the first row is a conversation, `branches` where it has a `main`, else as `text_format` says.

    Raises UserError for a path without usable files.
    """
    files = find_files([path for path in paths if not path.startswith(HUB)])
    if files and holds_branches(files[0]):
        return "branches"
    return "chat" if files and holds_conversations(files[0]) else text_format(paths)


def text_format(paths: Sequence[str]) -> str:
    """`text` where every input is rows, else `novels`. Raises UserError for a path without usable files."""
    files = find_files([path for path in paths if not path.startswith(HUB)])
    return "text" if all(file.suffix.lower() in ROWS for file in files) else "novels"


def window_for(base: str) -> int:
    """`window` where nobody chose it: the section's default, or the base's context where that is shorter."""
    default = Data.model_fields["window"].default
    return min(default, context_length(base) or default)


def scan(recipe: Recipe, *, console: Console, cache: Path | None = None) -> Scan | ChatScan | BranchScan:
    """Read the recipe's data as training would. console: for the progress bar, which vanishes. Raises what reading raises."""
    with progress_bar(console) as progress:
        text = read_data(recipe, open_tokenizer(recipe.base), cache=cache, progress=progress)
    if isinstance(text, ChatData):
        return ChatScan(base=recipe.base, data=recipe.stages[0].data, summary=text.summary)
    if isinstance(text, BranchData):
        stage = recipe.stages[0]
        assert stage.branches is not None
        return BranchScan(base=recipe.base, data=stage.data, branches=stage.branches, summary=text.summary)
    files = file_rows(text.summary.reports, text.pieces)
    return Scan(base=recipe.base, data=recipe.stages[0].data, files=files, summary=text.summary)


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar over the bytes read, for inputs that take long."""
    columns = TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def file_rows(reports: Sequence[FileReport], pieces: Sequence[Piece]) -> list[FileRow]:
    """A row for each report, with what its pieces add up to."""
    paths = {report.path for report in reports}
    characters: Counter[str] = Counter()
    chapters: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for piece in pieces:
        path = piece.origin if piece.origin in paths else PART_OF_FILE.sub("", piece.origin)
        characters[path] += piece.characters
        chapters[path] += bool(piece.chapter)
        tokens[path] += piece.end - piece.start
    return [
        FileRow(report=report, characters=characters[report.path], chapters=chapters[report.path], tokens=tokens[report.path])
        for report in reports
    ]


# ---------------------------------------------------------------------------------------------------------- in the terminal


def show(found: Scan | ChatScan | BranchScan, console: Console, *, removed: bool = False) -> None:
    """The table of files, what is doubtful about them, and the account of the whole. removed: also what cleaning took out."""
    if isinstance(found, ChatScan):
        return show_chat(found, console)
    if isinstance(found, BranchScan):
        return show_branches(found, console)
    console.print(file_table(found.files))
    for row in found.files:
        for line in doubts(row.report):
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if removed:
        for row in found.files:
            for step, number, text in row.report.removed:
                console.print(f"{row.report.path}:{number}  {step}  {text}", markup=False, highlight=False, soft_wrap=True)
    for name, told in [*totals(found), *account(found.summary, found.data.window)]:
        console.print(f"{name:<10} {told}", markup=False, highlight=False, soft_wrap=True)


def file_table(rows: Sequence[FileRow]) -> Table:
    """One line a file, named from the folder on that all of them lie in."""
    folder = common_folder([row.report.path for row in rows])
    table = Table(box=None, header_style="bold", pad_edge=False, title=Text(f"in {folder}") if folder else None, title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("encoding", overflow="fold")
    for column in ("sure", "undecoded", "characters", "chapters"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("cleaned", overflow="fold")
    for row in rows:
        report = row.report
        if report.skipped is not None:
            reason = Text(f"skipped: {report.skipped}", style="yellow")
            table.add_row(Text(report.path[len(folder) :]), "", "", "", "", "", reason)
            continue
        bad = sum(len(run) for _, run in report.undecoded)
        cleaned = ", ".join(f"{count:,} {step.replace('_', ' ')}" for step, count in report.counts.items() if count)
        table.add_row(
            Text(report.path[len(folder) :]), report.encoding, f"{report.confidence:.0%}", f"{bad:,} bytes" if bad else "0",
            f"{row.characters:,}", f"{row.chapters:,}", cleaned or "nothing",
        )  # fmt: skip
    return table


def common_folder(paths: Sequence[str]) -> str:
    """The longest beginning of all paths that ends with a slash: `data/` of `data/a.txt` and `data/b/c.txt`."""
    head, slash, _ = os.path.commonprefix(list(paths)).rpartition("/")
    return head + slash


def doubts(report: FileReport) -> Iterator[str]:
    """What the user should look at in a file: why an encoding other than UTF-8, what was lost, which rows were passed over."""
    if report.skipped is None and report.encoding != "utf-8":
        yield f"{report.path}: {report.encoding}, {report.confidence:.0%} sure: {report.why}"
    if report.undecoded:
        named = ", ".join(f"{run.hex(' ')} at byte {offset:,}" for offset, run in report.undecoded[:SHOWN])
        yield f"{report.path}: not decoded, U+FFFD in the text: {named}{and_more(report.undecoded)}"
    if report.bad_rows:
        by_reason: dict[str, list[int]] = {}
        for row, reason in report.bad_rows:
            by_reason.setdefault(reason, []).append(row)
        for reason, numbers in list(by_reason.items())[:SHOWN]:
            named = ", ".join(map(str, numbers[:SHOWN])) + and_more(numbers)
            yield f"{report.path}: row{'s' * (len(numbers) > 1)} {named} passed over: {reason}"


def and_more(listed: Sequence[object]) -> str:
    """`, ... and 3 more` where only the first SHOWN are named."""
    return f", ... and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""


def totals(found: Scan) -> Iterator[tuple[str, str]]:
    """(name, figures) of all files together."""
    skipped = sum(row.report.skipped is not None for row in found.files)
    characters, tokens = sum(row.characters for row in found.files), sum(row.tokens for row in found.files)
    yield "files", f"{len(found.files):,}, {skipped:,} of them skipped"
    yield "text", f"{characters:,} characters, {tokens:,} tokens of {found.base} ({characters / max(1, tokens):.2f} characters a token)"


def account(summary: Summary | ChatSummary | BranchSummary, window: int) -> Iterator[tuple[str, str]]:
    """(name, figures) of the split and of an epoch, and the warnings. window: of text"""
    if isinstance(summary, ChatSummary):
        yield from account_of_chat(summary)
        return
    if isinstance(summary, BranchSummary):
        yield from summary.told()
        return
    for side in summary.sides:
        amount = f"{side.tokens:,} tokens in {side.windows:,} windows"
        if side.held and side.tokens:
            yield "held out", f"{side.style}: {named_books(side.books)}, {amount}"
        elif not side.held:
            name = "" if side.style == side.part else f"{side.style}: "
            yield side.part, f"{name}{amount} of {len(side.books):,} book{'s' * (len(side.books) != 1)}"
    yield "epoch", (
        f"{summary.epoch_windows:,} windows of at most {window} tokens, {summary.epoch_tokens:,} tokens, "
        f"{summary.general_share:.1%} of them general"
    )
    for part in PARTS:
        if part in summary.leak:
            yield "leak", f"{summary.leak[part]:.2%} of the held-out {part} text also stands in the training text"
    for warning in summary.warnings:
        yield "warning", warning


def named_books(books: Sequence[str]) -> str:
    """Titles as titles."""
    return "".join(f"《{book}》" for book in books[:SHOWN]) + and_more(books)


def show_mix(mix: Mix, console: Console) -> None:
    """What `data mix` wrote, and what it could not use."""
    for report in mix.reports:
        lines = [f"{report.path}: skipped: {report.skipped}"] if report.skipped is not None else doubts(report)
        for line in lines:
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"wrote {mix.output}: {mix.style_rows:,} rows of style and {mix.general_rows:,} general, "
        f"{mix.general_share:.2%} of the {mix.unit}", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    for warning in mix.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
