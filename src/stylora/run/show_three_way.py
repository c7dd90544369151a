"""What `stylora evaluate --three-way` prints: a table with a row for each variant, how to read it, and answers beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

SHOWN = 3  # questions whose answers are shown
LONGEST = 160  # characters of an answer that are shown
WIDEST = 1000  # columns of a file or a pipe
SHARES = {"follows": "follows", "stops": "stops", "in style": "style_score", "of style's\ngain": "style_kept"}
COUNTS = {"dist-2": "distinct_2", "dist-4": "distinct_4", "rep-4": "repeated", "degen-\nerate": "degenerate", "length": "length"}


def show(result: dict[str, Any], console: Console) -> None:
    """The table, what it means, warnings, samples."""
    table = figures_table(result)
    options = console.options if console.is_terminal else console.options.update(width=WIDEST)
    console.print(Segments(console.render(table, options)), soft_wrap=True, end="")
    console.print()
    for line in account(result):
        console.print(line, style="dim", markup=False, highlight=False)
    for warning in result["warnings"]:
        console.print(f"warning    {warning}", style="yellow", markup=False, highlight=False)
    width = max(len(each["name"]) for each in result["variants"])
    for number, told in enumerate(result["variants"][0]["answers"][:SHOWN]):
        console.print()
        console.print(Text(told["question"].replace("\n", "↵"), style="bold"))
        for each in result["variants"]:
            console.print(Text.assemble(f"  {each['name']:<{width}}  ", *_shown(each["answers"][number])))


def figures_table(result: dict[str, Any]) -> Table:
    """A row a variant; figures that no variant has are left out."""
    entries = result["variants"]
    columns: dict[str, list[str]] = {}
    for title, key in SHARES.items():
        columns[title] = [_share(each[key]) for each in entries]
    columns["answer\nppl"] = ["" if each["held_out"] is None else _perplexity(each["held_out"]) for each in entries]
    for title, key in COUNTS.items():
        columns[title] = [_number(each[key], percent=key == "degenerate") for each in entries]
    told = {title: cells for title, cells in columns.items() if any(cells)}
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("variant", overflow="fold")
    for title in told:
        table.add_column(title, justify="right", no_wrap=True)
    for number, each in enumerate(entries):
        table.add_row(Text(each["name"]), *[cells[number] for cells in told.values()])
    return table


def account(result: dict[str, Any]) -> Iterator[str]:
    """How to read the table."""
    settings, voice = result["settings"], result["voice"]
    sampling, shape = settings["sampling"], settings["shape"]
    yield (
        f"{settings['questions']} questions, {settings['source']}; up to {sampling['max_new_tokens']} tokens, temperature "
        f"{sampling['temperature']:g}, top-p {sampling['top_p']:g}, seed {sampling['seed']}; intervals of 95 % over questions"
    )
    if shape is not None:
        endings = "" if shape["endings"] is None else f", ending with one of {' '.join(shape['endings'])}"
        lines = "one line" if shape["lines"] == 1 else f"at most {shape['lines']} lines"
        yield (
            f"follows: {lines}, {shape['shortest']} to {shape['longest']} characters{endings}, nothing of the template, stopped by itself: "
            "the form of the training answers"
        )
    if voice is not None:
        yield (
            f"in style: answers cut to {settings['typical']} characters, for one that runs on is not more in style; the classifier puts "
            f"{voice['accuracy']:.1%} of {voice['passages']:,} held-out passages of the stage {settings['style']} on their side"
        )


def _shown(answer: Mapping[str, Any]) -> list[Any]:
    """An answer and, dimmed, what sets it apart."""
    text = answer["text"].replace("\n", "↵")
    cut = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    why = answer["breach"] or ("" if answer["stopped"] else "ran on")
    return [cut or "(nothing)", (f"  [{why}]" if why else "", "dim")]


def _share(value: Mapping[str, float | None] | None) -> str:
    if value is None or value["mean"] is None:
        return ""
    return f"{value['mean']:.0%}" + _bounds(value, "{:.0%}")


def _perplexity(held: Mapping[str, Any]) -> str:
    return _number(held["perplexity"]["mean"]) + _bounds(held["perplexity"], "{:.1f}")


def _bounds(value: Mapping[str, float | None], form: str) -> str:
    if value["low"] is None or value["high"] is None:
        return ""
    return f"\n[dim]{form.format(value['low'])}–{form.format(value['high'])}[/dim]"


def _number(value: float | None, *, percent: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if percent else f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
