"""The two tasks that come with the program, trained on the bundled base by their own recipes: how good they get, and on what.

    test_seen     names of the training rows in wordings that stand nowhere else
    test_unseen   names that stand nowhere else
    fuzzy         the nearest training text, without a model: what a language model has to be better than

Answers are written freely and held to labels or schema. `--rows FILE` adds a task of other conversations whose answers are JSON, with the
recipe of `columns` as it is: one that nobody chose a setting for. Shares of the training rows tell what more of them would bring.

Runs are kept in `--work`: the same command goes on where it was stopped, and `--only` leaves the rest to another process that shares
the folder. `--tables FILE` measures nothing: it writes the tables of docs/tasks.md from a result.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from stylora.evaluate.held_out import precision_context
from stylora.model.base import load_base
from stylora.model.device import choose_device
from stylora.model.forest_model import ForestModel
from stylora.model.proofs import prove_base
from stylora.recipe.recipe import Recipe, parse_recipe
from stylora.run.evaluation_data import measured_on
from stylora.run.folder import write_json
from stylora.run.open import find_model, put_on
from stylora.run.plan import chat_format, open_tokenizer, read_data
from stylora.run.predictor import Predictor
from stylora.run.stages import train_stages
from stylora.run.task import both_ways, read_task, task_at_hand
from stylora.run.task_data.writing import make
from stylora.samples.chat_data import ChatData

from .fuzzy import asked, baseline, read_rows
from .report import ROOT, Json, with_tables

PAGE = ROOT / "docs/tasks.md"
TESTS = ("test_seen", "test_unseen")
SHARES = (0.25, 0.5, 1.0)
RATE = 2e-3  # of the bundled base; the recipes' own are those of a large one
EPOCHS = {"unified": 5, "columns": 3, "other": 2}  # of `columns` the recipe has 8, which take an hour here
TIMED, ALONE = 128, 24  # inputs answered in batches of 32, and one by one
FIGURES = ("exact", "accuracy", "macro_f1", "json_valid", "pair_precision", "pair_recall", "pair_f1")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison."""
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where runs are kept, to go on with them")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="conversations whose answers are JSON: a third task")
    parser.add_argument("--only", nargs="+", choices=["unified", "columns", "other"], help="these tasks alone")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="write the tables of docs/tasks.md from this result")


def run(options: argparse.Namespace) -> Json:
    """{"settings", "rows", "ratios", "notes"}."""
    if options.tables is not None:
        result = json.loads(options.tables.read_text(encoding="utf-8"))
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
        return result
    work = options.work or Path(tempfile.mkdtemp(prefix="stylora-normalise-"))
    names = options.only or ["unified", "columns", *(["other"] if options.rows else [])]
    rows: list[Json] = []
    ratios: dict[str, float] = {}
    for name in names:
        if name != "other":
            make(name, work / "data" / name, force=True)
        for share in SHARES if name == "unified" and not options.quick else (1.0,):
            recipe = recipe_of(name, work, options, share)
            train_stages(recipe, name=name, console=Console(stderr=True, soft_wrap=True))
            rows += measured(name, recipe, work, share)
        ratios[f"batched_over_alone_{name}"] = batched_over_alone(recipe, work, name)
    return {
        "settings": {"base": "tiny", "learning_rate": RATE, "epochs": EPOCHS, "other": options.rows and options.rows.name},
        "rows": rows, "ratios": ratios, "notes": NOTES,
    }  # fmt: skip


NOTES = [
    "bundled base, 6 M parameters; the recipes as shipped, but for learning rate and epochs, and without gradient checkpointing",
    "fuzzy: the better of two scorers of RapidFuzz, chosen on the very test",
    "batched_over_alone: answers a second, 32 at once over one by one",
]


def recipe_of(name: str, work: Path, options: argparse.Namespace, share: float) -> Recipe:
    """The shipped recipe on the bundled base; of `other`, that of `columns` with other rows, of which a tenth is held out."""
    values: dict[str, Any] = yaml.safe_load((ROOT / f"recipes/{'columns' if name == 'other' else name}.yaml").read_text(encoding="utf-8"))
    (stage,) = values["stages"]
    data, train = stage["data"], stage["train"]
    if name == "other":
        data |= {"train": str(options.rows), "validation": 0.1}
        del data["max_length"], stage["task"]["json_schema"]
    else:
        data |= {"train": str(work / "data" / name / "train.jsonl"), "validation": [str(work / "data" / name / "validation.jsonl")]}
    if share < 1:
        data["fraction"] = share
    train |= {"learning_rate": RATE, "num_train_epochs": EPOCHS[name], "gradient_checkpointing": False, "report_to": "none"}
    if options.quick:
        train |= {"max_steps": 20}
        stage["task"] |= {"rows": 16, "max_new_tokens": 32}
    folder = work / (name if share == 1 else f"{name}-{share:g}")
    return parse_recipe({**values, "base": "tiny", "output_dir": str(folder)}, [], name=name)


def measured(name: str, recipe: Recipe, work: Path, share: float) -> list[Json]:
    """A row for each test and way of answering, and the baseline's; figures that were measured before are read.

    The base itself answers nothing right, so only the trained model is asked.
    """
    stage = recipe.stages[0]
    folder = Path(str(recipe.output_dir)) / stage.name
    tests: dict[str, Path | None] = {"held_out": None}
    if name != "other":
        tests |= {test: work / "data" / name / f"{test}.jsonl" for test in TESTS}
    rows: list[Json] = []
    for test, file in tests.items():
        kept = folder / f"answers_{test}.json"
        if not kept.is_file():
            write_json(kept, answered(recipe, folder, file))
        for way, found in json.loads(kept.read_text(encoding="utf-8")).items():
            told = {key: found[key] for key in FIGURES if key in found}
            if "calibration" in found:
                told |= {"calibration_error": found["calibration"]["error"],
                         "calibration_error_uncalibrated": found["calibration"]["error_uncalibrated"]}  # fmt: skip
            rows.append({"contender": "stylora", "task": name, "test": test, "share": share, "way": way, "rows": found["rows"], **told})
        if name != "other" and file is not None and share == 1:
            near = baseline(name, read_rows(work / "data" / name / "train.jsonl"), read_rows(file))
            best = max(near.values(), key=lambda figures: float(figures["accuracy" if "accuracy" in figures else "pair_f1"]))
            rows.append({"contender": "fuzzy", "task": name, "test": test, "share": share, "way": "", "rows": len(read_rows(file)), **best})
    return rows


def answered(recipe: Recipe, folder: Path, file: Path | None) -> Json:
    """`free` and `constrained` -> metrics, on the conversations of `file` or on what the recipe holds out."""
    (stage,) = measured_on(recipe, file).stages
    device = choose_device()
    base = load_base(recipe.base, device)
    packs = prove_base(base.model, words=len(base.tokenizer)).packs
    put_on(base, find_model(str(folder)))
    model, told = ForestModel(base.model, words=len(base.tokenizer)), read_task(folder)
    form = chat_format(recipe.base, open_tokenizer(recipe.base), stage.data.chat_template_kwargs)
    data = read_data(measured_on(recipe, file), open_tokenizer(recipe.base))
    assert told is not None and isinstance(data, ChatData)
    task = task_at_hand(stage, data, form, base, packs=packs)
    assert task is not None
    with precision_context(device.device, device.dtype):
        found = both_ways(task.asks, model, task.every, told.temperature)
    return {way: examined.metrics for way, examined in found.items()}


def batched_over_alone(recipe: Recipe, work: Path, name: str) -> float:
    """Answers a second, 32 at once over one by one, of the same program on different inputs of the held-out rows."""
    stage = recipe.stages[0]
    file = Path(stage.data.train if name == "other" else stage.data.validation[0])  # type: ignore[arg-type,index]
    texts = [asked(row) for row in read_rows(file)][: TIMED + ALONE]
    predictor = Predictor(str(Path(str(recipe.output_dir)) / stage.name))
    predictor.predict(texts[:2])
    speed = []
    for inputs, at_once in ((texts[:TIMED], 32), (texts[TIMED:], 1)):
        started = time.perf_counter()
        for at in range(0, len(inputs), at_once):
            predictor.predict(inputs[at : at + at_once])
        speed.append(len(inputs) / (time.perf_counter() - started))
    return speed[0] / speed[1]


# -------------------------------------------------------------------------------------------------------------- tables


def tables(result: Json) -> dict[str, str]:
    """Marker -> table, as docs/tasks.md has them."""
    heads = ["task", "test", "rows", "fuzzy", "free", "constrained", "valid JSON, free", "valid JSON, constrained"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    whole = [row for row in result["rows"] if row["share"] == 1]
    for task, test in dict.fromkeys((row["task"], row["test"]) for row in whole):
        found = {(row["contender"], row["way"]): row for row in whole if (row["task"], row["test"]) == (task, test)}
        metric = "accuracy" if "accuracy" in found["stylora", "free"] else "pair_f1"
        cells = [_percent(found.get(key), metric) for key in (("fuzzy", ""), ("stylora", "free"), ("stylora", "constrained"))]
        valid = [_percent(found.get(("stylora", way)), "json_valid") for way in ("free", "constrained")]
        named = f"`{task}`, {'accuracy' if metric == 'accuracy' else 'pair F1'}"
        lines.append(f"| {named} | {test} | {found['stylora', 'free']['rows']:,} | {' | '.join(cells + valid)} |")
    curve = ["| share of the training rows | test_seen | test_unseen |", "|--:|--:|--:|"]
    for share in dict.fromkeys(row["share"] for row in result["rows"] if row["task"] == "unified"):
        own = {row["test"]: row for row in result["rows"]
               if (row["task"], row["share"], row["contender"], row["way"]) == ("unified", share, "stylora", "constrained")}  # fmt: skip
        curve.append(f"| {share:.0%} | {_percent(own['test_seen'], 'accuracy')} | {_percent(own['test_unseen'], 'accuracy')} |")
    return {"NORMALISE": "\n".join(lines), "CURVE": "\n".join(curve)}


def _percent(row: Json | None, key: str) -> str:
    return "" if row is None or key not in row else f"{row[key]:.1%}"
