"""Which objective learns a style best, and what it forgets: clm, span and fim, with and without general text, at equal tokens.

Not a race of programs but of settings: every contender is the same recipe on the bundled base with one axis changed, on whole held-out
books. Perplexity per character of held-out style and general text, over seeds.

    python -m benchmarks objectives --style FOLDER --held-out BOOK ... --general FOLDER --general-held-out FILE ...
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from stylora.evaluate.held_out import HeldOut
from stylora.recipe.recipe import parse_recipe
from stylora.run.demo import shipped_folder
from stylora.run.train import train

KINDS = ("clm", "span", "fim")
RATIOS = (0.0, 0.1)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison; the defaults are the example books, so that it runs anywhere."""
    parser.add_argument("--style", default=str(shipped_folder() / "examples/wuxia"), help="folder of books")
    parser.add_argument("--held-out", nargs="+", default=["古寺钟声记", "梅花庄疑案"], help="books held out whole")
    parser.add_argument("--general", default=str(shipped_folder() / "examples/modern"), help="folder of general text")
    parser.add_argument("--general-held-out", nargs="+", default=["办公室的一天", "旅行随笔"], help="general files held out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=160, help="optimizer steps of 8 windows of 256 tokens")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """`{"settings", "rows", "ratios"}`: one row per objective and mix, figures as mean and spread over seeds."""
    steps, seeds = (4, 1) if options.quick else (options.steps, options.seeds)
    rows = []
    for kind, ratio in itertools.product(options.kinds, options.ratios):
        runs = [_run(options, kind, ratio, seed, steps) for seed in range(seeds)]
        rows.append(_row(kind, ratio, runs))
        Console(stderr=True).print(rows[-1])
    return {
        "settings": {"steps": steps, "tokens": steps * 8 * 256, "seeds": seeds, "learning_rate": options.learning_rate,
                     "style_held_out": options.held_out, "general_held_out": options.general_held_out},
        "rows": rows, "ratios": _ratios(rows),
    }  # fmt: skip


def _run(options: argparse.Namespace, kind: str, ratio: float, seed: int, steps: int) -> list[dict[str, HeldOut]]:
    with tempfile.TemporaryDirectory() as folder:
        stage = {
            "name": "style",
            "data": {
                "format": "novels", "train": options.style, "validation": options.held_out, "general": options.general,
                "general_validation": options.general_held_out, "general_ratio": ratio, "window": 256, "seed": seed,
            },
            "objective": {"kind": kind}, "adapter": {"r": 16, "alpha": 32}, "prompts": [],
            "train": {
                "max_steps": steps, "samples_per_step": 8, "tokens_per_microbatch": 4096, "learning_rate": options.learning_rate,
                "seed": seed, "eval_strategy": "no", "save_strategy": "no", "report_to": "none", "logging_steps": 50,
            },
        }  # fmt: skip
        recipe = parse_recipe({"base": "tiny", "output_dir": folder, "stages": [stage]}, [], name=f"{kind} {ratio}")
        outcome = train(recipe, name=kind, console=Console(stderr=True, quiet=True), force=True)
    assert outcome is not None
    return outcome.held_out


def _row(kind: str, ratio: float, runs: list[list[dict[str, HeldOut]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"objective": kind, "general_ratio": ratio}
    for part in ("style", "general"):
        before = [held[0][part].perplexity_per_character for held in runs]
        after = [held[-1][part].perplexity_per_character for held in runs]
        changes = [math.expm1(held[-1][part].loss - held[0][part].loss) for held in runs]
        row[part] = {
            "ppl_per_character_before": mean(before), "ppl_per_character_after": mean(after), "ppl_per_character_spread": _spread(after),
            "token_ppl_change": mean(changes), "token_ppl_change_spread": _spread(changes),
        }  # fmt: skip
    return row


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Style perplexity after training, each contender against `clm` with the same mix; above 1 is worse."""
    style = {(row["objective"], row["general_ratio"]): row["style"]["ppl_per_character_after"] for row in rows}
    return {
        f"style_ppl_{kind}_vs_clm_at_{ratio}": figure / style["clm", ratio]
        for (kind, ratio), figure in style.items() if kind != "clm" and ("clm", ratio) in style
    }  # fmt: skip
