"""What must not change the result does not: every way of computing a run traces one curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.run.children import Runs, write_recipe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the children of tests/run/children.py")

WAYS: dict[str, dict] = {
    "small micro-batches": {"overrides": ["train.tokens_per_microbatch=48"]},
    "one large micro-batch": {"overrides": ["train.tokens_per_microbatch=100000"]},
    "packed rows": {"overrides": ["train.row_tokens=150"]},
    "packed rows, small micro-batches": {"overrides": ["train.row_tokens=150", "train.tokens_per_microbatch=150"]},
    "gradient checkpointing": {"overrides": ["train.gradient_checkpointing=true"]},
    "stopped and resumed": {"stop": "SIGTERM"},
    "killed and resumed": {"stop": "SIGKILL"},
    "two processes": {"processes": 2},
    "two processes, stopped and resumed by one": {"processes": 2, "stop": "SIGTERM"},
    "three processes, packed rows, checkpointing": {
        "processes": 3, "overrides": ["train.row_tokens=150", "train.gradient_checkpointing=true"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """Five samples a step: not to be divided by two or three processes; the last step of an epoch has fewer still."""
    recipe = write_recipe(tmp_path_factory.mktemp("recipe"), samples_per_step=5, save_steps=2, eval_steps=4, tokens_per_microbatch=100)
    return Runs(recipe, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def straight(runs) -> Path:
    assert runs.finish(runs.folder / "straight") == 0, runs.said
    return runs.folder / "straight" / "style"


def curve(stage: Path) -> list[dict]:
    """Loss, gradient norm, rate and both held-out losses of every step; without the closing line, which tells times."""
    rows = map(json.loads, (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if "train_runtime" not in row]


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.slow) if "three" in way else way for way in WAYS])
def test_one_curve(runs, straight, tmp_path, way):
    overrides, stop, processes = (WAYS[way].get(key, other) for key, other in (("overrides", []), ("stop", ""), ("processes", 1)))
    if stop:
        assert runs.finish(tmp_path, *overrides, processes=processes, moment="training", do=stop) != 0
        assert curve(tmp_path / "style") != curve(straight)
        processes = 1
        overrides = ["stages.0.train.seed=42"]  # nothing new: the same recipe
    assert runs.finish(tmp_path, *overrides, processes=processes) == 0, runs.said
    ours, theirs = curve(tmp_path / "style"), curve(straight)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs] and len(theirs) == 12 + 4
    for mine, row in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(row, abs=1e-4)
    weights, others = (load_file(stage / "adapter" / "adapter_model.safetensors") for stage in (tmp_path / "style", straight))
    assert all((weights[name] - others[name]).abs().max() < 1e-3 for name in others)
