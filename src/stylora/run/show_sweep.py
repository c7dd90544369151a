"""What `stylora sweep` prints: what is to be done for each point, or how they came out, the most style first. Reads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from stylora.report.words import part_name, score_name
from stylora.report.written import change, duration, of_loss, scored

CONTINUATIONS = {"style_score": "style score", "fluency": "base ppl", "distinct_2": "dist-2", "degenerate": "degen."}
"""key of `generation` in evaluation.json -> its column, as `stylora evaluate` calls it"""
SHARES = ("degenerate",)
WIDEST = 1000  # columns of a file or a pipe


def show_plan(plan: Mapping[str, Any], console: Console) -> None:
    """A line a point, a column a stage."""
    names = list(plan["points"][0]["stages"])
    table = _table(["point", *names])
    for point in plan["points"]:
        table.add_row(Text(point["name"]), *[Text(state) for state in point["stages"].values()])
    _print(table, console)


def show(result: Mapping[str, Any], console: Console) -> None:
    """A line a point, those that no other one beats with a star, and why the others stopped."""
    points = result["points"]
    parts = list(dict.fromkeys(part for point in points for part, found in point["parts"].items() if "change" in found))
    measured = [key for key in CONTINUATIONS if any(key in (point["evaluation"] or {}) for point in points)]
    scores = list(dict.fromkeys(name for point in points for name in point["scores"]))
    named = [*[part_name(part).en for part in parts], *[score_name(name).en for name in scores]]
    table = _table(["", "point", *named, "time", *[CONTINUATIONS[key] for key in measured]])
    if measured and result["base"] is not None:
        table.add_row("", "base", *[""] * (len(named) + 1), *[_continued(result["base"][key], key) for key in measured])
    for point in ordered(points):
        cells = [_held_out(point["parts"].get(part, {})) for part in parts]
        cells += [Text(scored(**point["scores"].get(name, {"before": None, "after": None}))) for name in scores]
        time = duration(point["seconds"]) if point["seconds"] is not None else ""
        written = [_continued(point["evaluation"][key], key) if point["evaluation"] else "" for key in measured]
        if point["state"] == "done":
            table.add_row("*" if point["frontier"] else "", Text(point["name"]), *cells, time, *written)
    if table.row_count:
        console.print()
        _print(table, console)
    if any(point["frontier"] for point in points):
        console.print("* no other point has more style and less forgetting; perplexity of held-out text, base → point", style="dim",
                      highlight=False, soft_wrap=True)  # fmt: skip
    for point in points:
        if point["state"] == "stopped":
            console.print(f"stopped    {point['name']}: {point['reason']}", style="yellow", markup=False, highlight=False,
                          soft_wrap=True)  # fmt: skip


def ordered(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The most style gained first; of other data the best by its first part. Points without figures come last, as they were given."""

    def rank(point: Mapping[str, Any]) -> float:
        changes = {part: found["change"] for part, found in point["parts"].items() if "change" in found}
        return changes.get("style", next(iter(changes.values()), float("inf")))

    return sorted(points, key=rank)


def _held_out(found: Mapping[str, Any]) -> Text:
    if "change" not in found:
        return Text("–")
    certain = found["change_error"] is not None and abs(found["change"]) > 1.96 * found["change_error"]
    colour = "" if not certain else "green" if found["change"] < 0 else "red"
    return Text(f"{of_loss(found['before'])} → {of_loss(found['after'])} ").append(change(found["perplexity_change"]), style=colour)


def _continued(value: Any, key: str) -> str:
    figure = value["mean"] if isinstance(value, dict) else value
    return "-" if figure is None else f"{figure:.1%}" if key in SHARES else f"{figure:.2f}"


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="left" if column in ("", "point") else "right")
    return table


def _print(table: Table, console: Console) -> None:
    options = console.options if console.is_terminal else console.options.update(width=WIDEST)
    console.print(Segments(console.render(table, options)), soft_wrap=True, end="")
