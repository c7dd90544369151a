"""The curves: what was logged at every step, and what was measured on held-out text.

Stages that go on from one another stand one after the other on a common axis of steps; others all begin at 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .figures import STRETCHES, Curve, curve, smooth, thin
from .panel import CROWDED, Line, Mark, Panel, Track
from .words import WORDS, Said, both, part_name, score_name, word
from .written import nats, of_loss, scored, short, whole

MANY = 5  # stages beyond which only smoothed curves are drawn
WIDE = 50  # times the lowest of a curve: from there it is drawn on a logarithmic axis
OUTLIERS = 200  # points from which on a raw curve may leave the plot
UNITS = {"loss": "nats", "ce": "nats", "kl": "nats", "grad_norm": "before_clipping"}
NOISY = ("loss", "ce", "kl", "grad_norm")  # logged from step to step; a learning rate is smooth by itself


def training(found: Sequence[Track], key: str) -> Panel | None:
    """A figure of every logged step: as it was, faint, and smoothed."""
    lines, marks, thinned, raws = [], [], False, []
    for track in found:
        logged = curve(track.stage.rows, "loss" if key == "ce" and not track.stage.beta else key)
        if not len(logged):
            continue
        raws.append(logged.values)
        thinned = thinned or len(logged) > 2 * STRETCHES
        if key in NOISY:
            if len(found) <= MANY:
                lines.append(_line(track, thin(logged), "faint", word("each_step")))
            lines.append(_line(track, thin(smooth(logged)), "line", word("smoothed")))
        else:
            lines.append(_line(track, thin(logged), "line", both("")))
        if key == "loss":
            marks += [Mark(kind="spike", x=track.offset + step, y=logged.at(step), colour=track.colour) for step in track.stage.spikes]
            marks += [Mark(kind="broken", x=track.offset + step, colour=track.colour) for step in track.stage.broken]
            marks += _overfitting(track)
    if not lines:
        return None
    values = np.concatenate(raws)
    logarithmic = key == "grad_norm" and bool((values > 0).all()) and np.percentile(values, 99) > WIDE * np.percentile(values, 1)
    unit = WORDS[UNITS[key]] if key in UNITS else both("")
    if key in NOISY and len(found) > MANY:
        unit = Said(f"{unit.en}, {word('smoothed').en}", f"{unit.zh}，{word('smoothed').zh}")
    return Panel(
        key=key, title=WORDS[key], unit=unit, across=word("step"), lines=lines,
        marks=marks + _seams(found), logarithmic=logarithmic, limits=None if logarithmic else _limits(values, lines), thinned=thinned,
    )  # fmt: skip


def _line(track: Track, points: Curve, look: str, what: Said) -> Line:
    tips = [_told(track, step, Said(*(f"{one} {short(value)}".strip() for one in what)))
            for step, value in zip(points.steps.tolist(), points.values.tolist(), strict=True)]  # fmt: skip
    return Line(name=track.name, colour=track.colour, look=look, x=points.steps + float(track.offset), y=points.values, tips=list(tips))


def _told(track: Track, step: int, figures: Said) -> Said:
    at = word("step_number", whole(step))
    return Said(f"{track.name} · {at.en}: {figures.en}", f"{track.name} · {at.zh}：{figures.zh}")


def _limits(values: np.ndarray, lines: Sequence[Line]) -> tuple[float, float] | None:
    """Of a raw curve of many points all but one in two hundred at either end; the smoothed ones whole."""
    if len(values) < OUTLIERS:
        return None
    whole_lines = [line.y for line in lines if line.look != "faint"]
    low, high = np.percentile(values, [0.5, 99.5])
    low, high = min([low, *(y.min() for y in whole_lines)]), max([high, *(y.max() for y in whole_lines)])
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - room), float(high + room)


def _overfitting(track: Track) -> list[Mark]:
    begins = track.stage.overfitting
    return [] if begins is None else [Mark(kind="overfitting", x=track.offset + begins, colour=track.colour)]


def _seams(found: Sequence[Track]) -> list[Mark]:
    """Where stages that follow one another meet; several that begin at one place have their names in the legend alone."""
    following = [track for track in found if track.follows]
    alone = {track.offset for track in following if sum(other.offset == track.offset for other in following) == 1}
    return [
        Mark(kind="stage", x=track.offset, text=track.name if track.offset in alone else "", colour=track.colour) for track in following
    ]


# ------------------------------------------------------------------------------------------------------------- held out


def scores(found: Sequence[Track], name: str) -> Panel | None:
    """A metric of the task at every evaluation; the adapter that was kept is marked."""
    lines, marks = [], []
    for track in found:
        measured = track.stage.score(name)
        if name not in track.stage.scores or not len(measured):
            continue
        points = thin(measured)
        told = zip(points.steps.tolist(), points.values.tolist(), strict=True)
        tips = [_told(track, step, both(scored(None, value))) for step, value in told]
        look = "dots" if len(measured) <= CROWDED else "line"
        lines.append(Line(name=track.name, colour=track.colour, look=look, x=points.steps + float(track.offset), y=points.values,
                          tips=list(tips)))  # fmt: skip
        kept = track.stage.kept
        if kept is not None and measured.at(kept) is not None:
            marks.append(Mark(kind="best", x=track.offset + kept, y=measured.at(kept), colour=track.colour))
    if not lines:
        return None
    key = re.sub(r"\W", "_", f"score_{name}")
    return Panel(key=key, title=score_name(name), unit=both(""), across=word("step"), lines=lines, marks=marks + _seams(found))


def held_out(found: Sequence[Track], part: str) -> Panel | None:
    """The loss of a part at every evaluation, its best one marked, and where overfitting begins."""
    lines, marks = [], []
    for track in found:
        measured = track.stage.part(part)
        if not len(measured):
            continue
        points = thin(measured)
        tips = [_told(track, step, Said(f"{nats(value)} (perplexity {of_loss(value)})", f"{nats(value)}（困惑度 {of_loss(value)}）"))
                for step, value in zip(points.steps.tolist(), points.values.tolist(), strict=True)]  # fmt: skip
        look = "dots" if len(measured) <= CROWDED else "line"
        lines.append(Line(name=track.name, colour=track.colour, look=look, x=points.steps + float(track.offset), y=points.values,
                          tips=list(tips)))  # fmt: skip
        best = track.stage.best(part)
        if best is not None:
            marks.append(Mark(kind="best", x=track.offset + best, y=measured.at(best), colour=track.colour))
        if part in ("style", "answers", "branches"):
            marks += _overfitting(track)
    if not lines:
        return None
    name = part_name(part)
    title = Said(f"Held-out loss: {name.en}", f"留出损失：{name.zh}")
    key = re.sub(r"\W", "_", f"held_out_{part}")
    return Panel(key=key, title=title, unit=word("nats"), across=word("step"), lines=lines, marks=marks + _seams(found))
