"""The style-against-forgetting plane: what was gained and what it cost, against the base."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .evaluated import placed
from .figures import frontier, grown
from .panel import CROWDED, Line, Mark, Panel, Track
from .words import Said, Text, both, word
from .written import change, whole

NAMED = 8  # ends of paths beyond which only those on the frontier are named
QUIET = 6  # the colour that is nobody's own


def plane(found: Sequence[Track], *, compared: bool) -> Panel | None:
    """Style gained against general text forgotten: a path through the evaluations of each stage, and the models of evaluation.json.

    Compared, the adapters that were kept and that no other one beats in both are joined. Of many only these are named.
    """
    paths = {number: list(track.stage.points()) for number, track in enumerate(found)}
    ends = {number: _end(found[number], points) for number, points in paths.items() if points}
    ahead = [list(ends)[place] for place in frontier([(lost, gain) for _, lost, gain in ends.values()])]
    lines, marks = [], [Mark(kind="origin", x=0.0, y=0.0)]
    for number, track in enumerate(found):
        if points := paths[number]:
            look = "dots" if len(points) <= CROWDED else "line"
            lines.append(_path(track, look, [(word("step_number", whole(step)), lost, gain) for step, lost, gain in points]))
            _, lost, gain = ends[number]
            side = 1 if lost >= sum(x for _, x, _ in points) / len(points) else -1  # away from the path
            named = len(ends) <= NAMED or number in ahead
            marks.append(Mark(kind="kept", x=lost, y=gain, text=track.name if named else "", colour=track.colour, side=side))
        if models := list(placed(track.stage)):
            lines.append(_path(track, "rings", [(both(name), lost, gain) for name, lost, gain in models]))
    if compared and len(ahead) > 1:
        x, y = zip(*sorted(ends[number][1:] for number in ahead), strict=True)
        lines.append(Line(name=word("frontier"), colour=QUIET, look="frontier", x=np.array(x), y=np.array(y), tips=[]))
    if not paths or not lines:
        return None
    return Panel(
        key="plane", title=word("plane"), unit=word("gain_axis"), across=word("forgetting_axis"), lines=lines, marks=marks, plane=True
    )  # fmt: skip


def _end(track: Track, points: Sequence[tuple[int, float, float]]) -> tuple[int, float, float]:
    """The point of the adapter that was kept, else the last."""
    return next((point for point in points if point[0] == track.stage.kept), points[-1])


def _path(track: Track, look: str, points: Sequence[tuple[Said, float, float]]) -> Line:
    """points: (what it is, forgetting, style gained)"""
    tips: list[Text] = []
    for what, lost, gain in points:
        style, general = change(grown(-gain)), change(grown(lost))
        tips.append(Said(
            f"{track.name} · {what.en}: style perplexity {style}, general {general}",
            f"{track.name} · {what.zh}：风格困惑度 {style}，通用 {general}",
        ))  # fmt: skip
    return Line(name=track.name, colour=track.colour, look=look, x=np.array([lost for _, lost, _ in points]),
                y=np.array([gain for _, _, gain in points]), tips=tips)  # fmt: skip
