"""Logs line by line, and cut back to the byte they were at when a checkpoint looked."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from stylora.train.logs import MetricsFile, append_line, cut_back, log_sizes, read_lines

NAMES = ["metrics.jsonl", "held_out.jsonl", "samples.jsonl", "events.out.tfevents.1.host"]
ROWS = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8), max_size=3)
LINES = st.lists(st.tuples(st.sampled_from(NAMES), ROWS), max_size=8)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(deadline=None)
@given(st.lists(ROWS, max_size=5))
def test_what_is_appended_is_read_line_by_line(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        assert read_lines(path) == []
        for row in rows:
            append_line(path, row)
        assert read_lines(path) == rows
        if rows:
            assert path.read_bytes().count(b"\n") == len(rows)


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\x85", "\x0b", "\r", "\n", "\x1e", "剑", "\U00020000"])
def test_letters_that_others_take_for_the_end_of_a_line(letter, tmp_path):
    row = {"step": 1, "texts": [f"a{letter}b"]}
    append_line(tmp_path / "samples.jsonl", row)
    append_line(tmp_path / "samples.jsonl", row)
    assert read_lines(tmp_path / "samples.jsonl") == [row, row]


def test_chinese_can_be_read_in_the_file(tmp_path):
    append_line(tmp_path / "samples.jsonl", {"text": "剑光一闪"})
    assert (tmp_path / "samples.jsonl").read_bytes() == '{"text": "剑光一闪"}\n'.encode()


@settings(max_examples=50, deadline=None)
@given(before=LINES, after=LINES, broken=st.binary(max_size=9))
def test_cutting_back_restores_every_byte(before, after, broken):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, row in before:
            append_line(folder / file, row)
        sizes, whole = log_sizes(folder), contents(folder)
        assert sizes == {file: len(content) for file, content in whole.items()}
        for file, row in after:
            append_line(folder / file, row)
        if after:  # a kill may come in the middle of a line
            with (folder / after[-1][0]).open("ab") as last:
                last.write(broken)
        cut_back(folder, sizes)
        assert contents(folder) == whole
        cut_back(folder, sizes)
        assert contents(folder) == whole


def test_only_logs_are_logs(tmp_path):
    append_line(tmp_path / "metrics.jsonl", {"step": 1})
    sizes = log_sizes(tmp_path)
    others = {"recipe.yaml": "a: 1", "metrics.json": "{}", "notes.jsonl": "{}\n", "stack.json": "{}"}
    for name, content in others.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    append_line(tmp_path / "checkpoints" / "x.jsonl", {"step": 2})
    append_line(tmp_path / "metrics.jsonl", {"step": 2})
    (tmp_path / "samples.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "events.out.tfevents.2.host").write_bytes(b"late")
    cut_back(tmp_path, sizes)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "checkpoints", "metrics.jsonl"])
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1}]
    assert all((tmp_path / name).read_text(encoding="utf-8") == content for name, content in others.items())
    assert read_lines(tmp_path / "checkpoints" / "x.jsonl") == [{"step": 2}]


def test_tensorboards_events_are_logs(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 1.0, 1)
    (name,) = log_sizes(tmp_path)
    whole = (tmp_path / name).read_bytes()
    sizes = log_sizes(tmp_path)
    with SummaryWriter(str(tmp_path), filename_suffix=".later") as writer:
        writer.add_scalar("loss", 2.0, 2)
    assert len(log_sizes(tmp_path)) == 2
    cut_back(tmp_path, sizes)
    assert contents(tmp_path) == {name: whole}


def test_a_file_that_is_gone_or_shorter_stays_so(tmp_path):
    append_line(tmp_path / "metrics.jsonl", {"step": 1})
    cut_back(tmp_path, {"metrics.jsonl": 1000, "gone.jsonl": 5})
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1}] and not (tmp_path / "gone.jsonl").exists()


def test_metrics_are_named_by_where_they_come_from(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.on_log(None, SimpleNamespace(global_step=3), None, logs={"loss": 1.25, "eval_style": 2.0, "eval_eval_x": 1, "retrieval_y": 0})
    file.on_log(None, SimpleNamespace(global_step=4), None)
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 3, "loss": 1.25, "eval/style": 2.0, "eval/eval_x": 1, "retrieval_y": 0}, {"step": 4},
    ]  # fmt: skip
