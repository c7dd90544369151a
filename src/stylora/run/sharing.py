"""A stage that several points of a sweep have in common, trained by one and copied to the others.

Common are stages whose recipes are equal, with all stages they come from, and that were made from the same text and adapters by the same
version of the program. A copy is a stage like any other: its recipe.yaml names the parents in its own point's folder, and stack.json, whose
paths are relative, is true wherever the parents lie beside it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from stylora.recipe.recipe import Recipe

from .folder import EVALUATION, LOCK, THREE_WAY, StageFolder, check_room, claim_stage, keep_recipe, locked, made_from
from .grid import Point
from .runs import size_of
from .stages import alone

ITS_OWN = ("recipe.yaml", LOCK, EVALUATION, THREE_WAY, "report.html", "*.tmp", "*.part")
"""what is not copied: it names the folder it lies in, or is not finished"""


def copy_shared(point: Point, points: Sequence[Point]) -> Iterator[str]:
    """Copy every stage that is to be trained for `point` and is done in another of `points`; a sentence for each."""
    done: set[str] = set()
    for number, stage in enumerate(point.recipe.stages):
        own = alone(point.recipe, number, point.folder)
        claim = claim_stage(point.folder, own, force=False)
        ready = done.issuperset([*([stage.continues] if stage.continues is not None else []), *stage.on])
        if claim.state == "new" and ready and (found := _trained(point, number, own, points)) is not None:
            other, folder = found
            _copy(folder, claim.stage, own)
            yield f"{stage.name}, as in {other.name}: copied, not trained again"
            done.add(stage.name)
        elif claim.state == "done":
            done.add(stage.name)


def _trained(point: Point, number: int, own: Recipe, points: Sequence[Point]) -> tuple[Point, StageFolder] | None:
    """The point that has this stage done, and where."""
    if own.layout == "beside":  # half of it lies elsewhere
        return None
    for other in points:
        if other.name == point.name or other.lineages[number] != point.lineages[number]:
            continue
        claim = claim_stage(other.folder, alone(other.recipe, number, other.folder), force=False)
        if claim.state == "done" and json.loads(claim.stage.stack.read_text(encoding="utf-8"))["made_from"] == made_from(own):
            return other, claim.stage
    return None


def _copy(source: StageFolder, target: StageFolder, recipe: Recipe) -> None:
    """Whole or not at all: under another name until all of it has reached the disk."""
    check_room(target, size_of(source.path))
    part = target.path.with_name(f".{target.path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with locked(source):
            shutil.copytree(source.path, part, ignore=shutil.ignore_patterns(*ITS_OWN))
        keep_recipe(StageFolder(path=part, layout=target.layout), recipe)  # last, for it makes a run of the folder
        for file in part.rglob("*"):
            if file.is_file():
                _flush(file)
        shutil.rmtree(target.path, ignore_errors=True)  # nothing but a lock lies there
        os.replace(part, target.path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _flush(file: Path) -> None:
    with file.open("rb+") as copied:
        os.fsync(copied.fileno())
