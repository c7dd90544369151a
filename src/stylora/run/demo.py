"""`stylora demo`: a small base learns a style before your eyes. The shipped recipe, the bundled base, the example books."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stylora.errors import UserError
from stylora.evaluate.held_out import HeldOut, ratio_error
from stylora.recipe.recipe import parse_recipe, read_yaml
from stylora.samples.text import PARTS

from .measuring import Outcome
from .train import train

RECIPE = "recipes/wuxia.yaml"


def demo(out: Path | None, overrides: list[str], *, console: Console, force: bool = False) -> dict[str, Any]:
    """Train the shipped wuxia recipe and report held-out style and general loss before and after.

    Returns {"style": {"before", "after", ...}, "general": ..., "samples": {prompt: {"before", "after"}}, "seconds"}; losses are
    next-token nats on held-out clean text, whatever the objective.
    """
    started = time.perf_counter()
    shipped = shipped_folder()
    values = read_yaml(shipped / RECIPE)
    data = values["stages"][0]["data"]
    data["train"], data["general"] = str(shipped / data["train"]), str(shipped / data["general"])
    folder = out or Path(tempfile.mkdtemp(prefix="stylora-demo-"))
    recipe = parse_recipe({"output_dir": str(folder)} | values, overrides, name="demo")
    outcome = train(recipe, name="demo", console=console, force=force)
    if outcome is None:
        raise UserError(str(folder), got="a finished demo", expected="a folder without one", do="choose another --out, or give --force")
    result = report(outcome)
    result["seconds"] = round(time.perf_counter() - started, 1)
    show(result, console)
    return result


def shipped_folder() -> Path:
    """Where examples/ and recipes/ lie: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    return package if (package / "examples").is_dir() else package.parents[1]


def report(outcome: Outcome) -> dict[str, Any]:
    """First against last evaluation."""
    before, after = outcome.held_out[0], outcome.held_out[-1]
    result: dict[str, Any] = {part: compared(before[part], after[part]) for part in before}
    first, last = (outcome.samples[0], outcome.samples[-1]) if outcome.samples else ({}, {})
    result["samples"] = {prompt: {"before": first[prompt], "after": last[prompt]} for prompt in first}
    return result | {"folder": str(outcome.folder), "steps": outcome.steps, "tokens": outcome.tokens}


def compared(before: HeldOut, after: HeldOut) -> dict[str, float]:
    """Nats per token before and after with standard errors, and the change of perplexity with that of the paired difference."""
    change = after.loss - before.loss
    return {
        "before": before.loss, "before_error": before.error, "after": after.loss, "after_error": after.error,
        "change": change, "change_error": ratio_error(after.nats - before.nats, before.tokens),
        "perplexity_before": before.perplexity, "perplexity_after": after.perplexity, "perplexity_change": math.expm1(change),
        "per_character_before": before.loss_per_character, "per_character_after": after.loss_per_character,
        "tokens": int(np.sum(before.tokens)), "windows": len(before.tokens),
    }  # fmt: skip


def show(result: dict[str, Any], console: Console) -> None:
    """The table and the two continuations."""
    table = Table(title="held-out next-token loss, nats per token (± standard error over windows)")
    for column in ("", "before", "after", "change (paired)", "perplexity"):
        table.add_column(column, justify="right" if column else "left")
    for part in PARTS:
        if part not in result:  # nothing of it was held out
            continue
        row = result[part]
        table.add_row(
            part, f"{row['before']:.3f} ± {row['before_error']:.3f}", f"{row['after']:.3f} ± {row['after_error']:.3f}",
            f"{row['change']:+.3f} ± {row['change_error']:.3f}",
            f"{row['perplexity_before']:.1f} → {row['perplexity_after']:.1f} ({row['perplexity_change']:+.1%})",
        )  # fmt: skip
    console.print(table)
    for prompt, sample in result["samples"].items():
        for when in ("before", "after"):
            console.print(f"[bold]{when:>6}[/bold]  ", end="")
            console.print(prompt + sample[when].replace("\n", "↵"), markup=False, highlight=False)
    console.print(f"{result['seconds']:.0f} s in all; the run lies in {result['folder']}", highlight=False)
