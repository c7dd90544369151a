"""What a run writes line by line: metrics.jsonl, what evaluators add (held_out.jsonl, task.jsonl, samples.jsonl), TensorBoard's events.

Every line carries its `step`. A checkpoint remembers how long each file was, so that a resumed run cuts them back to that moment and the
finished files are those of a run that was never interrupted.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

LINES = ("metrics.jsonl", "held_out.jsonl", "task.jsonl", "samples.jsonl")
EVENTS = "events.out.tfevents.*"


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON object to a file of them."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every object in such a file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:  # not splitlines: it also breaks at U+2028 and U+0085, which a text may hold
        return [json.loads(line) for line in file]


def log_sizes(folder: Path) -> dict[str, int]:
    """File name -> bytes of every log in a run's folder, now also on disk."""
    sizes = {}
    for path in _logs(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.name] = path.stat().st_size
    return sizes


def cut_back(folder: Path, sizes: dict[str, int]) -> None:
    """Make the logs what they were when `log_sizes` looked: later lines go, later files go."""
    for path in _logs(folder):
        if path.name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[path.name]:
            os.truncate(path, sizes[path.name])


def _logs(folder: Path) -> list[Path]:
    return sorted([*(folder / name for name in LINES if (folder / name).is_file()), *folder.glob(EVENTS)])


class MetricsFile(TrainerCallback):
    """`metrics.jsonl`: one JSON object a line for every log, `eval_x` written as `eval/x`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args, state, control, logs=None, **_):
        named = {re.sub("^eval_", "eval/", key): value for key, value in (logs or {}).items()}
        append_line(self.path, {"step": state.global_step} | named)
