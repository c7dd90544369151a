"""Chat SFT on structured tasks: shared-prefix forests against the Trainers of transformers and TRL, samples a second and memory.

One optimizer step of all contenders is the same: the same rows of `stylora data make` in the same tokens, a random model of
Qwen2.5-0.5B's dimensions (V = 151 936), LoRA on all linear layers as the task's recipe has it, AdamW, no gradient checkpointing. What each
contender does is told in benchmarks/tasks_contenders.py, what the rows are in benchmarks/tasks_rows.py.

On the first setting every contender is tried with several micro-batches; on all others the peers run with the one that was their fastest
there, which is also the one their memory counts with. Peak memory "above the model" is the most that training held less what was held
before it.

Beside it the proof that all learn the same: the losses of both sides in fp32 on a small model, step by step.

`--tables FILE` measures nothing: it writes what docs/benchmarks.md quotes from a result.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stylora.errors import UserError

from . import tasks_rows
from .report import ROOT, Json, Measure, apart, row, take_turns, with_tables

PAGE = ROOT / "docs/benchmarks.md"

QWEN = dict(
    vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=4, num_attention_heads=14, num_key_value_heads=2,
    max_position_embeddings=32_768, rope_theta=1e6, tie_word_embeddings=True,
)  # fmt: skip
SMALL = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)

TASKS: dict[str, Json] = {"unified": dict(r=16, alpha=32, max_length=256), "columns": dict(r=32, alpha=64, max_length=512)}
"""The rank and alpha of the task's recipe, and what the older script padded its rows to."""

PEERS = ("seed", "trainer", "trl", "trl packed")
"""Programs that exist, against which the ratios are; `answers` is no program, but what could be written by hand."""

LABELS = {
    "seed": "`Trainer` as the older script: padded to max_length, prompt learned", "trainer": "`Trainer`, dynamic padding, answer labels",
    "answers": "the same, head on answers only", "trl": "TRL `SFTTrainer`", "trl packed": "TRL `SFTTrainer`, packed", "stylora": "stylora",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One task at one size. contenders: those that run, None for all; `fastest` is the peer that was the fastest on the task so far"""

    task: str
    layers: int
    samples_per_step: int
    contenders: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.task}_{self.layers}_layers_{self.samples_per_step}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """model: keywords of `Qwen2Config`, the number of layers aside; settings: the first is the one that contenders are tried on

    at_once: contender -> what it is tried with: rows in a micro-batch; tokens in one for stylora; tokens of a packed row
    warm_up, steps: optimizer steps before the clock runs, and under it; rounds: of stylora, whose steps are short; the others have one
    parity_model: what `losses` run on, keywords that replace those of `model`; parity_steps: of how many samples
    """

    model: dict[str, Any]
    settings: tuple[Setting, ...]
    at_once: dict[str, tuple[int, ...]]
    warm_up: int = 1
    steps: int = 1
    rounds: int = 2
    parity_model: dict[str, Any]
    parity_steps: int = 10
    parity_samples: int = 8
    seed: int = 42


NEAREST = ("seed", "trainer", "trl", "trl packed", "stylora")
FULL = Settings(
    model=QWEN, parity_model=SMALL,
    settings=(
        Setting(task="unified", layers=4, samples_per_step=16), Setting(task="columns", layers=4, samples_per_step=16),
        Setting(task="unified", layers=4, samples_per_step=64, contenders=("fastest", "stylora")),
        Setting(task="columns", layers=4, samples_per_step=64, contenders=("fastest", "stylora")),
        Setting(task="unified", layers=24, samples_per_step=16, contenders=NEAREST),
        Setting(task="columns", layers=24, samples_per_step=16, contenders=NEAREST),
    ),
    at_once={
        "seed": (1, 4), "trainer": (1, 4), "answers": (4, 16), "trl": (1, 4), "trl packed": (512, 1024),
        "stylora": (1024, 8192),
    },
)  # fmt: skip
QUICK = replace(
    FULL, model=QWEN | SMALL,
    settings=(
        Setting(task="unified", layers=2, samples_per_step=4),
        Setting(task="columns", layers=2, samples_per_step=4, contenders=("trainer", "stylora")),
    ),
    at_once={"seed": (4,), "trainer": (4,), "answers": (4,), "trl": (4,), "trl packed": (1024,), "stylora": (8192,)}, rounds=1,
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison."""
    parser.add_argument("--tables", type=Path, metavar="FILE", help="measure nothing: write what the page quotes from this result")


def run(options: argparse.Namespace) -> Json:
    """The comparison as the command line asks for it; with `--tables` a stored one."""
    if options.tables is None:
        return compare(QUICK if options.quick else FULL, apart("benchmarks.tasks_contenders"))
    if not options.tables.is_file():
        raise UserError("--tables", got=str(options.tables), expected="a result of this comparison", do="make one with --out")
    result = json.loads(options.tables.read_text(encoding="utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
    return {name: result[name] for name in ("settings", "tokens", "rows", "losses", "ratios", "notes")}


def compare(settings: Settings, measure: Measure) -> Json:
    """All settings one after another; rows of the first with every micro-batch, of the others with the fastest one."""
    with tempfile.TemporaryDirectory() as folder:
        files, told = prepare(settings, Path(folder))
        rows: list[Json] = []
        for number, setting in enumerate(settings.settings):
            tried = [task(settings, setting, name, at_once, files) for name, at_once in to_run(settings, setting, rows, first=not number)]
            measured = take_turns(tried, 1, measure)
            again = [k for k, each in enumerate(tried) if each["contender"] == "stylora"]
            for k, more in zip(again, take_turns([tried[k] for k in again], settings.rounds - 1, measure), strict=True):
                measured[k] += more
            rows += [row(each, results, speed="samples_per_second") for each, results in zip(tried, measured, strict=True)]
            mark_fastest(rows)
        losses = parity(settings, files, measure)
    notes = NOTES + ([] if with_trl() else ["trl is not installed: its rows are left out"])
    return {
        "settings": asdict(settings), "tokens": told, "rows": rows, "losses": losses,
        "ratios": ratios(settings, rows) | {"largest_loss_difference": losses["largest_difference"]}, "notes": notes,
        "trl": version("trl") if with_trl() else None,
    }  # fmt: skip


def prepare(settings: Settings, folder: Path) -> tuple[dict[str, str], Json]:
    """Rows of every task on disk, those for the losses renumbered; and what they are like."""
    form, whose = tasks_rows.chat_tokens()
    files: dict[str, str] = {}
    told: Json = {"tokenizer": whose}
    steps = settings.warm_up + settings.steps
    for name in dict.fromkeys(each.task for each in settings.settings):
        most = max(each.samples_per_step for each in settings.settings if each.task == name) * steps
        count = max(most, settings.parity_steps * settings.parity_samples)
        rows = tasks_rows.encoded(tasks_rows.made(name, folder), form, count, settings.seed)
        files[name], told[name] = tasks_rows.write(rows, folder / f"{name}.json"), tasks_rows.figures(rows)
    renumbered, words = tasks_rows.renumbered(tasks_rows.read(files["unified"]))
    files["parity"], told["parity"] = tasks_rows.write(renumbered, folder / "parity.json"), {"words": words}
    return files, told


def with_trl() -> bool:
    return find_spec("trl") is not None


def to_run(settings: Settings, setting: Setting, rows: Sequence[Json], *, first: bool) -> list[tuple[str, int]]:
    """(contender, at_once): everything to try on the first setting; afterwards what was each peer's fastest there."""
    names = setting.contenders or tuple(settings.at_once)
    if "fastest" in names:
        peers = [each for each in rows if each["settings"]["task"] == setting.task and each["chosen"] and each["contender"] in PEERS]
        best = max(peers, key=lambda each: each["samples_per_second"])["contender"]
        names = tuple(best if name == "fastest" else name for name in names)
    names = tuple(name for name in names if with_trl() or not name.startswith("trl"))
    if first:
        return [(name, at_once) for name in names for at_once in settings.at_once[name] if fits(name, at_once, setting)]
    chosen: dict[str, tuple[int, ...]] = {each["contender"]: (each["settings"]["at_once"],) for each in rows if each["chosen"]}
    chosen["stylora"] = settings.at_once["stylora"]  # its steps are short, and one task's forests may fit where another's do not
    return [(name, at_once) for name in names for at_once in chosen[name]]


def fits(name: str, at_once: int, setting: Setting) -> bool:
    """Does a micro-batch of so many rows fit the step?"""
    return name in ("stylora", "trl packed") or at_once <= setting.samples_per_step


def mark_fastest(rows: list[Json]) -> None:
    """`chosen`: the fastest of each contender on each setting."""
    best: dict[tuple[str, str], float] = {}
    for each in rows:
        key = (each["settings"]["setting"], each["contender"])
        best[key] = max(best.get(key, 0.0), each["samples_per_second"])
    for each in rows:
        each["chosen"] = each["samples_per_second"] == best[each["settings"]["setting"], each["contender"]]


def task(settings: Settings, setting: Setting, contender: str, at_once: int, files: dict[str, str]) -> Json:
    """What a contender's process is told."""
    own = dict(
        model=settings.model | {"num_hidden_layers": setting.layers}, samples_per_step=setting.samples_per_step,
        warm_up=settings.warm_up, steps=settings.steps, seed=settings.seed, **TASKS[setting.task],
    )  # fmt: skip
    variant = {"setting": setting.name, "task": setting.task, "at_once": at_once}
    return {"contender": contender, "variant": variant, "settings": own, "rows": files[setting.task]}


def parity(settings: Settings, files: dict[str, str], measure: Measure) -> Json:
    """Losses in fp32 of a small model, of every way to learn answers; the largest difference of any of them to stylora's."""
    words = 1 + max(word for each in tasks_rows.read(files["parity"]) for word in each["ids"])
    own = dict(
        model=settings.model | settings.parity_model | {"vocab_size": words}, samples_per_step=settings.parity_samples, warm_up=1,
        steps=settings.parity_steps - 1, seed=settings.seed, precision="fp32", learning_rate=2e-3, **TASKS["unified"],
    )  # fmt: skip
    names = ["stylora", "trainer", "answers", *(["trl"] if with_trl() else [])]
    at_once = {name: 8192 if name == "stylora" else 4 for name in names}
    tried = [
        {"contender": name, "variant": {"losses": "fp32", "at_once": at_once[name]}, "settings": own, "rows": files["parity"]}
        for name in names
    ]
    losses = {each["contender"]: results[0]["loss"] for each, results in zip(tried, take_turns(tried, 1, measure), strict=True)}
    ours = losses["stylora"]
    largest = max(abs(a - b) for name in names[1:] for a, b in zip(ours, losses[name], strict=True))
    return {"largest_difference": largest, "steps": losses}


def ratios(settings: Settings, rows: list[Json]) -> dict[str, float]:
    """Ours to each peer's fastest, for every setting; those of the first also without its name before them."""
    found: dict[str, float] = {}
    for number, setting in enumerate(settings.settings):
        own = _ratios([each for each in rows if each["settings"]["setting"] == setting.name])
        found |= (own if number == 0 else {}) | {f"{setting.name}_{name}": value for name, value in own.items()}
    return found


def _ratios(rows: list[Json]) -> dict[str, float]:
    """Of one setting. memory_vs_best: to the leanest peer, all at their fastest; memory_vs_leanest: the leanest row of both sides."""
    speed, memory = "samples_per_second", "memory_above_model_mb"
    chosen = {each["contender"]: each for each in rows if each["chosen"]}
    ours, peers = chosen["stylora"], [chosen[name] for name in PEERS if name in chosen]
    found = {f"samples_vs_{name.replace(' ', '_')}": ours[speed] / chosen[name][speed] for name in chosen if name != "stylora"}
    return found | {
        "samples_vs_best": ours[speed] / max(each[speed] for each in peers),
        "memory_vs_best": ours[memory] / min(each[memory] for each in peers),
        "memory_vs_leanest": min(each[memory] for each in rows if each["contender"] == "stylora")
        / min(each[memory] for each in rows if each["contender"] in PEERS),
    }


NOTES = [
    "random weights, real rows: the loss begins near ln(vocabulary); `seed` learns the prompt too, so its loss is another sum",
    "ratios are of each contender's fastest micro-batch; those without a setting's name are of the first; the best is the best of "
    "seed, trainer, trl and trl packed, not of `answers`, which is no program but what could be written by hand",
    "trl packed: rows of a step are as near to the number asked for as whole packs come; its samples are counted, not assumed",
    "on a CPU TRL runs its head on every place; on GPUs with Triton, only where something is learned",
    "memory_vs_best: to the leanest peer, all at their fastest; memory_vs_leanest: of all micro-batches tried on both sides, however slow",
    "aims at 4 layers: samples_vs_best >= 10 for unified, >= 4 for columns; at 24 layers 7 and 2.5; memory_vs_best <= 0.5; "
    "largest_loss_difference <= 1e-4",
]


# ------------------------------------------------------------------------------------------------- what the page quotes


def tables(result: Json) -> dict[str, str]:
    """Marker -> the table of docs/benchmarks.md and its reading: every setting with the fastest row of each contender."""
    lines = ["| task, layers, samples a step | | at once | samples/s | tokens computed a step | memory above the model |", "|---" * 6 + "|"]
    for each in result["rows"]:
        if each["chosen"]:
            told, (task_, layers, _, step) = each["settings"], each["settings"]["setting"].split("_")
            lines.append(
                f"| {task_}, {layers}, {step} | {LABELS[each['contender']]} | {told['at_once']:,} | {each['samples_per_second']:.2f} "
                f"| {each['tokens_per_step']:,.0f} | {each['memory_above_model_mb']:,.0f} MB |"
            )
    found, machine, tokens = result["ratios"], result["hardware"], result["tokens"]
    names = list(dict.fromkeys(each["settings"]["setting"] for each in result["rows"]))
    bests = "; ".join(
        f"{name.replace('_', ' ')} {found[f'{name}_samples_vs_best']:.1f} and {found[f'{name}_memory_vs_best']:.2f}" for name in names
    )
    rows = "; ".join(
        f"{name} {tokens[name]['system']:,} + {tokens[name]['user']:.0f} + {tokens[name]['answer']:.0f}" for name in TASKS if name in tokens
    )
    setting = "`--quick`" if result["quick"] else "the full setting"
    reading = (
        f"**Samples a second to the best peer's, and memory to the leanest peer's: {bests}.** Losses in fp32 differ by at most "
        f"{found['largest_loss_difference']:.1e}. Tokens of the shared beginning, the user and the answer: {rows} ({tokens['tokenizer']}). "
        f"{machine['cores']} cores of an {machine['cpu']}, torch {result['versions']['torch']}, TRL {result['trl'] or 'absent'}, {setting}."
    )
    return {"TASKS": "\n".join([*lines, "", reading])}


if __name__ == "__main__":
    sys.exit("run as: python -m benchmarks tasks")
