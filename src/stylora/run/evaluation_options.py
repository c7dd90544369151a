"""What the command line of `stylora evaluate` says, as values: prompts of a file, checkpoints, weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from stylora.errors import UserError

Checkpoints = Sequence[int] | Literal["all"]


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines are none. Raises UserError for a file that can't be read or has none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(str(path), got="no such file", expected="a text file with one prompt a line") from None
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise UserError(str(path), got=type(error).__name__, expected="a readable text file in UTF-8 with one prompt a line") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(str(path), got="no prompt", expected="one prompt a line")
    return prompts


def read_checkpoints(text: str) -> Checkpoints:
    """`all`, or steps as in `100,200`. Raises UserError for anything else."""
    steps = [part.strip() for part in text.split(",")]
    if text == "all":
        return "all"
    if not all(step.isdecimal() for step in steps):
        raise UserError("--checkpoints", got=repr(text), expected="all, or steps as in 100,200")
    return sorted({int(step) for step in steps})


def read_weights(text: str) -> list[float]:
    """1, as trained, and the weights given as in `0.3,0.5`. Raises UserError for anything but numbers from 0."""
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = [math.nan]
    if not all(0 <= weight < math.inf for weight in weights):
        raise UserError("--weight", got=repr(text), expected="numbers from 0, as in 0.3,0.5")
    return list(dict.fromkeys([1.0, *weights]))
