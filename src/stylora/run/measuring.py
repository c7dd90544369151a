"""What a training measures as it goes, and what it leaves in memory: held-out loss, the task's own metrics, the fixed prompts continued.

Each evaluation is a line of held_out.jsonl, task.jsonl and samples.jsonl, so a resumed run knows those before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from stylora.evaluate.held_out import HeldOut, measure, precision_context
from stylora.evaluate.judging import errors
from stylora.evaluate.task import flat
from stylora.generate.decode import generate
from stylora.model.base import Base
from stylora.model.device import Device
from stylora.model.forest_model import ForestModel
from stylora.model.processes import agreed, rank, wait_for_all
from stylora.recipe.recipe import Stage
from stylora.train.logs import append_line, read_lines
from stylora.train.trainer import Evaluator

from .plan import StageData, shares_prefixes
from .task import TaskAtHand, write_errors

HELD_OUT, TASK_METRICS, SAMPLES = "held_out.jsonl", "task.jsonl", "samples.jsonl"
WRONG = 3  # wrong answers shown at an evaluation


@dataclass(kw_only=True)
class Outcome:
    """What a training left.

    folder: of the stage; steps, tokens: trained, of the whole run; seconds: of this process's part of it
    """

    folder: Path
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    held_out: list[dict[str, HeldOut]] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)

    def read(self) -> None:
        """Fill in the evaluations: part ("style", "general") -> figures, and prompt -> continuation; the first is before the first step."""
        rows = read_lines(self.folder / HELD_OUT)
        self.held_out = [{part: HeldOut.from_json(found) for part, found in row.items() if part != "step"} for row in rows]
        self.samples = [row["samples"] for row in read_lines(self.folder / SAMPLES)]


def evaluators(
    stage: Stage, folder: Path, base: Base, data: StageData, device: Device, console: Console, *, task: TaskAtHand | None,
    packs: bool,
) -> list[Evaluator]:  # fmt: skip
    """Held-out loss of each part, scored by all processes; the task's questions and the prompts, answered by the first.

    packs: was the base proved to keep the branches of a tree apart?
    """

    def held_out(model: ForestModel, step: int) -> dict[str, float]:
        with precision_context(device.device, device.dtype):
            found = {
                part: measure(
                    model, samples, data.validation_characters[part], tokens_at_once=stage.train.tokens_per_microbatch,
                    share_prefixes=packs and shares_prefixes(stage),
                )
                for part, samples in data.validation_samples.items()
                if any(len(sample.edges.weight) for sample in samples)  # a passage of one token predicts nothing
            }  # fmt: skip
        if rank() == 0:
            append_line(folder / HELD_OUT, {"step": step} | {part: figures.as_json() for part, figures in found.items()})
        return {part: figures.loss for part, figures in found.items()}

    def answers(model: ForestModel, step: int) -> dict[str, float]:
        assert task is not None
        found: dict[str, float] = {}
        if rank() == 0:
            with precision_context(device.device, device.dtype):
                # labels are scored, which is fast and says how sure the model is; JSON is written as the model likes, which may be broken
                done = task.asks.examine(model, task.questions, constrain=task.asks.kind == "label")
            append_line(folder / TASK_METRICS, {"step": step, "metrics": done.metrics})
            write_errors(folder, done.rows, task.asks.kind)
            for wrong in list(errors(done.rows, task.asks.kind))[:WRONG]:
                told = f"  wrong: {wrong['input']} -> {wrong['got'] or '(nothing)'}, expected {wrong['expected']}"
                console.print(told.replace("\n", "↵"), markup=False, highlight=False)
            found = flat(done.metrics)
        return agreed(found)

    def continuations(model: ForestModel, step: int) -> dict[str, float]:
        if rank() == 0:
            with precision_context(device.device, device.dtype):
                found = generate(model.model, base.tokenizer, stage.prompts, stage.sampling, chat=stage.data.format == "chat")
            append_line(folder / SAMPLES, {"step": step, "samples": {each.prompt: each.text for each in found}})
            for each in found:
                between = " -> " if stage.data.format == "chat" else ""
                console.print(f"  [bold]{escape(each.prompt)}[/bold]{between}", end="", highlight=False)
                console.print(each.text, markup=False, highlight=False)
        wait_for_all()
        return {}

    asked = task is not None and bool(task.questions)
    return [held_out, *([answers] if asked else []), *([continuations] if stage.prompts else [])]
