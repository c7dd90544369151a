"""`stylora inspect`: the first samples of a recipe as training will read them, and how the first optimizer step is packed.

The steps come from the very function that training takes them from. Imports no torch and opens no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.text import Text

from stylora.errors import UserError
from stylora.forest import MicroBatch, Sample, build_trie
from stylora.forest.draw import KINDS, count_kinds, tokens_html, tree_text
from stylora.forest.forest import parents
from stylora.recipe.recipe import Recipe
from stylora.samples.branch_settings import Branches
from stylora.samples.objective import check_vocabulary, read_vocabulary
from stylora.samples.pieces import piece_of
from stylora.train.steps import Step, Steps

from .data import progress_bar
from .plan import open_tokenizer, plan_steps, read_data

STYLES = {kind: Style.parse(style) for kind, style in dict(trained="green", masked="bold yellow", context="dim", ahead="magenta").items()}
UNDERLINE = "\u0332"  # a combining mark: takes no column, and marks what is trained where there are no colours

Piece = Callable[[int], str | bytes]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One sample. source, part: of its window; sample_id: what its randomness comes from, with the seed and the epoch"""

    sample: Sample
    source: str
    part: str
    sample_id: tuple[int, int]

    @property
    def counts(self) -> dict[str, int]:
        """Tokens of each kind."""
        return count_kinds(self.sample)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """samples: the first of an epoch, in training order; step: its first optimizer step; piece: token id -> what it is written as"""

    recipe: Recipe
    epoch: int
    samples: list[Shown]
    steps: Steps
    step: Step
    piece: Piece

    def as_json(self) -> dict[str, Any]:
        """Ids and edges of every sample, counts, and the layout of the step."""
        stage = self.recipe.stages[0]
        return {
            "base": self.recipe.base, "objective": stage.objective.model_dump(mode="json"), "epoch": self.epoch,
            "steps": len(self.steps), "steps_per_epoch": self.steps.per_epoch,
            "samples": [sample_json(shown, self.piece) for shown in self.samples],
            "step": step_json(self.step),
        }  # fmt: skip


def inspect(recipe: Recipe, *, samples: int = 3, epoch: int = 0, console: Console, cache: Path | None = None) -> Inspection:
    """Build the first samples and the first step of an epoch (from 0). console: for the progress bar.

    Raises UserError for an epoch that training never reaches, and whatever reading raises.
    """
    stage = recipe.stages[0]
    tokenizer = open_tokenizer(recipe.base)
    vocabulary = read_vocabulary(tokenizer)
    check_vocabulary(stage.objective, vocabulary)
    with progress_bar(console) as progress:
        data = read_data(recipe, tokenizer, cache=cache, progress=progress)
    steps = plan_steps(stage, data, vocabulary, packs=True)
    if epoch >= len(steps.ends):
        reason = f"training ends after {len(steps):,} steps, {steps.per_epoch:,} an epoch"
        raise UserError("--epoch", got=str(epoch), expected=f"0 to {len(steps.ends) - 1}: {reason}")
    shown = [
        Shown(sample=steps.build(index, epoch), source=data.source(index), part=data.part(index), sample_id=data.sample_id(index))
        for index in data.epoch(epoch)[:samples].tolist()
    ]
    return Inspection(
        recipe=recipe, epoch=epoch, samples=shown, steps=steps, step=steps[steps.begin(epoch)], piece=piece_of(tokenizer)
    )


def sample_json(shown: Shown, piece: Piece) -> dict[str, Any]:
    """A sample with its tokens spelled out; parts of characters in hex."""
    forest, edges = shown.sample.forest, shown.sample.edges
    texts = ["" if token < 0 else piece(token) for token in forest.ids.tolist()]
    return {
        "source": shown.source, "part": shown.part, "sample_id": shown.sample_id, "counts": shown.counts,
        "ids": forest.ids.tolist(), "time": forest.time.tolist(), "branch": forest.branch.tolist(), "end": forest.end.tolist(),
        "texts": [text if isinstance(text, str) else text.hex(" ") for text in texts],
        "edges": [list(edge) for edge in zip(edges.source.tolist(), edges.target.tolist(), edges.weight.tolist(), strict=True)],
    }  # fmt: skip


def step_json(step: Step) -> dict[str, Any]:
    """What an optimizer step costs and how it is laid out."""
    edges = sum(len(batch.edge_source) for batch in step.batches)
    return {
        "samples": step.samples, "tokens": step.tokens, "forest_tokens": step.forest_tokens, "edges": edges, "weight": step.weight,
        "padding": padding_share(step.batches),
        "microbatches": [
            {"rows": len(batch.lengths), "row_tokens": batch.ids.shape[1], "tokens": batch.tokens, "masked": not batch.causal}
            for batch in step.batches
        ],
    }  # fmt: skip


def padding_share(batches: list[MicroBatch]) -> float:
    """Share of the computed positions that are padding, 0..1."""
    places = sum(batch.ids.size for batch in batches)
    return 1 - sum(batch.tokens for batch in batches) / places


def write_html(found: Inspection, path: Path, title: str) -> None:
    """The samples as one page."""
    path.write_text(tokens_html([shown.sample for shown in found.samples], found.piece, title), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- in the terminal


def show(found: Inspection, console: Console) -> None:
    """Legend, samples, and the first step."""
    style = coloured if console.is_terminal else marked
    for kind, meaning in KINDS.items():
        console.print(Text.from_ansi(f"{style(kind, kind)}{' ' * (10 - len(kind))}{meaning}"))
    for number, shown in enumerate(found.samples, start=1):
        told = ", ".join(f"{count:,} {kind} ({count / len(shown.sample):.0%})" for kind, count in shown.counts.items() if count)
        title = Text(f"sample {number}  ", style="bold")
        source = shown.source if found.steps.share_prefixes else f"《{shown.source}》"
        title.append(f"{shown.part}, {source}, {len(shown.sample):,} tokens: {told}", style="not bold")
        draw(title, shown.sample, found.piece, console)
        for line in branch_lines(shown.sample, found.recipe.stages[0].branches):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.steps.share_prefixes and len(found.samples) > 1:
        together = build_trie([shown.sample for shown in found.samples])
        title = Text("together  ", style="bold")
        title.append(f"{len(together):,} tokens instead of {sum(len(s.sample) for s in found.samples):,}", style="not bold")
        draw(title, together, found.piece, console)
    console.print()
    for line in step_lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def draw(title: Text, sample: Sample, piece: Piece, console: Console) -> None:
    """A tree under its title."""
    console.print()
    console.print(title, soft_wrap=True)
    drawing = tree_text(sample, piece, width=console.width, style=coloured if console.is_terminal else marked)
    console.print(Text.from_ansi(drawing), soft_wrap=True)


def branch_lines(sample: Sample, branches: Branches | None) -> list[str]:
    """Where each branch of a sample stands, and whom it sees; nothing for samples without branches.

        branch 1   coordinate 128, time 9 to 14, sees main 1 <
        branch 2   coordinate 256, time 9 to 12, sees main < 2
                   < what that one said at earlier times
    """
    forest = sample.forest
    starts = branch_starts(sample)
    if branches is None or not starts:
        return []
    others = "." if branches.visibility == "isolated" else "<"
    lines = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(forest)], strict=True), 1):
        sees = " ".join(str(each) if each == number else others for each in range(1, len(starts) + 1))
        place = f"coordinate {forest.branch[start]:,}, time {forest.time[start]:,} to {forest.time[end - 1]:,}"
        lines.append(f"branch {number:<3} {place}, sees main {sees}")
    legend = ". nothing of that one" if branches.visibility == "isolated" else "< what that one said at earlier times"
    return [*lines, f"           {legend}"] if len(starts) > 1 else lines


def branch_starts(sample: Sample) -> list[int]:
    """Where the branches of a row begin: at tokens that go on from the trunk's end, and where the coordinate changes; nothing for a single
    chain at one coordinate."""
    forest = sample.forest
    above = parents(forest)
    forks = np.flatnonzero(above != np.arange(-1, len(forest) - 1))  # they go on from somewhere else than the token before
    changes = np.flatnonzero(np.diff(forest.branch)) + 1
    return sorted({*forks.tolist(), *changes.tolist(), *(int(above[fork]) + 1 for fork in forks[:1])})


def coloured(kind: str, text: str) -> str:
    """As terminals colour it."""
    return STYLES[kind].render(text)


def marked(kind: str, text: str) -> str:
    """Where there are no colours: what is trained is underlined, masks show by themselves as ▢."""
    return "".join(char + UNDERLINE for char in text) if kind == "trained" else text


def step_lines(found: Inspection) -> list[str]:
    """The first step of the epoch in words."""
    step, train = found.step, found.recipe.stages[0].train
    told = step_json(step)
    lines = [
        f"training   {len(found.steps):,} steps, {'' if found.steps.counts is None else 'about '}{found.steps.per_epoch:,} an epoch",
        f"step {found.steps.begin(found.epoch) + 1:<6}{step.samples} samples, {step.tokens:,} tokens, {told['edges']:,} predictions",
        f"packing    micro-batches of at most {train.tokens_per_microbatch:,} tokens: {len(step.batches)}, {told['padding']:.1%} padding",
    ]
    for batch in told["microbatches"]:
        mask = "packed, with a mask" if batch["masked"] else "plain causal rows"
        lines.append(f"           {batch['rows']} rows x {batch['row_tokens']:,} ({mask}), {batch['tokens']:,} tokens")
    if found.steps.share_prefixes:
        saved = 1 - step.forest_tokens / step.tokens
        lines.insert(2, f"sharing    {step.forest_tokens:,} tokens are computed, {saved:.0%} saved: samples share what they begin with")
    if train.row_tokens is not None or found.steps.share_prefixes:
        lines.append("           if the base is proved to keep documents in a row apart, else one sample a row")
    return lines
