"""What a training measures as it goes, and what it leaves in memory: held-out loss, the fixed prompts continued.

Each evaluation is a line of held_out.jsonl and samples.jsonl, so a resumed run knows those before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from stylora.evaluate.held_out import HeldOut, measure, precision_context
from stylora.generate.decode import generate
from stylora.model.base import Base
from stylora.model.device import Device
from stylora.model.forest_model import ForestModel
from stylora.model.processes import rank, wait_for_all
from stylora.recipe.recipe import Stage
from stylora.samples.chat_data import ChatData
from stylora.samples.text import TextData
from stylora.train.logs import append_line, read_lines
from stylora.train.trainer import Evaluator

HELD_OUT, SAMPLES = "held_out.jsonl", "samples.jsonl"


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


def evaluators(stage: Stage, folder: Path, base: Base, data: TextData | ChatData, device: Device, console: Console) -> list[Evaluator]:
    """Held-out loss of each part, scored by all processes; and the prompts continued, by the first."""

    def held_out(model: ForestModel, step: int) -> dict[str, float]:
        with precision_context(device.device, device.dtype):
            found = {
                part: measure(model, samples, data.validation_characters[part], tokens_at_once=stage.train.tokens_per_microbatch)
                for part, samples in data.validation_samples.items()
                if any(len(sample.edges.weight) for sample in samples)  # a passage of one token predicts nothing
            }  # fmt: skip
        if rank() == 0:
            append_line(folder / HELD_OUT, {"step": step} | {part: figures.as_json() for part, figures in found.items()})
        return {part: figures.loss for part, figures in found.items()}

    def continuations(model: ForestModel, step: int) -> dict[str, float]:
        if rank() == 0:
            with precision_context(device.device, device.dtype):
                answers = generate(model.model, base.tokenizer, stage.prompts, stage.sampling)
            append_line(folder / SAMPLES, {"step": step, "samples": {answer.prompt: answer.text for answer in answers}})
            for answer in answers:
                console.print(f"  [bold]{escape(answer.prompt)}[/bold]", end="", highlight=False)
                console.print(answer.text, markup=False, highlight=False)
        wait_for_all()
        return {}

    return [held_out, *([continuations] if stage.prompts else [])]
