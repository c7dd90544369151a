"""`stylora runs`: which runs there are, how far each of them came, and how to take one away.

A run is known by its `recipe.yaml` beside `metrics.jsonl` or `environment.json`; `run/folder.py` says what else lies there. A file that
can't be read is named with its run and stops nothing: whoever looks is often looking for what went wrong. Imports no torch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from stylora.errors import UserError, did_you_mean
from stylora.recipe.recipe import Recipe, load_recipe
from stylora.train.checkpoint import MANIFEST, steps_there

from .folder import LOCK, StageFolder, locked

REPORT = "report.html"
RUNS = Path("runs")  # where runs lie when nobody says otherwise


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint. bytes: on disk; marks: `best`, `last` or neither"""

    step: int
    bytes: int
    marks: list[str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One stage of a run as it lies on disk.

    recipe: None where it can't be read
    state: `training` (a process is at it), `done`, `unfinished`, `empty` (no step yet), `broken` (recipe.yaml or stack.json is)
    step, steps: optimizer steps done, and in all; None where nothing says how many
    evaluations: lines of metrics.jsonl with an `eval/` figure, with the training loss of that step; metric: the one that tells most
    bytes: on disk; when: of the last change, seconds since 1970; troubles: files that can't be read, and why
    """

    folder: StageFolder
    recipe: Recipe | None
    state: str
    step: int
    steps: int | None
    evaluations: list[dict[str, Any]]
    metric: str | None
    checkpoints: list[Saved]
    bytes: int
    when: float
    troubles: list[str]

    @property
    def name(self) -> str:
        """As it is given to `stylora runs show`."""
        path = self.folder.path
        return path.relative_to(RUNS).as_posix() if RUNS in path.parents else str(path)

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.recipe.stages[0].name if self.recipe else self.folder.path.name

    @property
    def figures(self) -> dict[str, float]:
        """first, last and best of the metric, best among trained ones only; empty without evaluations."""
        values = [(row["step"], row[self.metric]) for row in self.evaluations if self.metric is not None and self.metric in row]
        if not values:
            return {}
        more = self.recipe is not None and self.recipe.stages[0].train.more_is_better
        trained = [value for step, value in values if step] or [values[0][1]]
        return {"first": values[0][1], "last": values[-1][1], "best": (max if more else min)(trained)}

    def as_json(self) -> dict[str, Any]:
        """Everything in it as JSON can carry it."""
        recipe = self.recipe.model_dump(mode="json") if self.recipe else None
        return {
            "name": self.name, "stage": self.stage, "folder": str(self.folder.path), "state": self.state, "step": self.step,
            "steps": self.steps, "base": recipe["base"] if recipe else None, "metric": self.metric, **self.figures, "bytes": self.bytes,
            "when": datetime.fromtimestamp(self.when).astimezone().isoformat(timespec="seconds"), "evaluations": self.evaluations,
            "checkpoints": [vars(saved) for saved in self.checkpoints], "troubles": self.troubles, "recipe": recipe,
        }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ finding


def is_stage(path: Path) -> bool:
    """Does a stage of a run lie there? A recipe alone does not make one."""
    return (path / "recipe.yaml").is_file() and any((path / file).is_file() for file in ("metrics.jsonl", "environment.json"))


def list_runs(folder: Path) -> list[Run]:
    """Every stage in a folder of runs, or of one run, the newest first. Raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(str(folder), got="no such folder", expected="a folder of runs", do="`stylora train` makes one")
    places = {recipe.parent for depth in ("", "*/", "*/*/") for recipe in folder.glob(depth + "recipe.yaml")}
    return sorted((read_run(path) for path in places if is_stage(path)), key=lambda run: (-run.when, run.name))


def find_run(name: str) -> list[Run]:
    """The stages of RUN: a path, or a name as `stylora runs` shows it. Raises UserError for anything else."""
    for path in (Path(name), RUNS / name):
        if is_stage(path):
            return [read_run(path)]
        inner = [read_run(child) for child in (sorted(path.iterdir()) if path.is_dir() else []) if is_stage(child)]
        # a flat run is no stage of the folder it lies in
        if stages := [run for run in inner if run.folder.layout == "stages"]:
            return stages
    known = [run.name for run in list_runs(RUNS)] if RUNS.is_dir() else []
    raise UserError(
        name, got="no run", expected="a run or a stage, as `stylora runs` names them", do=did_you_mean(name, known) if known else ""
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ reading


def read_run(path: Path) -> Run:
    """A stage's folder, read. Files that can't be read are among its troubles."""
    troubles: list[str] = []
    try:
        recipe = load_recipe(path / "recipe.yaml")
    except UserError as error:
        recipe = None
        troubles.append(str(error))
    folder = StageFolder(path=path, layout=recipe.layout if recipe else "stages")
    stack = read_object(folder.stack, troubles)
    rows = read_rows(path / "metrics.jsonl", troubles)
    kept = steps_there(folder.checkpoints)
    trainer = read_object(folder.checkpoints / f"checkpoint-{kept[0]}" / "trainer_state.json", troubles) if kept else {}
    step = max([0, *kept[:1], *[row["step"] for row in rows[-1:]]])
    done = "adapters" in stack and step <= stack.get("steps", step)
    steps = stack.get("steps", step) if done else trainer.get("max_steps") or (recipe and max(0, recipe.stages[0].train.max_steps)) or None
    state = "done" if done else "unfinished" if step else "empty"
    if recipe is None or (folder.stack.is_file() and not stack):
        state = "broken"
    evaluations = list(_evaluations(rows))
    for number in kept:
        read_object(folder.checkpoints / f"checkpoint-{number}" / MANIFEST, troubles, needed=True)
    marks = {number: ["best"] * (number == trainer.get("best_global_step")) + ["last"] * (number == kept[0]) for number in kept}
    changed = [path / "recipe.yaml", path / "metrics.jsonl", folder.stack]
    return Run(
        folder=folder, recipe=recipe, state="training" if is_busy(folder) else state, step=step, steps=steps, evaluations=evaluations,
        metric=_metric(recipe, evaluations),
        checkpoints=[
            Saved(step=number, bytes=size_of(folder.checkpoints / f"checkpoint-{number}"), marks=marks[number]) for number in reversed(kept)
        ],
        bytes=size_of(path), when=max(file.stat().st_mtime for file in changed if file.is_file()), troubles=troubles,
    )  # fmt: skip


def _evaluations(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    losses = {row["step"]: row["loss"] for row in rows if isinstance(row.get("loss"), int | float)}
    for row in rows:
        if measured := {key: value for key, value in row.items() if key.startswith("eval/") and isinstance(value, int | float)}:
            loss = {"loss": losses[row["step"]]} if row["step"] in losses else {}
            yield {"step": row["step"], **loss, **measured}


def _metric(recipe: Recipe | None, evaluations: Sequence[dict[str, Any]]) -> str | None:
    """What chooses the best adapter, else the style's, else the first that was measured."""
    measured = [key for key in (evaluations[0] if evaluations else {}) if key.startswith("eval/")]
    asked = recipe and recipe.stages[0].train.metric_for_best_model
    return next((key for key in (f"eval/{asked}", "eval/style", *measured) if key in measured), None)


def read_object(path: Path, troubles: list[str], *, needed: bool = False) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed and path.parent.is_dir():  # a run that is training may just have removed it
            troubles.append(f"{path}: missing")
        return {}
    except (UnicodeDecodeError, json.JSONDecodeError):
        value = None
    if not isinstance(value, dict):
        troubles.append(f"{path}: no JSON object")
        return {}
    return value


def read_rows(path: Path, troubles: list[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are objects with a step."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            row = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            troubles.append(f"{path}:{number}: no JSON object with a step")
    return rows


def size_of(path: Path) -> int:
    """Bytes of all files in a folder; a link counts as itself."""
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with suppress(FileNotFoundError):  # a run that is training removes its older checkpoints
                total += os.lstat(os.path.join(folder, file)).st_size
    return total


def is_busy(folder: StageFolder) -> bool:
    """Is a process training there? Where the lock can't be opened nobody can tell, and no means no."""
    if not os.access(folder.path / LOCK, os.W_OK):
        return False
    try:
        with locked(folder):
            return False
    except UserError:
        return True


# ----------------------------------------------------------------------------------------------------------------- removing


def check_removable(runs: Sequence[Run]) -> None:
    """Raises UserError for a link and for a run that a process is training."""
    for run in runs:
        path = run.folder.path
        if path.is_symlink():
            raise UserError(str(path), got=f"a link to {path.resolve()}", expected="a run's own folder", do="give that one")
        if is_busy(run.folder):
            raise UserError(str(path), got="a run that is being trained", expected="one at rest", do="stop it first")


def remove(runs: Sequence[Run]) -> int:
    """Remove these stages' folders, and the run's when nothing else is in it; bytes freed. Raises what `check_removable` raises.

    The recipe goes last: what a crash leaves behind is still a run.
    """
    check_removable(runs)
    freed = 0
    for run in runs:
        path = run.folder.path
        freed += size_of(path)
        if run.folder.layout == "beside" and run.folder.adapter.is_dir():
            freed += size_of(run.folder.adapter)
            shutil.rmtree(run.folder.adapter)
        with locked(run.folder):
            last = ["environment.json", "metrics.jsonl", "recipe.yaml"]
            for entry in sorted(path.iterdir(), key=lambda entry: last.index(entry.name) if entry.name in last else -1):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != LOCK:
                    entry.unlink()
        shutil.rmtree(path)
        left = list(path.parent.iterdir())
        if run.folder.layout == "stages" and path.parent.resolve() != Path.cwd() and {entry.name for entry in left} <= {REPORT}:
            shutil.rmtree(path.parent)  # a page about stages that are no more goes with the last of them
    return freed
