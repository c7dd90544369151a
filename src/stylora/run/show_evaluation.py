"""What `stylora evaluate` prints: what is being measured, then tables of figures, warnings, and three continuations of each model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from .figures import label

SHOWN = 3  # samples of each model
WIDEST = 1000  # columns of a file or a pipe
CONTINUATIONS = {
    "style\nscore": "style_score", "function\nwords": "function_words", "base\nppl": "fluency", "dist-2": "distinct_2",
    "dist-4": "distinct_4", "rep-4": "repeated", "degen-\nerate": "degenerate", "stopped": "stopped", "length": "length",
    "copied": "copied", "longest\ncopy": "longest_copy",
}  # fmt: skip
TASK = {
    "rows": "rows", "exact": "exact", "accuracy": "accuracy", "macro_f1": "macro-F1", "json_valid": "valid\nJSON",
    "pair_precision": "pair\nprecision", "pair_recall": "pair\nrecall", "pair_f1": "pair\nF1",
}  # fmt: skip
CONFUSED = 5  # pairs of labels shown
SHARES = {"degenerate", "stopped", "copied"}


@contextmanager
def telling(console: Console, count: int) -> Iterator[Callable[[str], None]]:
    """Says which of `count` parts is being done: a bar in a terminal, a line each elsewhere."""
    if not console.is_terminal:
        yield lambda name: console.print(f"measure    {name}", markup=False, highlight=False, soft_wrap=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=count)
        begun = 0

        def tell(name: str) -> None:
            nonlocal begun
            bar.update(task, description=name, completed=begun)
            begun += 1

        yield tell


def show(result: dict[str, Any], console: Console) -> None:
    """Tables, what they mean, warnings, samples."""
    models = result["models"]
    several = len({entry["base"] for entry in models}) > 1
    if any(entry["held_out"] for entry in models):
        _print(loss_table(models, several), console)
    if any(entry["task"] for entry in models):
        _print(task_table(models, several), console)
        for line in confusions(models, several):
            console.print(line, style="dim", markup=False, highlight=False)
    if any(entry["generation"] for entry in models):
        _print(continuation_table(models, several), console)
        for line in account(result):
            console.print(line, style="dim", markup=False, highlight=False)
    for warning in result["warnings"]:
        console.print(f"warning    {warning}", style="yellow", markup=False, highlight=False)
    for entry in models:
        if entry["samples"]:
            console.print()
            console.print(Text(name(entry, several), style="bold"))
        for sample in entry["samples"][:SHOWN]:
            prompt, text = (sample[key].replace("\n", "↵") for key in ("prompt", "text"))
            console.print(Text.assemble("  ", (prompt, "bold"), text, "" if sample["stopped"] else ("…", "dim")))


def loss_table(models: Sequence[dict[str, Any]], several: bool) -> Table:
    """A row a model: perplexity of each held-out part, its change against the base, and KL."""
    parts = list(dict.fromkeys(part for entry in models for part in entry["held_out"]))
    table = _table("held-out text", [f"{part}\n{column}" for part in parts for column in ("ppl", "/char", "change", "KL")])
    for entry in models:
        cells = [cell for part in parts for cell in _loss_cells(entry, part)]
        table.add_row(Text(name(entry, several)), *cells)
    return table


def _loss_cells(entry: dict[str, Any], part: str) -> list[str]:
    held = entry["held_out"].get(part)
    if held is None:
        return [""] * 4
    change = "" if entry["adapter"] is None else f"{held['change']:+.3f}{_error(held['change_error'])}"
    kl = entry["kl_to_base"][part]
    return [f"{held['perplexity']:.2f}", f"{held['perplexity_per_character']:.2f}", change, "-" if kl is None else f"{kl:.3f}"]


def task_table(models: Sequence[dict[str, Any]], several: bool) -> Table:
    """A row a model and way of answering: as it writes, or held to labels or schema."""
    told = [(entry, way, found) for entry in models for way, found in (entry["task"] or {}).items()]
    own = dict.fromkeys(key for _, _, found in told for key, value in found.items() if isinstance(value, float) and key not in TASK)
    columns = [key for key in (*TASK, *own) if any(key in found for _, _, found in told)]
    table = _table("answers", [TASK.get(column, column) for column in columns])
    for entry, way, found in told:
        cells = [_cell(found[column], column) if column in found else "" for column in columns]
        table.add_row(Text(f"{name(entry, several)}, {way}"), *cells)
    return table


def _cell(value: float, name: str) -> str:
    return f"{value:,}" if name == "rows" else f"{value:.1%}" if name in TASK else _number(value)


def confusions(models: Sequence[dict[str, Any]], several: bool) -> Iterator[str]:
    """What the last model takes for what, most often first, below a line that names it; none where it takes nothing for anything else."""
    found = (models[-1]["task"] or {}).get("constrained", {}).get("sets", {})
    pairs = []
    for each in found.values():
        labels, matrix = each["confusion"]["labels"], each["confusion"]["matrix"]
        pairs += [(count, labels[i], labels[j]) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count]
    if pairs:
        yield f"confused by {name(models[-1], several)}, constrained:"
    for count, expected, got in sorted(pairs, key=lambda pair: -pair[0])[:CONFUSED]:
        yield f"{count:>6,} x {expected} taken for {got}"


def continuation_table(models: Sequence[dict[str, Any]], several: bool) -> Table:
    """A row a model: what its continuations are like, with the interval under a figure that has one.

    several: of several bases, whose perplexity compares per character only
    """
    columns = dict(CONTINUATIONS)
    if several:
        columns["base\nppl"] = "fluency_per_character"
    table = _table("continuations", [column + "/char" * (key == "fluency_per_character") for column, key in columns.items()])
    for entry in models:
        found = entry["generation"]
        table.add_row(Text(name(entry, several)), *[_figure(found[key], key) for key in columns.values()])
    return table


def account(result: dict[str, Any]) -> Iterator[str]:
    """How to read the tables."""
    settings, voice = result["settings"], result["voice"]
    sampling = settings["sampling"]
    yield (
        f"{len(settings['prompts'])} prompts x {settings['samples']}, up to {sampling['max_new_tokens']} tokens, temperature "
        f"{sampling['temperature']:g}, top-p {sampling['top_p']:g}, seed {sampling['seed']}; intervals of 95 % over prompts"
    )
    if voice is not None:
        words = result["models"][0]["generation"]["function_words"]
        yield (
            f"style score: {voice['accuracy']:.1%} of {voice['passages']:,} held-out passages told apart; function words: as much text "
            f"of the style itself has {_number(words['of_style'])}, of the general text {_number(words['of_general'])}"
        )


def name(entry: dict[str, Any], several: bool) -> str:
    """Of a model in one of its states; the base with its own name where there are several."""
    called = f"base {entry['base']}" if several and entry["adapter"] is None else entry["name"]
    return label(called, entry["checkpoint"], entry["weight"])


def _figure(value: Any, key: str) -> str:
    if isinstance(value, dict):
        bounds = "" if value["low"] is None else f"\n[dim]{_number(value['low'])}–{_number(value['high'])}[/dim]"
        return _number(value["mean"]) + bounds
    return f"{value:.1%}" if key in SHARES else _number(value)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 or isinstance(value, int) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _error(value: float | None) -> str:
    return "" if value is None else f"\n[dim]±{value:.3f}[/dim]"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print(table: Table, console: Console) -> None:
    """In a file or a pipe no cell is folded."""
    options = console.options if console.is_terminal else console.options.update(width=WIDEST)
    console.print(Segments(console.render(table, options)), soft_wrap=True, end="")
    console.print()
