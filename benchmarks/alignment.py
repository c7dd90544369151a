"""What a second stage with KL gives back and what it costs: one recipe on the bundled base, trained in every way the table names.

    LoRA only          stage `style`
    LoRA * w           the same adapter with its update scaled, which costs nothing: the baseline (WiSE-FT, arXiv 2109.01903)
    two stages, beta   `align`: style trained on at a lower rate with CE + beta * KL to the base on the tokens that are learned
    end to end         KL from the first step on, as many steps as both stages have
    without gold       `align`, the token to be learned left out of both distributions (arXiv 2605.29498)
    general            `align` on three parts of general text in ten, without KL
    on general         `align` on three parts of general text in ten, KL on the general text alone

Not a race of programs but of settings. Style gain and forgetting are nats a token on held-out text against the base, style and general;
"kept" is the share of LoRA's style gain that is left, "taken back" the share of its forgetting that is gone, "over free" how much more is
taken back than by scaling the adapter until as much style is kept. Each seed draws its own windows, initialisation and continuations.

    python -m benchmarks alignment --work FOLDER --style FOLDER --held-out BOOK ... --general FOLDER --general-held-out FILE ...

Runs and figures are kept in `--work`: the same command goes on where it was stopped, and `--seeds` and `--ratios` may be split between
processes that share the folder. `--tables FILE` measures nothing: it writes the tables and the picture of docs/alignment.md from a result.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich.console import Console

from stylora.corpus.clean import Cleaning
from stylora.corpus.read import find_files, read_documents
from stylora.errors import UserError
from stylora.recipe.recipe import Recipe, parse_recipe
from stylora.run.demo import shipped_folder
from stylora.run.evaluate import SAMPLING, evaluate
from stylora.run.folder import write_json
from stylora.run.stages import train_stages
from stylora.train.logs import read_lines

from .report import ROOT, Json, with_tables

PAGE, PICTURE = ROOT / "docs/alignment.md", ROOT / "docs/alignment.svg"
SWEEP = ROOT / "benchmarks/results/rate-and-epochs.json"

RATIOS = (0.0, 0.1)
BETAS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
WEIGHTS = (0.3, 0.5, 0.7, 0.9)
GOLDLESS = 0.5  # beta where the token to be learned is left out of both distributions
STRONG = 1.0  # beta where KL is held on general text, whose gradient does not work against what is learned
SHARE = 0.3  # of general text in that stage
FORGOT = 0.05  # nats a token from which shares of it say something
GENERATED = ("style_score", "fluency", "distinct_2", "degenerate", "repeated")
SPIKE, USUAL = 2.0, 20  # a loss above so many times the median of the last so many steps


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison; the defaults are the example books, so that it runs anywhere."""
    examples = shipped_folder() / "examples"
    parser.add_argument("--work", type=Path, help="folder for runs and figures, to go on from; by default a temporary one")
    parser.add_argument("--style", nargs="+", default=[str(examples / "wuxia")], help="folders or files of books")
    parser.add_argument("--held-out", nargs="+", default=["古寺钟声记", "梅花庄疑案"], help="books held out whole")
    parser.add_argument("--general", nargs="+", default=[str(examples / "modern")], help="folders or files of general text")
    parser.add_argument("--general-held-out", nargs="+", default=["办公室的一天", "旅行随笔"], help="general files held out")
    parser.add_argument("--held-out-characters", type=int, default=8000, help="of each book or file held out, from its beginning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS), help="shares of general text in training")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of 8 windows of 256 tokens in the first stage")
    parser.add_argument("--align-steps", type=int, default=40, help="in the second stage, at three tenths of the rate")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--tables", type=Path, metavar="FILE", help="measure nothing: write the page's tables and picture from this result")


def run(options: argparse.Namespace) -> Json:
    """{"settings", "rows", "ratios"}: one row per way and share of general text, figures as mean and spread over seeds."""
    if options.tables is not None:
        if not options.tables.is_file():
            raise UserError("--tables", got=str(options.tables), expected="a result of this comparison", do="make one with --out")
        result = json.loads(options.tables.read_text(encoding="utf-8"))
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
        draw(result["rows"], PICTURE)
        return result
    if options.quick:
        options.seeds, options.steps, options.align_steps, options.ratios = [0], 4, 2, [0.0]
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        books = {part: shortened(work / part, *given) for part, given in {
            "style": (options.style, options.held_out, options.held_out_characters),
            "general": (options.general, options.general_held_out, options.held_out_characters),
        }.items()}  # fmt: skip
        figures = {(ratio, seed): one(options, work, books, ratio, seed) for ratio in options.ratios for seed in options.seeds}
    rows = [row for ratio in options.ratios for row in table(ratio, [figures[ratio, seed] for seed in options.seeds])]
    return {
        "settings": {
            "seeds": options.seeds, "steps": options.steps, "align_steps": options.align_steps, "window": 256, "samples_per_step": 8,
            "learning_rate": options.learning_rate, "align_rate": 0.3 * options.learning_rate,
            "on_general": {"beta": STRONG, "general_ratio": SHARE}, "without_gold": {"beta": GOLDLESS},
            "held_out": options.held_out, "general_held_out": options.general_held_out,
            "held_out_characters": options.held_out_characters,
        },
        "rows": rows, "ratios": ratios(rows),
    }  # fmt: skip


def shortened(folder: Path, given: Sequence[str], held: Sequence[str], characters: int) -> tuple[list[str], list[str]]:
    """(paths to train and hold out from, names of what is held out): held-out works are cut, for they are read some forty times.

    Raises UserError for a work that is not there.
    """
    files = {file.stem: file for file in find_files(given)}
    missing = sorted(set(held) - set(files))
    if missing:
        raise UserError("--held-out", got=missing[0], expected="one of: " + ", ".join(sorted(files)))
    folder.mkdir(parents=True, exist_ok=True)
    cut = []
    for name in held:
        text = "\n".join(document.text for document in read_documents([files[name]], Cleaning()))[:characters]
        path = folder / f"{name}.txt"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # another process may be reading it
            path.write_text(text, encoding="utf-8")
        cut.append(str(path))
    return [str(file) for name, file in files.items() if name not in held] + cut, list(held)


def one(options: argparse.Namespace, work: Path, books: dict[str, Any], ratio: float, seed: int) -> Json:
    """Train and measure every way for one seed, or read what was measured: {way: figures}."""
    folder = work / f"ratio-{ratio:g}-seed-{seed}"
    kept = folder / "figures.json"
    console = Console(stderr=True)
    console.print(f"{folder}: training")
    recipe = every_way(options, folder, books, ratio, seed)
    train_stages(recipe, name="alignment", console=Console(quiet=True))  # refuses runs of other settings in this folder
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    names = [stage.name for stage in recipe.stages]
    sampling = SAMPLING.model_copy(update={"seed": seed, "max_new_tokens": 8 if options.quick else SAMPLING.max_new_tokens})
    console.print(f"{folder}: measuring")
    common: dict[str, Any] = dict(data=recipe, stage="style", sampling=sampling, seed=seed, console=Console(quiet=True))
    whole = evaluate([str(folder / name) for name in names], **common)["models"]
    scaled = evaluate([str(folder / "style")], weights=WEIGHTS, **common)["models"][1:]
    found = {"base": measured(whole[0], 0)}
    found |= {name: measured(entry, spikes(folder / name)) for name, entry in zip(names, whole[1:], strict=True)}
    found |= {f"style * {entry['weight']:g}": measured(entry, spikes(folder / "style")) for entry in scaled}
    write_json(kept, found)
    return found


def every_way(options: argparse.Namespace, folder: Path, books: dict[str, Any], ratio: float, seed: int) -> Recipe:
    """One recipe whose stages are the ways; all that begin with `style` continue its adapter."""
    (style, held), (general, general_held) = books["style"], books["general"]
    data = {
        "format": "novels", "train": style, "validation": held, "general": general, "general_validation": general_held,
        "general_ratio": ratio, "window": 256, "seed": seed,
    }  # fmt: skip
    train = {
        "max_steps": options.steps, "samples_per_step": 8, "tokens_per_microbatch": 4096, "learning_rate": options.learning_rate,
        "seed": seed, "eval_strategy": "no", "save_strategy": "no", "report_to": "none",
    }  # fmt: skip
    slower = {"max_steps": options.align_steps, "learning_rate": 0.3 * options.learning_rate}
    first = {"data": data, "adapter": {"r": 16, "alpha": 32}, "prompts": [], "train": train}
    stages: list[Json] = [{"name": "style", **first}]
    stages += [
        {"name": f"align {beta:g}", "continue": "style", "objective": {"kl": {"beta": beta}}, "train": slower} for beta in BETAS
    ]
    goldless = {"kl": {"beta": GOLDLESS, "drop_gold": True}}
    stages.append({"name": "without gold", "continue": "style", "train": slower, "objective": goldless})
    for name, beta in (("general", 0.0), ("on general", STRONG)):
        stages.append({"name": name, "continue": "style", "train": slower, "data": {"general_ratio": SHARE},
                       "objective": {"kl": {"beta": beta, "on": "general"}}})  # fmt: skip
    both = {**train, "max_steps": options.steps + options.align_steps}
    stages.append({"name": "end to end", **first, "objective": {"kl": {"beta": 0.1}}, "train": both})
    return parse_recipe({"base": "tiny", "output_dir": str(folder), "stages": stages}, [], name="alignment")


def measured(entry: Json, spikes: int) -> Json:
    """What the table needs of a model's evaluation."""
    generated = {name: _mean(entry["generation"][name]) for name in GENERATED}
    return {"style": entry["held_out"]["style"]["loss"], "general": entry["held_out"]["general"]["loss"], "spikes": spikes,
            "kl_to_base": entry["kl_to_base"]["style"], **generated}  # fmt: skip


def _mean(figure: Any) -> float:
    return figure["mean"] if isinstance(figure, dict) else figure


def spikes(folder: Path) -> int:
    """Logged losses that jumped."""
    losses = [row["loss"] for row in read_lines(folder / "metrics.jsonl") if "loss" in row]
    return sum(losses[i] > SPIKE * median(losses[max(0, i - USUAL) : i]) for i in range(1, len(losses)))


# ------------------------------------------------------------------------------------------------------------------ the table


def table(ratio: float, seeds: Sequence[Json]) -> list[Json]:
    """One row per way that was measured with every seed, LoRA only first. Where it forgot next to nothing, nothing can be taken back."""
    rows = [row(way, ratio, seeds) for way in seeds[0] if way != "base" and all(way in seed for seed in seeds)]
    if rows[0]["forgetting"] < FORGOT:
        return [each | {"taken_back": None, "over_free": None} for each in rows]
    free = free_curve(rows)
    return [each | {"over_free": each["taken_back"] - taken_back_free(free, each["kept"])} for each in rows]


def row(way: str, ratio: float, seeds: Sequence[Json]) -> Json:
    """Means over seeds, and the spread (standard deviation) of what is learned and lost."""
    gain = [seed["base"]["style"] - seed[way]["style"] for seed in seeds]
    lost = [seed[way]["general"] - seed["base"]["general"] for seed in seeds]
    theirs = [seed["base"]["style"] - seed["style"]["style"] for seed in seeds]
    forgotten = [seed["style"]["general"] - seed["base"]["general"] for seed in seeds]
    figures = {name: mean(seed[way][name] for seed in seeds) for name in (*GENERATED, "kl_to_base")}
    return {
        "way": way, "general_ratio": ratio, "style_gain": mean(gain), "style_gain_spread": spread(gain), "forgetting": mean(lost),
        "forgetting_spread": spread(lost), "kept": mean(gain) / mean(theirs), "taken_back": 1 - mean(lost) / mean(forgotten),
        **figures, "style_score_spread": spread([seed[way]["style_score"] for seed in seeds]),
        "spikes": sum(seed[way]["spikes"] for seed in seeds),
    }  # fmt: skip


def spread(values: Iterable[float]) -> float:
    """Standard deviation over seeds; 0 for one."""
    values = list(values)
    return stdev(values) if len(values) > 1 else 0.0


def free_curve(rows: Sequence[Json]) -> list[tuple[float, float]]:
    """(style kept, forgetting taken back) of the adapter scaled from 0 to 1, by what is kept."""
    scaled = [(row["kept"], row["taken_back"]) for row in rows if row["way"].startswith("style *")]
    return sorted([(0.0, 1.0), *scaled, (1.0, 0.0)])


def taken_back_free(curve: Sequence[tuple[float, float]], kept: float) -> float:
    """What scaling takes back where as much style is kept; between two weights a straight line. Above 1 nothing is free."""
    if kept >= 1:
        return 0.0
    for (left, high), (right, low) in zip(curve, curve[1:], strict=False):
        if left <= kept <= right:
            return high + (low - high) * (kept - left) / (right - left) if right > left else high
    return math.nan


def ratios(rows: Sequence[Json]) -> dict[str, float]:
    """The figures that the page quotes of every two-stage way."""
    return {
        f"{figure} of {row['way']} at {row['general_ratio']:g}": row[figure]
        for row in rows if not row["way"].startswith("style") for figure in ("kept", "taken_back", "over_free") if row[figure] is not None
    }  # fmt: skip


def tables(result: Json) -> dict[str, str]:
    """Marker -> table of docs/alignment.md: one for each share of general text, and the stored sweep's."""
    ways = {f"RATIO {share:g}": markdown([row for row in result["rows"] if row["general_ratio"] == share])
            for share in dict.fromkeys(row["general_ratio"] for row in result["rows"])}  # fmt: skip
    return ways | {"SWEEP": swept(json.loads(SWEEP.read_text(encoding="utf-8")))}


def swept(sweep: Json) -> str:
    """A sweep.json of learning rates and epochs as a table; a star marks the frontier."""
    lines = ["| learning rate | epochs | style | general text | |", "|---|---|---|---|---|"]
    for point in sweep["points"]:
        style, general = (point["parts"][part]["perplexity_change"] for part in ("style", "general"))
        rate, epochs = point["values"].values()
        lines.append(f"| {rate:g} | {epochs} | {style:+.1%} | {general:+.1%} | {'★' if point['frontier'] else ''} |")
    return "\n".join(lines)


def markdown(rows: Sequence[Json]) -> str:
    """The columns that answer the questions of the page."""
    columns = ["way", "style gain", "forgetting", "kept", "taken back", "over free", "style score", "base ppl", "distinct-2", "degenerate",
               "spikes"]  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [
        f"| {row['way']} | {row['style_gain']:.3f} ± {row['style_gain_spread']:.3f} "
        f"| {row['forgetting']:+.3f} ± {row['forgetting_spread']:.3f} | {row['kept']:.0%} | {_share(row['taken_back'], '.0%')} "
        f"| {_share(row['over_free'], '+.0%')} | {row['style_score']:.2f} ± {row['style_score_spread']:.2f} | {row['fluency']:.0f} "
        f"| {row['distinct_2']:.2f} | {row['degenerate']:.1%} | {row['spikes']} |"
        for row in rows
    ]
    return "\n".join(lines)


def _share(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def draw(rows: Sequence[Json], path: Path) -> None:
    """Style gain over forgetting, one panel per share of general text: the free curve, and every way with its spread."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shares = sorted({row["general_ratio"] for row in rows})
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stylora", "font.size": 10}):
        figure, panels = plt.subplots(1, len(shares), figsize=(5.2 * len(shares), 4.4), squeeze=False)
        for panel, share in zip(panels[0], shares, strict=True):
            own = [row for row in rows if row["general_ratio"] == share]
            free = [row for row in own if row["way"].startswith("style")]
            free.sort(key=lambda row: row["style_gain"])
            panel.plot([0, *(row["forgetting"] for row in free)], [0, *(row["style_gain"] for row in free)],
                       "o-", color="#888888", markersize=3, label="LoRA, update scaled 0 to 1")  # fmt: skip
            for number, each in enumerate(row for row in own if not row["way"].startswith("style")):
                panel.errorbar(each["forgetting"], each["style_gain"], each["style_gain_spread"], each["forgetting_spread"], fmt="o",
                               color=f"C{number}", capsize=2, label=each["way"])  # fmt: skip
            panel.set(title=f"general text in training: {share:.0%}", xlabel="forgetting: general loss above the base, nats per token",
                      ylabel="style gain: style loss below the base")  # fmt: skip
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
