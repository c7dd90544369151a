"""What `stylora branches` shows: a pane for each branch, side by side where there is room, that fill as tokens come; and the account.

    ╭─ 1 一、────────╮ ╭─ 2 二、────────╮        elsewhere than in a terminal each branch is a paragraph, written when it has stopped,
    │ 甲方应当……      │ │ 乙方……  ▍       │        in the order of the branches
    ╰──────── stop ─╯ ╰───────────────╯

Knows no models and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

NARROWEST = 28  # columns of a pane
TITLE = 40  # characters of a prompt in its title
LINES = 12  # of a pane while it fills: the last ones


class Piece(Protocol):
    """What is taken of a `Piece` of decoding."""

    @property
    def branch(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def stopped(self) -> str | None: ...


Take = Callable[[Piece], None]


@contextmanager
def panes(console: Console, titles: Sequence[str]) -> Iterator[Take]:
    """Panes that live: one for each title. In the end all of every branch is there."""
    texts, ends = ["" for _ in titles], ["" for _ in titles]
    whole = False

    def drawn() -> Columns:
        width = max(NARROWEST, console.width // max(1, min(len(titles), console.width // NARROWEST)) - 1)
        return Columns([_pane(n, *each, width, whole) for n, each in enumerate(zip(titles, texts, ends, strict=True), 1)])

    def take(piece: Piece) -> None:
        texts[piece.branch] += piece.text
        ends[piece.branch] = piece.stopped or ""

    with Live(get_renderable=drawn, console=console, refresh_per_second=8):
        yield take
        whole = True  # what leaving draws


def _pane(number: int, title: str, text: str, end: str, width: int, whole: bool) -> Panel:
    shown = text if whole else "\n".join(_last_lines(text, width - 4))
    body = Text(shown if end or whole else shown + "▍", overflow="fold", no_wrap=False)
    return Panel(
        body, title=Text(f"{number} {_short(title)}".strip()), title_align="left", subtitle=end, subtitle_align="right", width=width,
        border_style="dim" if end else "",
    )  # fmt: skip


def _last_lines(text: str, width: int) -> list[str]:
    """The end of a text, so that a pane keeps its height while it fills."""
    lines = text.split("\n")[-LINES:]
    return [*lines[:-1], lines[-1][-(LINES - len(lines) + 1) * max(1, width // 2) :]]


@contextmanager
def plain(write: Callable[[str], object], titles: Sequence[str]) -> Iterator[Take]:
    """Whole branches, one behind the other in their order, each once it and those before it have stopped."""
    texts, done = ["" for _ in titles], [False for _ in titles]
    following = 0

    def take(piece: Piece) -> None:
        nonlocal following
        texts[piece.branch] += piece.text
        done[piece.branch] = piece.stopped is not None
        while following < len(titles) and done[following]:
            write(f"[{following + 1}] {titles[following]}{texts[following]}\n")
            following += 1

    yield take


@contextmanager
def silent() -> Iterator[Take]:
    """Nothing."""
    yield lambda piece: None


def summary(told: Mapping[str, Any], console: Console) -> None:
    """Tokens, speed, and how much of the reading was shared."""
    lines = []
    if "rows" in told:
        there = f" ({told['there_already']:,} there already)" if told["there_already"] else ""
        lines.append(("rows", f"{told['rows']:,}{there}"))
    if "tokens" in told:
        lines.append(("branches", f"{told['branches']:,}, {told['visibility']}, {told['tokens']:,} tokens in {told['seconds']:,.1f} s: "
                      f"{told['tokens_per_second']:,.1f} tokens/s"))  # fmt: skip
        shared = f"{told['read']:,} tokens instead of {told['read_separately']:,}"
        apart = f"{told['read']:,} tokens, one branch after the other: this model's layers do not keep tokens of one row apart"
        lines.append(("read", apart if told["apart"] else f"{shared}: {told['shared']:.0%} shared"))
    if "output" in told:
        lines.append(("written", told["output"]))
    lines += [("warning", f"forced: {line}") for line in told["forced"]]
    for name, text in lines:
        console.print(f"{name:<10} {text}", markup=False, highlight=False, soft_wrap=True)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TITLE else line[: TITLE - 1] + "…"
