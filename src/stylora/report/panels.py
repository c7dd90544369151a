"""Which plots a report has."""

from __future__ import annotations

from collections.abc import Sequence

from .curves import held_out, scores, training
from .panel import Panel, tracks
from .plane import plane
from .stage import Stage


def panels(stages: Sequence[Stage], *, compared: bool = False) -> list[Panel]:
    """Every plot that there is something to draw on: the plane first, then the curves."""
    found = tracks(stages, compared=compared)
    parts = dict.fromkeys(part for stage in stages for part in stage.parts)
    named = dict.fromkeys(name for stage in stages for name in stage.scores)
    each = [
        plane(found, compared=compared), *(scores(found, name) for name in named), training(found, "loss"),
        *(held_out(found, part) for part in parts),
        *([training(found, "ce"), training(found, "kl")] if any(stage.beta for stage in stages) else []),
        training(found, "learning_rate"), training(found, "grad_norm"),
    ]  # fmt: skip
    return [panel for panel in each if panel is not None]
