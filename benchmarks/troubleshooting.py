"""Symptoms provoked and cured: the bundled base on the example novels, once as it goes wrong and once with each cure.

Not a race of programs but of settings: every row is the same recipe with one thing changed.

    RATE        learning rates, held against the right one
    EPOCHS      one short book read too often; early stopping, dropout, a lower rate, more books
    FORGETTING  without and with general text
    MEMORY      smaller micro-batches, gradient checkpointing: peak memory above the model and time, each in a process of its own
    SPEED       precision, windows, padding: time a token, likewise

What is reported are losses, ratios, and the symptoms the program itself saw (`stylora.train.symptoms`). The tables of
docs/troubleshooting.md are made from the result: `--tables FILE` writes them anew, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import psutil
from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from stylora.errors import UserError
from stylora.model.device import choose_device
from stylora.recipe.recipe import parse_recipe
from stylora.run.demo import shipped_folder
from stylora.run.train import train
from stylora.train.logs import read_lines
from stylora.train.symptoms import GENERAL, HELD_OUT, Computed, curve, ends, look, seen, slow
from stylora.train.trainer import TrainingStopped

from .report import ROOT, Json, Measure, PeakMemory, answer, apart, take_turns, with_tables

PAGE = ROOT / "docs/troubleshooting.md"
RIGHT = 1e-3  # the shipped recipe's rate for this base
HASTY = 3e-3  # at which a book read eight times is learned by heart
UNEVEN = "passages of uneven length"
BOOK_STEPS = 9  # of an epoch of that book, 4 windows a step


@dataclass(frozen=True, kw_only=True)
class Settings:
    """rates: learning rates tried; rate_steps: optimizer steps of 8 windows of 256 tokens in each of those runs, and on forgetting

    ratios: shares of general text; epochs: over one book; cures: of reading it too often, with the most epochs
    gentle: also try a third of the rate against forgetting; eval_steps: share of a run between two measurements
    budgets, windows: tokens; timed_steps: under the clock, after a first one; rounds: of everything timed, in turns
    """

    rates: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    rate_steps: int = 60
    slow_warmup: bool = True
    gentle: bool = True
    eval_steps: float = 0.125
    ratios: tuple[float, ...] = (0.1, 0.2)
    epochs: tuple[int, ...] = (1, 3, 8)
    cures: tuple[str, ...] = ("early stopping", "adapter.dropout 0.1", "a third of the rate", "seven books, as many steps")
    budgets: tuple[int, ...] = (2048, 1024)
    windows: tuple[int, ...] = (128, 1024)
    padding: bool = True
    timed_steps: int = 6
    rounds: int = 2
    seed: int = 0


FULL = Settings()
QUICK = replace(
    FULL, rates=(1e-2, 1e-3, 1e-4), rate_steps=10, slow_warmup=False, gentle=False, eval_steps=0.5, ratios=(0.2,), epochs=(1, 2),
    cures=("adapter.dropout 0.1",), budgets=(2048,), windows=(), padding=False, timed_steps=3, rounds=1,
)  # fmt: skip

NOTES = [
    "losses in nats a token; training loss: means over the first and the last steps; held out: whole books and files",
    "memory: most resident memory of training less what was resident when it began; time: a step's median over its tokens",
    "one seed; every row of a table differs from the one it is held against in what its name says",
]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison."""
    parser.add_argument("--tables", type=Path, metavar="FILE", help="measure nothing: write the page's tables from this result")


def run(options: argparse.Namespace) -> Json:
    """The comparison as the command line asks for it; with `--tables` a stored one."""
    if options.tables is None:
        return compare(QUICK if options.quick else FULL, apart("benchmarks.troubleshooting"))
    if not options.tables.is_file():
        raise UserError("--tables", got=str(options.tables), expected="a result of this comparison", do="make one with --out")
    result = json.loads(options.tables.read_text(encoding="utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
    return result


def compare(settings: Settings, measure: Measure) -> Json:
    """Losses in this process, memory and time in processes of their own."""
    with tempfile.TemporaryDirectory(prefix="stylora-benchmark-") as folder:
        made = uneven_passages(Path(folder) / "passages.jsonl")
        timed = timed_tasks(settings, made)
        measured = take_turns(timed, settings.rounds, lambda task: measure(task | {"cache": folder}))
        rows = learn_all(learning_tasks(settings), Path(folder))
    rows += timed_rows(timed, measured)
    return {"settings": asdict(settings), "rows": rows, "ratios": ratios(rows), "notes": NOTES}


# -------------------------------------------------------------------------------------------------------------- recipes


def stage(settings: Settings, *, data: Json | None = None, adapter: Json | None = None, **changes: Any) -> Json:
    """The recipe everything is a change of: six books to learn, two held out, general text only measured."""
    examples = shipped_folder() / "examples"
    books = {
        "train": str(examples / "wuxia"), "validation": ["古寺钟声记", "梅花庄疑案"], "general": str(examples / "modern"),
        "general_validation": ["办公室的一天", "旅行随笔"], "general_ratio": 0.0, "window": 256, "seed": settings.seed,
    }  # fmt: skip
    usual = {
        "samples_per_step": 8, "tokens_per_microbatch": 4096, "learning_rate": RIGHT, "eval_steps": settings.eval_steps,
        "save_strategy": "no", "report_to": "none", "seed": settings.seed,
    }  # fmt: skip
    return {"data": books | (data or {}), "adapter": {"r": 16, "alpha": 32} | (adapter or {}), "prompts": [], "train": usual | changes}


def one_book() -> Json:
    """One book to learn, another held out."""
    books = [str(shipped_folder() / f"examples/wuxia/{name}.txt") for name in ("双刀会全传", "古寺钟声记")]
    return {"train": books, "validation": ["古寺钟声记"]}


def task(table: str, contender: str, recipe: Json) -> Json:
    return {"table": table, "contender": contender, "variant": {}, "stage": recipe}


def learning_tasks(settings: Settings) -> list[Json]:
    """What is held against the others of its table comes first in it: it is the reference of the ratios."""
    steps: Json = {"max_steps": settings.rate_steps}
    rates = sorted(settings.rates, key=lambda rate: rate != RIGHT)
    tasks = [task("RATE", f"learning_rate {rate:.0e}", stage(settings, learning_rate=rate, **steps)) for rate in rates]
    if settings.slow_warmup:
        tasks.append(task("RATE", f"learning_rate {RIGHT:.0e}, warmup_steps 0.5", stage(settings, warmup_steps=0.5, **steps)))
    tasks.append(task("FORGETTING", "no general text", tasks[0]["stage"]))
    tasks += [
        task("FORGETTING", f"general_ratio {ratio}", stage(settings, data={"general_ratio": ratio}, **steps)) for ratio in settings.ratios
    ]
    if settings.gentle:
        tasks.append(task("FORGETTING", "a third of the rate", stage(settings, learning_rate=RIGHT / 3, **steps)))
    return tasks + overfitting_tasks(settings)


def overfitting_tasks(settings: Settings) -> list[Json]:
    """One book too often, the most epochs first; then every cure of it."""
    read: Json = {"data": one_book(), "samples_per_step": 4, "learning_rate": HASTY}
    most = max(settings.epochs)
    tasks = [
        task("EPOCHS", f"{epochs} epochs" if epochs > 1 else "1 epoch", stage(settings, **read, num_train_epochs=epochs))
        for epochs in sorted(settings.epochs, reverse=True)
    ]
    cures: dict[str, Json] = {
        "early stopping": {
            "metric_for_best_model": "style", "early_stopping_patience": 2, "save_strategy": "steps", "save_steps": 1_000_000,
        },
        "adapter.dropout 0.1": {"adapter": {"dropout": 0.1}},
        "a third of the rate": {"learning_rate": HASTY / 3},
        "seven books, as many steps": {"data": {"validation": ["古寺钟声记"]}, "max_steps": BOOK_STEPS * most},
    }  # fmt: skip
    for name in settings.cures:
        tasks.append(task("EPOCHS", f"{most} epochs, {name}", stage(settings, **read | {"num_train_epochs": most} | cures[name])))
    return tasks


def timed_tasks(settings: Settings, passages: Path) -> list[Json]:
    """4 096 tokens a step in one micro-batch is what the others are held against."""

    def timed(table: str, contender: str, *, data: Json | None = None, **changes: Any) -> Json:
        bare: Json = {"validation": 0, "general": None, "general_validation": 0, "general_ratio": None}
        usual: Json = {"samples_per_step": 16, "max_steps": settings.timed_steps + 1, "eval_strategy": "no"}
        return task(table, contender, stage(settings, data=bare | (data or {}), **usual | changes))

    tasks = [timed("MEMORY", "tokens_per_microbatch 4096")]
    for budget in settings.budgets:
        tasks.append(timed("MEMORY", f"tokens_per_microbatch {budget}", tokens_per_microbatch=budget))
    tasks.append(timed("MEMORY", "gradient_checkpointing true", gradient_checkpointing=True))
    tasks.append(timed("SPEED", "precision fp32", precision="fp32"))
    for window in settings.windows:
        tasks.append(timed("SPEED", f"window {window}", data={"window": window}, samples_per_step=4096 // window))
    if settings.padding:
        uneven = {"format": "text", "train": str(passages), "window": 1024, "min_window": 1}
        tasks.append(timed("SPEED", UNEVEN, data=uneven, tokens_per_microbatch=16_384))
        tasks.append(timed("SPEED", f"{UNEVEN}, tokens_per_microbatch 2048", data=uneven, tokens_per_microbatch=2048))
        tasks.append(timed("SPEED", f"{UNEVEN}, row_tokens 1024", data=uneven, tokens_per_microbatch=16_384, row_tokens=1024))
    return tasks


def uneven_passages(path: Path) -> Path:
    """The example books as rows of one text each: seven paragraphs as they are, then the next ten as one."""
    lines = [
        line for book in sorted((shipped_folder() / "examples/wuxia").glob("*.txt"))
        for line in book.read_text(encoding="utf-8").splitlines() if line.strip()
    ]  # fmt: skip
    rows = []
    for at in range(0, len(lines), 17):
        rows += [*lines[at : at + 7], "\n".join(lines[at + 7 : at + 17])]
    path.write_text("".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows if row), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------------ measuring


class Clock(TrainerCallback):
    """How many steps were planned, seconds of each but the first, peak memory since training began, and what the first step computes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, args, state, control, train_dataloader=None, **_):
        batches = train_dataloader.dataset[0].batches
        self.total_steps = state.max_steps
        self.tokens, self.padded = sum(batch.tokens for batch in batches), sum(batch.ids.size for batch in batches)
        self.memory = PeakMemory()

    def on_step_begin(self, args, state, control, **_):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if state.global_step > 1:
            self.seconds.append(time.perf_counter() - self.started)

    def on_train_end(self, args, state, control, **_):
        self.above, self.share = self.memory.above(), self.memory.peak() * 1e6 / psutil.virtual_memory().total


@contextmanager
def clocked() -> Iterator[Clock]:
    """The trainer made inside carries this clock. `train` takes no callbacks; transformers has a list of those that every trainer gets."""
    defaults, clock = cast(list[Any], DEFAULT_CALLBACKS), Clock()
    defaults.append(clock)
    try:
        yield clock
    finally:
        defaults.remove(clock)


def train_here(each: Json, cache: Path) -> tuple[list[Json], Clock]:
    """The rows of its metrics.jsonl, and the clock it ran under. A run that stopped for want of a number has one more row that says so."""
    print(f"training   {each['table']} {each['contender']}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="stylora-benchmark-") as folder:
        recipe = parse_recipe({"base": "tiny", "output_dir": folder, "stages": [each["stage"]]}, [], name=each["contender"])
        last: list[Json] = []
        with clocked() as clock:
            try:
                train(recipe, name="troubleshooting", console=Console(quiet=True), force=True, cache=cache)
            except TrainingStopped as stopped:
                last = [{"loss": math.nan, "why": str(stopped)}]
        return [*read_lines(next(Path(folder).rglob("metrics.jsonl"))), *last], clock


def learn(each: Json, cache: Path) -> Json:
    """One run's losses and what the program said of it."""
    rows, clock = train_here(each, cache)
    losses, style, general = (curve(rows, key) for key in ("loss", HELD_OUT, GENERAL))
    first, last = ends(list(losses.values()))
    best, trained = min(style, key=lambda step: style[step]), [value for step, value in style.items() if step]
    told = {symptom.kind for symptom in look(rows, total_steps=clock.total_steps)} | seen(rows, total_steps=clock.total_steps)
    return {
        "table": each["table"], "contender": each["contender"], "steps": max(losses), "training_first": first, "training_last": last,
        "style_first": style[min(style)], "style_best": style[best], "best_step": best, "style_last": style[max(style)],
        "style_saved": min(trained) if each["stage"]["train"].get("metric_for_best_model") else trained[-1],
        "general_first": general[min(general)], "general_last": general[max(general)], "said": sorted(told),
    }  # fmt: skip


def learn_all(tasks: list[Json], cache: Path) -> list[Json]:
    """A row for each; equal recipes are trained once."""
    done: dict[str, Json] = {}
    rows = []
    for each in tasks:
        recipe = json.dumps(each["stage"])
        if recipe not in done:
            done[recipe] = learn(each, cache)
        rows.append(done[recipe] | {"table": each["table"], "contender": each["contender"]})
    return rows


def measure(each: Json) -> Json:
    """Time and memory of a few steps."""
    _, clock = train_here(each, Path(each["cache"]))
    settings, fastest = each["stage"]["train"], choose_device().precision
    computed = Computed(
        precision=settings.get("precision", fastest), fastest=fastest, gradient_checkpointing=settings.get("gradient_checkpointing", False),
        memory_share=clock.share, tokens=clock.tokens, padded_tokens=clock.padded,
    )  # fmt: skip
    return {
        "seconds_per_token": median(clock.seconds) / clock.tokens, "padded_per_token": clock.padded / clock.tokens,
        "memory_mb": clock.above, "said": [symptom.kind for symptom in slow(computed)],
    }  # fmt: skip


def timed_rows(tasks: list[Json], measured: list[list[Json]]) -> list[Json]:
    """Medians of the rounds, held against the first task; uneven passages against the first of those."""
    rows: list[Json] = []
    for each, results in zip(tasks, measured, strict=True):
        middle = {name: median(result[name] for result in results) for name in ("seconds_per_token", "memory_mb", "padded_per_token")}
        rows.append({"table": each["table"], "contender": each["contender"], "said": results[0]["said"], **middle})
    against = {row["contender"]: (row["seconds_per_token"], row["memory_mb"]) for row in rows}
    for row in rows:
        name = UNEVEN if row["contender"].startswith(UNEVEN) else tasks[0]["contender"]
        row |= {"time_vs": row.pop("seconds_per_token") / against[name][0], "memory_vs": row["memory_mb"] / against[name][1]}
    return rows


def ratios(rows: list[Json]) -> dict[str, float]:
    """Perplexity after training against that of the first row of its table (RATE, EPOCHS: style; FORGETTING: general), time and memory."""
    found: dict[str, float] = {}
    for row in rows:
        reference = next(other for other in rows if other["table"] == row["table"])
        if row["table"] in ("MEMORY", "SPEED"):
            found |= {f"{what} {row['contender']}": row[f"{what}_vs"] for what in ("time", "memory")}
        elif row is not reference:
            key = "general_last" if row["table"] == "FORGETTING" else "style_saved"
            part = key.partition("_")[0]
            found[f"{part} perplexity {row['contender']} vs {reference['contender']}"] = math.exp(row[key] - reference[key])
    return found


# --------------------------------------------------------------------------------------------------- tables of the page


def tables(result: Json) -> dict[str, str]:
    """Marker -> what stands there: how it was measured, and the tables."""
    machine = result["hardware"]
    how = (
        f"{machine['cpu']}, {machine['cores']} cores, torch {result['versions']['torch']}; "
        f"{'a quick run' if result['quick'] else 'the full setting'}, load of the machine before it {machine['load_before']:.1f}."
    )
    made = {"MEASURED": how} | {name: learned_table(_of(result, name)) for name in ("RATE", "EPOCHS", "FORGETTING")}
    return made | {name: timed_table(_of(result, name)) for name in ("MEMORY", "SPEED")}


def learned_table(rows: list[Json]) -> str:
    """Losses of a table's runs."""
    columns = ["run", "steps", "training loss", "held out, best", "held out, of the adapter", "general text", "said"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append(
            f"| {row['contender']} | {row['steps']} | {row['training_first']:.2f} → {row['training_last']:.2f} "
            f"| {row['style_best']:.3f} at step {row['best_step']} | {row['style_first']:.3f} → {row['style_saved']:.3f} "
            f"| {row['general_first']:.3f} → {row['general_last']:.3f} | {_said(row)} |"
        )
    return "\n".join(lines)


def timed_table(rows: list[Json]) -> str:
    """Memory and time of a table's runs."""
    columns = ["run", "peak memory above the model", "time a token", "padded tokens a token", "said"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append(
            f"| {row['contender']} | {row['memory_mb']:,.0f} MB, × {row['memory_vs']:.2f} | × {row['time_vs']:.2f} "
            f"| {row['padded_per_token']:.2f} | {_said(row)} |"
        )
    return "\n".join(lines)


def _of(result: Json, name: str) -> list[Json]:
    return [row for row in result["rows"] if row["table"] == name]


def _said(row: Json) -> str:
    return ", ".join(f"`{kind}`" for kind in row["said"]) or "nothing"


if __name__ == "__main__":
    answer(measure)
