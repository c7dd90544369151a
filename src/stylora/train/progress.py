"""What a run shows while it trains: one live line of figures in a terminal, one plain line per log elsewhere.

loss, learning rate, seconds a step, tokens a second (as the samples have them, and as the forest computes them), memory, GPU use, time
left.
"""

from __future__ import annotations

import time
from dataclasses import replace

import psutil
import torch
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback

from .trainer import ForestTrainer


class ProgressDisplay(TrainerCallback):
    """A rich display of the run. In a file or a pipe it prints a line at each log instead, at most one every `quiet` seconds."""

    def __init__(self, console: Console, *, quiet: float = 5.0) -> None:
        self.console, self.quiet = console, quiet
        self.trainer: ForestTrainer | None = None
        self.logs: dict[str, float] = {}
        self.printed = 0.0
        self.training_seconds = 0.0  # without evaluations and checkpoints
        self.bar = Progress(
            TextColumn("[bold]step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=console,
        )  # fmt: skip
        self.live = Live(console=console, refresh_per_second=4, transient=False)

    def on_train_begin(self, args, state, control, **_):
        assert self.trainer is not None
        self.first_step, self.before = state.global_step, replace(self.trainer.progress)
        self.task = self.bar.add_task("steps", total=state.max_steps, completed=state.global_step)
        if self.console.is_terminal:
            self.live.start()

    def on_log(self, args, state, control, logs=None, **_):
        self.logs |= {key: value for key, value in (logs or {}).items() if isinstance(value, float | int)}
        measured = any(key.startswith("eval_") for key in logs or {})
        if not self.console.is_terminal and (measured or time.perf_counter() - self.printed > self.quiet):
            self.printed = time.perf_counter()
            figures = [("left", self.left(state)), *self.figures(state)]
            self.console.print(f"step {state.global_step}/{state.max_steps}  " + "  ".join(f"{k} {v}" for k, v in figures))

    def on_step_begin(self, args, state, control, **_):
        self.step_started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        self.training_seconds += time.perf_counter() - self.step_started
        self.bar.update(self.task, completed=state.global_step)
        if self.console.is_terminal:
            table = Table.grid(padding=(0, 2))
            for name, value in self.figures(state):
                table.add_row(f"[dim]{name}", value)
            self.live.update(_stacked(self.bar, table))

    def on_train_end(self, args, state, control, **_):
        self.close()

    def close(self) -> None:
        """Give the terminal back; also after an error."""
        if self.live.is_started:
            self.live.stop()

    def left(self, state) -> str:
        """Time to the end at the speed so far, without what evaluations will take."""
        done = state.global_step - self.first_step
        seconds = self.training_seconds / done * (state.max_steps - state.global_step) if done else 0.0
        return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s" if done else "?"

    def figures(self, state) -> list[tuple[str, str]]:
        """(name, value) pairs of the display, in order."""
        seconds = max(self.training_seconds, 1e-9)
        steps = max(1, state.global_step - self.first_step)
        assert self.trainer is not None
        done, before = self.trainer.progress, self.before
        tokens, forest_tokens = done.tokens - before.tokens, done.forest_tokens - before.forest_tokens
        rows = [
            ("loss", f"{self.logs.get('loss', float('nan')):.4f}"),
            ("lr", f"{self.logs.get('learning_rate', 0.0):.2e}"),
            ("s/step", f"{seconds / steps:.2f}"),
            ("tokens/s", f"{tokens / seconds:,.0f} (forest {forest_tokens / seconds:,.0f})"),
            ("memory", memory()),
        ]
        if torch.cuda.is_available():
            rows.append(("GPU", gpu_use()))
        rows += [(key.replace("eval_", "eval/", 1), f"{value:.4f}") for key, value in self.logs.items() if key.startswith("eval_")]
        return rows


def _stacked(*parts: RenderableType) -> Table:
    table = Table.grid()
    for part in parts:
        table.add_row(part)
    return table


def memory() -> str:
    """Of the GPU where there is one, the most it took so far; else what the process takes now."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"{psutil.Process().memory_info().rss / 2**30:.1f} GiB"


def memory_share() -> float:
    """The same as a share of all there is."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return psutil.Process().memory_info().rss / psutil.virtual_memory().total


def gpu_use() -> str:
    """Share of the last second in which the GPU was busy."""
    from pynvml import NVMLError

    try:
        return f"{torch.cuda.utilization()} %"
    except (NVMLError, RuntimeError):  # the driver does not tell, as on a slice of a GPU
        return "unknown"
