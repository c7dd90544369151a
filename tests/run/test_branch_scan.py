"""`stylora data` and `stylora inspect` of branches: files, refused rows, what an epoch reads; where each branch stands and whom it sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stylora.run.inspect import branch_lines, branch_starts
from stylora.samples.branch_settings import Branches
from stylora.samples.branches import Branch, Tree, tree_sample

BRANCHES = ["山上有人。", {"prompt": "山下：", "answer": "有河。"}, "山里有庙。"]
ROWS = [{"main": f"第{n}座山", "branches": BRANCHES[: 1 + n % 3]} for n in range(12)]


@pytest.fixture
def rows(tmp_path) -> Path:
    """A dozen rows of one to three branches, and one that is none."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in [*ROWS, {"main": "x", "branches": []}]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tree(*sizes: int) -> Tree:
    """A trunk of two tokens and branches of so many."""
    none, weight = np.empty(0, np.int32), np.empty(0, np.float32)
    branches = [Branch(ids=np.arange(size, dtype=np.int32), source=none, target=none, weight=weight, characters=0) for size in sizes]
    return Tree(trunk=np.array([7, 8], np.int32), branches=tuple(branches), trunk_characters=2, stop=1, quoted=False)


def test_data_tells_rows_and_what_is_refused(command, rows):
    ran = command("data", rows)
    assert ran.code == 0, ran
    for words in ("rows.jsonl  utf-8       12        1", "`branches` is empty", "branches, at most 3 in one", "held out"):
        assert words in ran.out, ran.out
    found = json.loads(command("data", rows, "data.validation=0", "--json").out)
    assert (found["rows"], found["branches_there"], len(found["rejects"])) == (12, 24, 1)
    assert found["data"]["format"] == "branches" and found["branches"]["visibility"] == "isolated"


@pytest.mark.parametrize(("visibility", "others"), [("isolated", "."), ("columnar", "<")])
def test_lines_of_branches_drawn(visibility, others):
    layout = Branches(visibility=visibility, branch_stride=16)
    lines = branch_lines(tree_sample(tree(3, 2), layout), layout)
    assert lines[:2] == [
        f"branch 1   coordinate 16, time 2 to 4, sees main 1 {others}",
        f"branch 2   coordinate 32, time 2 to 3, sees main {others} 2",
    ]
    assert len(lines) == 3 and lines[2].split()[0] == others


@pytest.mark.parametrize("settings", [{}, {"rope_2d_ratio": 0}, {"positions": "add"}])
def test_branches_begin_where_the_sample_put_them(settings):
    layout = Branches(branch_stride=16, **settings)
    assert branch_starts(tree_sample(tree(3, 1, 4), layout)) == [2, 5, 6]
    assert branch_starts(tree_sample(tree(), layout)) == [] == branch_lines(tree_sample(tree(), layout), layout)
    assert branch_starts(tree_sample(tree(3), layout)) == ([2] if layout.coordinate(0) else [])


def test_inspect_shows_the_step_that_training_takes(command, rows, tmp_path):
    path = tmp_path / "r.yaml"
    data = f"{{format: branches, train: '{rows.as_posix()}', validation: 0, max_branches_per_sample: 3}}"
    path.write_text(f"stages:\n  - data: {data}\n    train: {{samples_per_step: 6}}\n", encoding="utf-8")
    found = json.loads(command("inspect", path, "--json", "--epoch", 1).out)
    assert found["steps"] >= found["steps_per_epoch"] and 1 <= found["step"]["samples"] <= 6
    for shown in found["samples"]:
        assert len(shown["branch"]) == len(shown["ids"]) and set(shown["branch"]) <= {0, 128, 256, 384}
    drawn = command("inspect", path, "--samples", 3, "stages.0.branches={visibility: columnar}").out
    assert "sees main 1" in drawn and "together" not in drawn, "columnar branches are never merged"
    assert "together" in command("inspect", path, "--samples", 3).out
