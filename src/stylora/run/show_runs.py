"""What `stylora runs` prints: a line for each run, or all about one of them and the command that comes next. Reads nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .runs import Run

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def show_list(runs: Sequence[Run], console: Console) -> None:
    """One line a run. In a file or a pipe no cell is folded."""
    metrics = {run.metric for run in runs if run.metric}
    title = metrics.pop() if len(metrics) == 1 else ""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("steps", no_wrap=True, justify="right")
    table.add_column("base", overflow="fold")
    table.add_column(f"{title or 'eval'} (best)", no_wrap=not metrics)
    table.add_column("size", no_wrap=True, justify="right")
    table.add_column("when", no_wrap=True)
    if any(run.troubles for run in runs):
        table.add_column("trouble", overflow="fold", style="yellow")
    for run in runs:
        metric = "" if title or not run.metric else f"{run.metric.removeprefix('eval/')} "
        base = Path(run.recipe.base).name if run.recipe else "?"
        told = Text("; ".join(_inside(run, trouble) for trouble in run.troubles))
        cells: list[Text | str] = [Text(run.name), run.state, progress(run), Text(base), metric + change(run), size(run.bytes), when(run)]
        table.add_row(*cells, *[told] * (len(table.columns) > len(cells)))
    _print(table, console)


def _inside(run: Run, trouble: str) -> str:
    """The folder stands at the beginning of the line already."""
    return trouble.replace(str(run.folder.path) + os.sep, "")


def show(run: Run, console: Console) -> None:
    """The recipe in short, the evaluations, the checkpoints, and what to do next."""
    for name, told in headings(run):
        console.print(f"{name:<10} {told}", markup=False, highlight=False, soft_wrap=True)
    for trouble in run.troubles:
        console.print(f"trouble    {trouble}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if run.evaluations:
        console.print()
        _print(evaluation_table(run.evaluations), console)
    if run.checkpoints:
        console.print()
        table = Table("checkpoint", box=None, header_style="bold", pad_edge=False)
        table.add_column("size", justify="right")
        table.add_column("")
        for saved in run.checkpoints:
            table.add_row(f"checkpoint-{saved.step}", size(saved.bytes), ", ".join(saved.marks))
        _print(table, console)
    if (name_and_command := next_command(run)) is not None:
        console.print()
        console.print("{:<10} {}".format(*name_and_command), markup=False, highlight=False, soft_wrap=True)


def headings(run: Run) -> Iterator[tuple[str, str]]:
    """(name, what to say) of a run and of its recipe."""
    yield "run", f"{run.folder.path}: {run.state}, {progress(run)} steps, {size(run.bytes)}, {when(run)}"
    if run.recipe is None:
        return
    stage = run.recipe.stages[0]
    yield "base", run.recipe.base
    yield "data", given(stage.data)
    yield "objective", given(stage.objective, "kind")
    yield "adapter", given(stage.adapter, "r", "alpha", "targets")
    yield "train", given(stage.train)


def given(section: BaseModel, *always: str) -> str:
    """What a section sets otherwise than by default; always: keys that are named anyway."""
    named = section.model_dump(mode="json", include=set(always), exclude_none=True)
    values = named | section.model_dump(mode="json", exclude_defaults=True)
    lines = [yaml.safe_dump({key: value}, default_flow_style=True, allow_unicode=True, width=1 << 20) for key, value in values.items()]
    return ", ".join(line.strip()[1:-1] for line in lines) or "as by default"


def evaluation_table(evaluations: Sequence[dict[str, Any]]) -> Table:
    """A row for each evaluation, a column for each figure."""
    names = list(dict.fromkeys(key for row in evaluations for key in row))
    names.sort(key=lambda name: (name != "step", name != "loss"))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in evaluations:
        table.add_row(*[f"{row['step']:,}" if name == "step" else f"{row[name]:.4f}" if name in row else "" for name in names])
    return table


def next_command(run: Run) -> tuple[str, str] | None:
    """(what for, the command): to generate when it is done, to go on when it is not."""
    path, recipe = run.folder.path, run.recipe
    if recipe is None or run.state not in ("done", "unfinished", "empty"):
        return None
    if run.state == "done":
        prompt = recipe.stages[0].prompts[0] if recipe.stages[0].prompts else "剑光一闪"
        return "generate", shlex.join(["stylora", "generate", str(path), "--prompt", prompt])
    place = path.parent if run.folder.layout == "stages" else path
    return "go on", shlex.join(["stylora", "train", str(run.folder.recipe), f"output_dir={place}"])


def _print(table: Table, console: Console) -> None:
    console.print(table, width=None if console.is_terminal else 1000, crop=False)


def progress(run: Run) -> str:
    """`480`, or `120 of 480` where there is more to do."""
    return f"{run.step:,}" if run.steps in (None, run.step) else f"{run.step:,} of {run.steps:,}"


def change(run: Run) -> str:
    """first → last (best)"""
    return "{first:.3f} → {last:.3f} ({best:.3f})".format(**run.figures) if run.figures else ""


def size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB" if count >= MIB else f"{count / KIB:.0f} KiB"


def when(run: Run) -> str:
    """Day and time of the last change, without the year where it is this one."""
    then = datetime.fromtimestamp(run.when)
    return then.strftime("%m-%d %H:%M" if then.year == datetime.now().year else "%Y-%m-%d")
