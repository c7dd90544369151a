"""A plot as matplotlib draws it: quiet axes, lines, marks, names. The same for the page and for a PNG; knows neither."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .colours import SURFACES, curve_colour, dash
from .figures import STRETCHES
from .panel import Line, Mark, Panel

WIDTH, HEIGHT = 460, 268  # of a plot on the page, in points, which are its pixels at full size
PLANE_HEIGHT = 360
MARGINS = (56, 12, 24, 10)  # left, right, below, above
NAME_SIZE = 10.5  # points
STEPS = [1, 2, 2.5, 5, 10]  # between ticks, times a power of ten
INK, QUIET, GRID, CARD, BAD = (SURFACES[name].light for name in ("ink", "quiet", "line", "card", "bad"))

MARKERS: dict[str, dict[str, Any]] = {
    "best": {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.8},
    "kept": {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.8},
    "spike": {"marker": "v", "markersize": 6},
    "broken": {"marker": "x", "markersize": 7, "markeredgewidth": 1.8},
}
WRONG = ("spike", "broken")


def draw(panel: Panel, margins: tuple[int, int, int, int] = MARGINS, *, extra: int = 0) -> tuple[Figure, Axes]:
    """The drawing itself. extra: points of height for what a PNG has beside it"""
    height = (PLANE_HEIGHT if panel.plane else HEIGHT) + extra
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    left, right, below, above = margins
    axes = figure.add_axes((left / WIDTH, below / height, 1 - (left + right) / WIDTH, 1 - (below + above) / height))
    _dress(axes, panel)
    for line in panel.lines:
        _draw(axes, line)
    if panel.limits is not None:
        axes.set_ylim(panel.limits)
    if panel.plane:
        _make_room(axes, panel)
    for axis in (axes.xaxis, axes.yaxis):
        _label(axis)
    several = len({line.colour for line in panel.lines}) > 1
    for mark in panel.marks:
        _mark(axes, mark, several=several)
    _name(axes, [mark for mark in panel.marks if mark.kind == "kept" and mark.text])
    return figure, axes


def _dress(axes: Axes, panel: Panel) -> None:
    """Quiet axes: a grid of y, no frame."""
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=GRID, linewidth=1)
    axes.grid(visible=True, axis="both" if panel.plane else "y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=QUIET, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=not panel.plane, steps=STEPS))
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.margins(x=0.02, y=0.1)
    if panel.plane:
        axes.axhline(0, color=QUIET, linewidth=0.9, zorder=1)
        axes.axvline(0, color=QUIET, linewidth=0.9, zorder=1)


def _label(axis: Axis) -> None:
    """Write the ticks that lie on an axis, all with the same number of digits behind the point."""
    low, high = sorted(axis.get_view_interval())
    ticks = [float(tick) for tick in axis.get_major_locator().tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(ticks, ticks_written(ticks, logarithmic=axis.get_scale() == "log"))


def ticks_written(ticks: Sequence[float], *, logarithmic: bool = False) -> list[str]:
    """1,000 or 0.05 or 2e-5, with a minus as long as a plus. On a logarithmic axis each has the digits it needs."""
    plain = [f"{tick:.6g}" for tick in ticks]
    if any("e-" in text for text in plain):  # 5e-5 among 0.0001: all in powers of ten
        return [re.sub(r"\.?0*e([+-])0?", r"e\1", f"{tick:.6e}").replace("e+0", "") for tick in ticks]
    if logarithmic:
        return plain
    digits = max((len(text.partition(".")[2]) for text in plain if "e" not in text), default=0)
    return [f"{tick + 0.0:,.{digits}f}".replace("-", "−") for tick in ticks]


def _draw(axes: Axes, line: Line) -> None:
    colour = curve_colour(line.colour)
    if line.look == "rings":
        axes.plot(line.x, line.y, linestyle="", marker="D", markersize=5, markerfacecolor=CARD, markeredgecolor=colour,
                  markeredgewidth=1.4, zorder=4)  # fmt: skip
        return
    if line.look == "frontier":
        axes.plot(line.x, line.y, color=QUIET, linewidth=1.2, dashes=(2, 2), zorder=1.8)
        return
    faint = line.look == "faint"
    shade = 1 if not faint else 0.32 if len(line.x) <= STRETCHES else 0.2
    axes.plot(
        line.x, line.y, color=colour, linewidth=0.9 if faint else 1.9, alpha=shade, zorder=2 if faint else 3,
        dashes=() if faint else dash(line.colour), solid_capstyle="round", solid_joinstyle="round",
        marker="o" if line.look == "dots" or len(line.x) == 1 else "", markersize=4,
    )  # fmt: skip


def _make_room(axes: Axes, panel: Panel) -> None:
    """A plane that holds its origin, with air for the names beside its ends."""
    xs = np.concatenate([[0.0], *(line.x for line in panel.lines)])
    ys = np.concatenate([[0.0], *(line.y for line in panel.lines)])
    width, height = np.ptp(xs) or 0.1, np.ptp(ys) or 0.1
    axes.set_xlim(xs.min() - 0.18 * width, xs.max() + 0.18 * width)
    axes.set_ylim(ys.min() - 0.1 * height, ys.max() + 0.14 * height)


def _mark(axes: Axes, mark: Mark, *, several: bool) -> None:
    """several: curves of several colours are drawn, so that what went wrong is marked in the colour of its own"""
    colour = curve_colour(mark.colour)
    wrong = colour if several else BAD
    if mark.kind in ("overfitting", "stage"):
        over = mark.kind == "overfitting"
        axes.axvline(mark.x, color=wrong if over else QUIET, linewidth=1.1, linestyle=(0, (4, 3)) if over else (0, (1, 2)), zorder=1.5)
        if mark.text:
            axes.annotate(mark.text, (mark.x, 1), xycoords=("data", "axes fraction"), xytext=(4, -3), textcoords="offset points", va="top",
                          color=QUIET, fontsize=9.5)  # fmt: skip
        return
    if mark.kind == "origin":
        axes.plot(0.0, 0.0, marker="o", markersize=5, color=QUIET, zorder=5)
        return
    low, high = axes.get_ylim()
    y = low if mark.y is None else min(max(mark.y, low), high)  # a spike may lie outside
    axes.plot([mark.x], [y], color=wrong if mark.kind in WRONG else colour, clip_on=False, zorder=5, **MARKERS[mark.kind])


def _name(axes: Axes, ends: Sequence[Mark]) -> None:
    """Write names beside the ends of paths, away from the path where there is room; one that would lie on another moves down."""
    taken: list[tuple[float, float, float]] = []
    edge = axes.transAxes.transform((0, 0))[0]  # left of it stand the ticks
    for mark in sorted(ends, key=lambda mark: (-(mark.y or 0.0), mark.x)):
        across, y = axes.transData.transform((mark.x, mark.y or 0.0))
        length = sum(1.0 if letter > "\u2e80" else 0.62 for letter in mark.text) * NAME_SIZE
        right, left = across + 11, across - 11 - length
        x = right if (mark.side > 0 or left < edge) and right + length <= WIDTH or left < edge else left
        x = min(max(x, edge), max(edge, WIDTH - length))
        while any(x < end and x + length > start and abs(y - other) < 1.2 * NAME_SIZE for start, end, other in taken):
            y -= 1.2 * NAME_SIZE
        taken.append((x, x + length, y))
        axes.annotate(mark.text, (x, y), xycoords="figure points", va="center", color=INK, fontsize=NAME_SIZE, zorder=6)
