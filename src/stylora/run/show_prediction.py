"""What `stylora predict` shows: how many rows are done, and at the end how many are known and what they are.

A bar in a terminal, a line now and then elsewhere. Knows no models and no files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

COUNTS = {"empty": "empty", "unanswered": "that could not be asked", "there_already": "there already"}
SHOWN = 10  # rows that were refused
WIDEST = 60  # characters of an answer
QUIET = 10.0  # seconds between two lines of progress where there is no terminal


class _Speed(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.1f} rows/s")


@contextmanager
def progress(console: Console, rows: int, there: int) -> Iterator[Callable[[int], None]]:
    """Tells how many rows are done: a bar in a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        started = told = time.perf_counter()

        def line(done: int) -> None:
            nonlocal told
            if time.perf_counter() - told > QUIET:
                told = time.perf_counter()
                console.print(f"row {done:,}/{rows:,}  {(done - there) / (told - started):,.1f} rows/s", highlight=False)

        yield line
        return
    columns = (TextColumn("rows"), MofNCompleteColumn(), BarColumn(), _Speed(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("rows", total=rows, completed=there)
        yield lambda done: bar.update(task, completed=done)


def show(summary: dict[str, Any], console: Console) -> None:
    """Rows, speed, confidence, and a table of the most frequent answers."""
    parts = [f"{summary['different']:,} different inputs, each answered once"]
    parts += [f"{summary[key]:,} {name}" for key, name in COUNTS.items() if summary[key]]
    lines = [("rows", f"{summary['rows']:,} ({', '.join(parts)})")]
    if summary["rows_per_second"] is not None:
        lines.append(("speed", f"{summary['rows_per_second']:,.1f} rows/s"))
    if summary["known"] is not None:
        lines += [("known", f"{summary['known']:.1%}"), ("confidence", f"{summary['confidence']:.3f} in the mean")]
    if summary["undecoded"]:
        lines.append(("warning", f"bytes that are no text stand as U+FFFD, in {summary['undecoded']:,} places"))
    lines += [("refused", f"row {entry['row']:,}: {entry['reason']}") for entry in summary["refused"][:SHOWN]]
    for name, told in [*lines, ("written", summary["output"])]:
        console.print(f"{name:<10} {told}", markup=False, highlight=False, soft_wrap=True)
    if summary["answers"]:
        printed = Table("answer", box=None, header_style="bold", pad_edge=False)
        for column in ("rows", "share"):
            printed.add_column(column, justify="right", no_wrap=True)
        for entry in summary["answers"]:
            answer = " ".join(entry["prediction"].split())
            shown = answer if len(answer) <= WIDEST else answer[: WIDEST - 1] + "…"
            printed.add_row(Text(shown), f"{entry['rows']:,}", f"{entry['share']:.1%}")
        console.print(printed)
