"""What a plot is made of, before anybody draws it: lines, marks, and the stages they belong to. Knows nothing of drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .stage import Stage
from .words import Said, Text

CROWDED = 60  # evaluations from which on a curve is drawn without a dot for each


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a plot. look: `faint`, `line`, `dots` (a line with a dot a point), `rings` (points alone) or `frontier`

    x, y: float64 [N]; colour: number of a colour; tips: [N], what a pointer at each point is told; none for a line that has others on it
    """

    name: Text
    colour: int
    look: str
    x: np.ndarray
    y: np.ndarray
    tips: list[Text]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something worth finding on a plot. kind: `best`, `kept`, `overfitting`, `spike`, `broken`, `stage` or `origin`

    y: None for a mark over the whole height; text: beside it, to the right or, at side -1, to the left; colour: of the line it belongs to
    """

    kind: str
    x: float
    y: float | None = None
    text: str = ""
    colour: int = 0
    side: int = 1


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot.

    key: its name in files, of letters, digits and `_`; unit: of y; across: what x is
    limits: of y, None for all of it; plane: x and y are of one kind, with lines through 0; thinned: not every point is drawn
    """

    key: str
    title: Said
    unit: Said
    across: Said
    lines: list[Line]
    marks: list[Mark] = field(default_factory=list)
    logarithmic: bool = False
    limits: tuple[float, float] | None = None
    plane: bool = False
    thinned: bool = False


@dataclass(frozen=True, kw_only=True)
class Track:
    """A stage as it is drawn. name: in legends; colour: number; offset: steps trained before it; follows: does it go on from another?"""

    stage: Stage
    name: str
    colour: int
    offset: int
    follows: bool


def tracks(stages: Sequence[Stage], *, compared: bool) -> list[Track]:
    """A track for each stage. compared: a colour and a name for each run, not for each stage"""
    alone = {stage.run for stage in stages if sum(other.run == stage.run for other in stages) == 1}
    offsets: list[int] = []
    found = []
    for number, stage in enumerate(stages):
        assert stage.parent is None or stage.parent < number, "a stage stands behind the one it goes on from"
        offsets.append(0 if stage.parent is None else offsets[stage.parent] + stages[stage.parent].step)
        colour = stage.group if compared else number
        name = stage.name if not compared else stage.run if stage.run in alone else f"{stage.run}/{stage.name}"
        found.append(Track(stage=stage, name=name, colour=colour, offset=offsets[-1], follows=stage.parent is not None))
    return found
