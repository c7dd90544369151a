"""`stylora sweep`: every point of a grid trained, and which of them no other one beats in style and forgetting together.

    runs/wuxia-sweep/lr=1e-4,beta=0.1/style/     as `stylora train` leaves it
                                      align/
                     sweep.json                  the recipe, the grid, every point's figures; written anew after each point
                     report.html                 the points beside each other

A stage that several points have in common is trained once and copied. What is done lies in the folders, so the same command goes on where
it stopped; sweep.json is only ever written. The one page that tells the story: grid.py reads the command, sharing.py copies, swept.py
gathers the figures, show_sweep.py prints.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from stylora.errors import UserError
from stylora.model.processes import ranks
from stylora.train.interruption import Interrupted, Interruption

from .folder import StageFolder, locked
from .grid import Grid, Point, read_grid
from .plan import open_tokenizer, read_data
from .sharing import copy_shared
from .stages import Part, plan_stages
from .swept import Swept, described, entry

PLANNED = {"new": "train", "resume": "go on", "done": "done"}


def sweep(
    source: Path, arguments: Sequence[str], *, console: Console, evaluate: bool = False, cache: Path | None = None
) -> dict[str, Any]:
    """Train every point that is not done yet; gives what sweep.json says, and writes it with report.html into the sweep's folder.

    source: the recipe's file; arguments: `KEY=A,B`; evaluate: measure the continuations of every point's last stage, too
    cache: folder of the token cache, None for the user's own
    A point that can't go on, as its loss is no number, is told and left; the others are trained all the same.
    Raises UserError for what the user can mend, and Interrupted after a signal.
    """
    grid, parts = _planned(source, arguments)
    for line in [*grid.told, *(f"override: {override}" for override in grid.fixed)]:
        console.print(f"recipe     {line}", markup=False, highlight=False)
    console.print(f"sweep      {_told(_plan(grid, parts))}, in {grid.folder}", markup=False, highlight=False)
    with Interruption() as interruption, interruption.at_once():
        try:
            _read_all(parts, cache)
            with locked(StageFolder(path=grid.folder)):
                swept = Swept(grid=grid, stages={name: [part.claim.stage for part in every] for name, every in parts.items()})
                for number, point in enumerate(grid.points, 1):
                    console.print(f"point      {point.name}, {number} of {len(grid.points)}", markup=False, highlight=False)
                    _train_point(point, swept, console, cache)
                    swept.write()
                if evaluate:
                    swept.evaluate(console, cache)
                swept.report(console)
                return swept.write()
        except Interrupted:
            console.print("sweep      stopped; the same command goes on", markup=False, highlight=False)
            raise


def plan_sweep(source: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """What `sweep` would do; nothing is trained or written.

    `stages` of a point: name -> `train`, `go on`, `done`, or `as NAME`, the point whose stage is copied. Raises UserError as `sweep` does.
    """
    grid, parts = _planned(source, arguments)
    return described(grid) | {"points": _plan(grid, parts)}


def _planned(source: Path, arguments: Sequence[str]) -> tuple[Grid, dict[str, list[Part]]]:
    """The grid, and every stage of every point, claimed."""
    if ranks() > 1:
        raise UserError("sweep", got=f"{ranks()} processes", expected="one", do="start it by itself, without torchrun")
    grid = read_grid(source, arguments)
    return grid, {point.name: _claimed(point) for point in grid.points}


def _claimed(point: Point) -> list[Part]:
    try:
        return plan_stages(point.recipe, name=point.name)
    except UserError as error:
        do = "set output_dir to another folder, or take that one away" if "--force" in error.do else error.do
        raise UserError(error.where, got=error.got, expected=error.expected, do=do) from error


def _plan(grid: Grid, parts: Mapping[str, Sequence[Part]]) -> list[dict[str, Any]]:
    """The points with what is to be done for each of their stages."""
    owners: dict[str, str] = {}  # lineage -> the point that has the stage, or else will be the first to train it
    for wanted in (("done",), ("resume", "new")):
        for point in grid.points:
            for lineage, part in zip(point.lineages, parts[point.name], strict=True):
                if part.claim.state in wanted:
                    owners.setdefault(lineage, point.name)
    found = []
    for point in grid.points:
        stages = {}
        for lineage, part in zip(point.lineages, parts[point.name], strict=True):
            shared = part.claim.state == "new" and owners[lineage] != point.name
            stages[part.recipe.stages[0].name] = f"as {owners[lineage]}" if shared else PLANNED[part.claim.state]
        found.append(entry(point) | {"stages": stages})
    return found


def _told(plan: Sequence[Mapping[str, Any]]) -> str:
    states = [state for point in plan for state in point["stages"].values()]
    shared = sum(state.startswith("as ") for state in states)
    count = {state: states.count(state) for state in PLANNED.values()}
    return f"{len(plan)} points: {count['train'] + count['go on']} trainings to do, {shared} shared, {count['done']} done"


def _read_all(parts: Mapping[str, Sequence[Part]], cache: Path | None) -> None:
    """Read the text of every stage to be trained, once each: what is wrong with the last point's is told before the first is trained."""
    seen = set()
    for part in (part for every in parts.values() for part in every if part.claim.state != "done"):
        stage = part.recipe.stages[0]
        key = json.dumps([part.recipe.base, stage.data.model_dump(mode="json"), stage.objective.model_dump(mode="json", exclude={"kl"})])
        if key not in seen:
            seen.add(key)
            read_data(part.recipe, open_tokenizer(part.recipe.base), cache=cache)


def _train_point(point: Point, swept: Swept, console: Console, cache: Path | None) -> None:
    """Copy what another point has, train the rest, and say so to `swept`."""
    from stylora.train.trainer import TrainingStopped

    from .stages import train_stages

    if swept.reason(point) is not None:
        console.print("stopped    before, at a stage that is the same here", markup=False, highlight=False)
        return
    for line in copy_shared(point, swept.grid.points):
        console.print(f"shared     {line}", markup=False, highlight=False)
    left = _first_left(point)
    if left is None:
        console.print(f"done       {point.folder}", markup=False, highlight=False)
        return swept.done(point)
    try:
        train_stages(point.recipe, name=point.name, console=console, cache=cache, start=point.recipe.stages[left].name)
        swept.done(point)
    except TrainingStopped as error:
        left = _first_left(point)
        assert left is not None, "what stopped is not done"
        swept.stopped(point, left, str(error))
        console.print(f"stopped    {point.name}: {error}", markup=False, highlight=False)
    gc.collect()  # the model of a point that stopped makes room for the next


def _first_left(point: Point) -> int | None:
    """The number of the first stage that is not done; None where all are."""
    return next((number for number, part in enumerate(_claimed(point)) if part.claim.state != "done"), None)
