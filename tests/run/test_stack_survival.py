"""An adapter on a frozen one, killed, resumed, trained by two processes and reloaded at its best: the same end, and nothing below it moves.

Real processes and real signals.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.run.children import Runs, write_recipe
from tests.run.test_survival import rows, same_end

from stylora.train.checkpoint import find_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
TRAIN = {
    "max_steps": 6, "samples_per_step": 4, "tokens_per_microbatch": 100, "save_steps": 2, "eval_steps": 3, "precision": "fp32",
    "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """`style` with dropout, and `instruct` with dropout on it."""
    folder = tmp_path_factory.mktemp("叠 stack")
    instruct = {"name": "instruct", "on": ["style"], "adapter": {"r": 2, "alpha": 8, "dropout": 0.3}, "prompts": ["雪"], "train": TRAIN}
    data = {"train": str(folder / "wuxia"), "validation": 0.2, "window": 48, "min_window": 16}
    recipe = write_recipe(folder, dropout=0.2, more=[{**instruct, "data": data}], **TRAIN)
    return Runs(recipe, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def straight(runs) -> Path:
    assert runs.finish(runs.folder / "straight") == 0, runs.said
    return runs.folder / "straight"


@pytest.fixture
def styled(straight, tmp_path) -> Path:
    """The run with its first stage alone."""
    shutil.copytree(straight / "style", tmp_path / "x" / "style")
    return tmp_path / "x"


def files(stage: Path) -> dict[str, bytes]:
    return {path.relative_to(stage).as_posix(): path.read_bytes() for path in stage.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("moment", ["training", *(pytest.param(moment, marks=pytest.mark.slow) for moment in ("saving", "publishing"))])
def test_killed_on_a_frozen_adapter_it_ends_with_the_same_bytes(runs, straight, styled, moment):
    before = files(styled / "style")
    assert runs.finish(styled, moment=moment, do="SIGKILL") == -signal.SIGKILL, runs.said
    assert runs.finish(styled) == 0, runs.said
    same_end(styled / "instruct", straight / "instruct")
    assert files(styled / "style") == before
    stack = json.loads((styled / "instruct/stack.json").read_text(encoding="utf-8"))
    assert [(entry["name"], entry["role"]) for entry in stack["adapters"]] == [("style", "frozen"), ("instruct", "trained")]
    assert (styled / "instruct/adapter/adapter_info.json").read_bytes() == (straight / "instruct/adapter/adapter_info.json").read_bytes()


@pytest.mark.slow
def test_two_processes_trace_one_and_leave_what_is_below(runs, straight, styled):
    before = files(styled / "style")
    alone = styled.with_name("alone")
    shutil.copytree(styled, alone)
    plain = "instruct.adapter.dropout=0"  # its generator is seeded by process
    assert runs.finish(alone, plain) == 0 and runs.finish(styled, plain, processes=2) == 0, runs.said
    for mine, theirs in zip(rows(styled / "instruct"), rows(alone / "instruct"), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert files(styled / "style") == before


def test_the_best_checkpoint_comes_back_alone(runs, straight, styled):
    """Of a run that gets better, the worst is asked for; what is kept is the top of that checkpoint, to the byte."""
    before = files(styled / "style")
    overrides = ["metric_for_best_model=loss", "greater_is_better=true"]
    assert runs.finish(styled, *(f"instruct.train.{override}" for override in overrides)) == 0, runs.said
    stage = styled / "instruct"
    losses = {row["step"]: row["eval/style"] for row in rows(stage) if "eval/style" in row and row["step"]}
    best = max(losses, key=losses.__getitem__)
    last, _ = find_checkpoint(stage / "checkpoints")
    kept = load_file(stage / "adapter/adapter_model.safetensors")
    there = load_file(stage / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert last is not None and best < last.step and kept.keys() == there.keys()
    assert all((kept[name] == there[name]).all() for name in kept)
    assert files(styled / "style") == before
