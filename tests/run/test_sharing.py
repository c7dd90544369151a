"""A stage copied between the points of a sweep: when it may be, what the copy holds, and that nothing is left of half of one.

Folders made by hand, as a training leaves them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from stylora.errors import UserError
from stylora.run.folder import StageFolder, claim_stage, keep_recipe, made_from, stage_folder, write_stack
from stylora.run.grid import Point, read_grid
from stylora.run.open import find_model
from stylora.run.sharing import copy_shared
from stylora.run.stages import alone

STAGES = [
    {"data": {"train": "小说.txt"}},
    {"name": "above", "on": ["style"], "data": {"train": "小说.txt"}},
    {"name": "last", "continue": "above"},
]


@pytest.fixture
def points(tmp_path, monkeypatch) -> list[Point]:
    """Three points that differ in their last stage; the first one's stages are done."""
    monkeypatch.chdir(tmp_path)
    Path("小说.txt").write_text("剑光一闪。", encoding="utf-8")
    Path("recipe.yaml").write_text(yaml.safe_dump({"output_dir": "out", "stages": STAGES}, allow_unicode=True), encoding="utf-8")
    grid = read_grid(Path("recipe.yaml"), ["last.train.seed=1,2,3"])
    for number in range(3):
        finish(grid.points[0], number)
    return list(grid.points)


def finish(point: Point, number: int, weights: bytes = b"") -> StageFolder:
    """Leave a stage as if it had been trained."""
    own = alone(point.recipe, number, point.folder)
    folder = stage_folder(point.folder, own)
    (folder.path / "adapter").mkdir(parents=True)
    (folder.adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder.adapter / "adapter_model.safetensors").write_bytes(weights or point.lineages[number].encode())
    (folder.path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (folder.path / "checkpoints" / "checkpoint-2" / "weights").write_bytes(b"2")
    keep_recipe(folder, own)
    write_stack(folder, own, base_fingerprint={"x": 1}, steps=2, made=made_from(own))
    for name in ("metrics.jsonl", "evaluation.json", "report.html", ".lock", "left.tmp"):
        (folder.path / name).write_text(name, encoding="utf-8")
    (folder.path / ".adapter.part").mkdir()
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def states(point: Point) -> list[str]:
    return [claim_stage(point.folder, alone(point.recipe, number, point.folder), force=False).state for number in range(3)]


def test_all_common_stages_are_copied_and_no_other(points):
    assert list(copy_shared(points[1], points)) == [
        "style, as in seed=1: copied, not trained again", "above, as in seed=1: copied, not trained again"
    ]  # fmt: skip
    assert states(points[1]) == ["done", "done", "new"] and states(points[2]) == ["new"] * 3
    assert list(copy_shared(points[1], points)) == [], "there is nothing left to copy"


def test_a_copy_holds_everything_but_what_is_the_others_own(points):
    list(copy_shared(points[1], points))
    assert {path.name for path in points[1].folder.iterdir()} == {"style", "above"}
    there, here = points[0].folder / "above", points[1].folder / "above"
    assert names(there) - names(here) == {"evaluation.json", "report.html", ".lock", "left.tmp", ".adapter.part"}
    for name in names(here) - {"recipe.yaml"}:
        assert (here / name).is_dir() or (here / name).read_bytes() == (there / name).read_bytes()


def test_a_copied_stack_is_that_of_its_own_point(points):
    """Also where an adapter lies frozen below: hash and path are those of the copy beside it."""
    list(copy_shared(points[1], points))
    shutil.rmtree(points[0].folder)
    found = find_model(str(points[1].folder / "above"))
    own = [points[1].folder / stage / "adapter" for stage in ("style", "above")]
    assert [path.resolve() for path in found.adapters] == [path.resolve() for path in own]
    recipe = yaml.safe_load((points[1].folder / "above" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["stages"][0]["adapter"]["frozen"] == [own[0].as_posix()] and recipe["output_dir"] == points[1].folder.as_posix()


def test_nothing_is_copied_that_is_not_done(points):
    (points[0].folder / "style" / "stack.json").unlink()
    assert list(copy_shared(points[1], points)) == [] and not points[1].folder.exists()


@pytest.mark.parametrize("what", ["text", "version"])
def test_nothing_is_copied_that_was_made_from_something_else(points, what):
    stack = points[0].folder / "style" / "stack.json"
    told = json.loads(stack.read_text(encoding="utf-8"))
    told["made_from"].pop(what) if what == "text" else told["made_from"].update(version="0.0")
    stack.write_text(json.dumps(told), encoding="utf-8")
    assert list(copy_shared(points[1], points)) == [] and not points[1].folder.exists()


def test_a_stage_on_other_weights_is_not_copied(points):
    """The point has a first stage of its own, which came out differently."""
    finish(points[1], 0, weights=b"other")
    assert list(copy_shared(points[1], points)) == []
    assert states(points[1]) == ["done", "new", "new"]


def test_what_a_point_has_begun_it_ends_itself(points):
    begun = finish(points[1], 0)
    begun.stack.unlink()
    before = names(points[1].folder)
    assert list(copy_shared(points[1], points)) == [] and names(points[1].folder) == before


def test_a_copy_that_fails_leaves_nothing_and_what_was_left_is_replaced(points, monkeypatch):
    left = points[1].folder / ".style.part"
    left.mkdir(parents=True)
    (left / "old").write_text("x", encoding="utf-8")
    (points[1].folder / "style").mkdir()
    (points[1].folder / "style" / ".lock").touch()

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("stylora.run.sharing.keep_recipe", fails)
        list(copy_shared(points[1], points))
    assert names(points[1].folder) == {"style", "style/.lock"}
    list(copy_shared(points[1], points))
    assert states(points[1])[0] == "done" and "old" not in names(points[1].folder / "style")


def test_a_stage_that_is_being_trained_is_not_copied(points):
    with FileLock(points[0].folder / "style" / ".lock"), pytest.raises(UserError, match="another process is training"):
        list(copy_shared(points[1], points))
    assert not (points[1].folder / "style").exists()
