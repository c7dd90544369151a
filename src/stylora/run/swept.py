"""What a sweep came to: the figures of every point, those that no other one beats, sweep.json, and the points as a page.

Figures are read from the folders of the stages, so a sweep that went on has those of one that never stopped. Trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from stylora import __version__
from stylora.report.figures import frontier
from stylora.report.page import page
from stylora.report.table import as_json

from .folder import EVALUATION, StageFolder, write_json, write_text
from .grid import Grid, Point, plain
from .report import choose_language
from .reported import read_stage, read_stages
from .runs import read_run
from .stages import alone

FILE, REPORT = "sweep.json", "report.html"


@dataclass(kw_only=True)
class Swept:
    """The points so far.

    stages: point -> the folders of its stages; figures: point -> what its last stage reached, of those that are done
    reasons: lineage of a stage -> why it can't be trained
    """

    grid: Grid
    stages: Mapping[str, Sequence[StageFolder]]
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def done(self, point: Point) -> None:
        """All its stages are."""
        stages = [read_stage(read_run(folder.path)) for folder in self.stages[point.name]]
        (last,) = as_json(stages[-1:])["stages"]
        seconds = [stage.seconds for stage in stages if stage.seconds is not None]
        self.figures[point.name] = {"seconds": sum(seconds) if len(seconds) == len(stages) else None} | {
            key: last[key] for key in ("against_base", "kept_step", "overfitting_step", "spikes", "parts", "scores")
        }

    def stopped(self, point: Point, number: int, reason: str) -> None:
        """Its stage of that number can't be trained, nor can the same stage of another point."""
        self.reasons[point.lineages[number]] = reason

    def reason(self, point: Point) -> str | None:
        """Why it can't be trained; None where nothing is known against it."""
        return next((self.reasons[lineage] for lineage in point.lineages if lineage in self.reasons), None)

    def as_json(self) -> dict[str, Any]:
        """What sweep.json says, the points in the order of the grid. `base`: what the base's own continuations are like."""
        measured = self.evaluations()
        points = []
        for point in self.grid.points:
            figures, reason = self.figures.get(point.name), self.reason(point)
            state = "done" if figures is not None else "stopped" if reason is not None else "to do"
            points.append(
                entry(point) | {"state": state, "reason": reason, "frontier": False, "seconds": None, "parts": {}, "scores": {}}
                | (figures or {}) | {"evaluation": measured.get(point.name)}
            )  # fmt: skip
        for ahead in undominated(points):
            ahead["frontier"] = True
        return described(self.grid) | {"base": measured.get("base"), "points": points}

    def write(self) -> dict[str, Any]:
        """sweep.json; gives what it says."""
        result = self.as_json()
        write_json(self.grid.folder / FILE, result)
        return result

    def report(self, console: Console) -> None:
        """The last stages of all points that are done, beside each other."""
        if not self.figures:
            return
        points = [point for point in self.grid.points if point.name in self.figures]
        stages = [
            replace(stage, run=point.name, recipe={"data": stage.recipe["data"], **_values(point)})  # shown as differing: what was varied
            for point, stage in zip(points, read_stages([[read_run(self.last()[point.name])] for point in points]), strict=True)
        ]
        out, title = self.grid.folder / REPORT, self.grid.folder.resolve().name
        write_text(out, page(stages, title=title, language=choose_language("auto"), version=__version__, compared=len(stages) > 1))
        console.print(f"wrote      {self.grid.folder / FILE} and {out}", markup=False, highlight=False)

    def evaluate(self, console: Console, cache: Path | None) -> None:
        """Measure the continuations of all points that are done, on the data of the first, unless they were measured alike before."""
        from .evaluate import evaluate

        if self.figures and not self.evaluations():
            first = next(point for point in self.grid.points if point.name in self.figures)
            data = alone(first.recipe, len(first.recipe.stages) - 1, first.folder)
            evaluate([str(folder) for folder in self.last().values()], data=data, console=console, cache=cache)

    def evaluations(self) -> dict[str, Any]:
        """Point -> `generation` of its evaluation.json, and `base`; empty unless all points that are done were measured in the same way."""
        found: dict[str, Any] = {}
        settings = []
        for name, folder in self.last().items():
            if not (folder / EVALUATION).is_file():
                return {}
            told = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
            base, *models = told["models"]
            as_trained = next(model for model in models if model["checkpoint"] is None and model["weight"] == 1)
            found |= {"base": base["generation"], name: as_trained["generation"]}
            settings.append(told["settings"])
        return found if all(each == settings[0] for each in settings) else {}

    def last(self) -> dict[str, Path]:
        """Point -> the folder of its last stage, of those that are done."""
        return {point.name: self.stages[point.name][-1].path for point in self.grid.points if point.name in self.figures}


def undominated(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points on the frontier: no other one has both more style and less forgetting. Those without either figure are on none."""
    placed = [point for point in points if all("change" in point["parts"].get(part, {}) for part in ("style", "general"))]
    places = [(point["parts"]["general"]["change"], -point["parts"]["style"]["change"]) for point in placed]
    return [placed[number] for number in frontier(places)]


def described(grid: Grid) -> dict[str, Any]:
    """The recipe and the grid, as JSON has them."""
    return {
        "recipe": str(grid.source), "recipe_text": grid.source.read_text(encoding="utf-8-sig"), "overrides": list(grid.fixed),
        "grid": {key: [plain(text) for text in texts] for key, texts in grid.varied.items()}, "folder": str(grid.folder),
    }  # fmt: skip


def entry(point: Point) -> dict[str, Any]:
    """Which point it is, as JSON has it."""
    return {"name": point.name, "folder": str(point.folder), "values": _values(point)}


def _values(point: Point) -> dict[str, Any]:
    return {key: plain(text) for key, text in point.values.items()}
