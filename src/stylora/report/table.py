"""The headline of a report in a terminal, and as plain values for `--json`: what each stage reached, in one language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from .figures import Change, perplexity
from .panel import Track, tracks
from .reading import comparison, reading
from .stage import Stage
from .words import STATES, Said, part_name, score_name, word
from .written import change, of_loss, scored, whole


def table(stages: Sequence[Stage], language: str, *, compared: bool = False) -> Table:
    """One line a stage: perplexity of each part before → after with its change, the task's metrics, the best step, how far it came.

    The best step is that of the adapter that was kept, where a metric chose it, and otherwise of the lowest loss of the first part.
    """
    found = tracks(stages, compared=compared)
    scores = list(dict.fromkeys(name for stage in stages for name in stage.scores))
    parts = list(dict.fromkeys(part for stage in stages for part in stage.parts))
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column(word("run" if compared else "stage").of(language), overflow="fold")
    for part in parts:
        shown.add_column(part_name(part).of(language), justify="right", no_wrap=True)
    for name in scores:
        shown.add_column(score_name(name).of(language), justify="right", no_wrap=True)
    shown.add_column(word("best_at").of(language), justify="right", no_wrap=True)
    shown.add_column(word("steps").of(language), justify="right", no_wrap=True)
    shown.add_column(word("state").of(language), no_wrap=True)
    for track in found:
        stage = track.stage
        best = stage.kept if stage.metric is not None else stage.best(parts[0]) if parts else None
        done = whole(stage.step) if stage.steps in (None, stage.step) else f"{whole(stage.step)} / {whole(stage.steps or 0)}"
        shown.add_row(
            Text(track.name), *[_cell(stage.change(part)) for part in parts], *[scored(*_ends(stage, name)) for name in scores],
            "–" if best is None else whole(best), done,
            STATES[stage.state].of(language),
        )  # fmt: skip
    return shown


def _cell(found: Change | None) -> Text:
    if found is None:
        return Text("–")
    colour = {-1: "green", 0: "", 1: "red"}[found.direction]
    return Text(f"{of_loss(found.before)} → {of_loss(found.after)} ").append(change(found.share), style=colour)


def _ends(stage: Stage, name: str) -> tuple[float | None, float | None]:
    """A metric before training, and of the adapter that was kept."""
    found = stage.score(name)
    return found.at(0), None if stage.kept is None else found.at(stage.kept)


def sentences(stages: Sequence[Stage], *, compared: bool = False) -> list[Said]:
    """What it comes to."""
    if not compared:
        return reading(stages)
    found = tracks(stages, compared=True)
    return comparison(stages, [track.name for track in found])


def as_json(stages: Sequence[Stage], *, compared: bool = False) -> dict[str, Any]:
    """The same figures, unrounded: {"reading": {"en": [..], "zh": [..]}, "stages": [{..., "parts": {part: {...}}}]}"""
    said = sentences(stages, compared=compared)
    return {
        "reading": {"en": [one.en for one in said], "zh": [one.zh for one in said]},
        "stages": [_stage_json(track) for track in tracks(stages, compared=compared)],
    }


def _stage_json(track: Track) -> dict[str, Any]:
    stage = track.stage
    return {
        "name": track.name, "run": stage.run, "stage": stage.name, "state": stage.state, "step": stage.step, "steps": stage.steps,
        "base": stage.base, "when": stage.when or None, "seconds": stage.seconds, "device": stage.environment.get("device"),
        "kept_step": stage.kept, "overfitting_step": stage.overfitting, "spikes": stage.spikes, "no_number": stage.broken,
        "against_base": stage.origin.is_base if stage.origin else None,
        "parts": {part: _part_json(stage, part) for part in stage.parts},
        "scores": {name: dict(zip(("before", "after"), _ends(stage, name), strict=True)) for name in stage.scores},
        "troubles": list(stage.troubles),
    }  # fmt: skip


def _part_json(stage: Stage, part: str) -> dict[str, Any]:
    found, best = stage.change(part), stage.best(part)
    figures: dict[str, Any] = {"best_step": best, "best": stage.part(part).at(best) if best is not None else None}
    if found is not None:
        figures |= {
            "before": found.before, "after": found.after, "change": found.nats, "change_error": found.error,
            "perplexity_before": perplexity(found.before), "perplexity_after": perplexity(found.after), "perplexity_change": found.share,
        }  # fmt: skip
    return figures
