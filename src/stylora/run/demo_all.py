"""`stylora demo --all`: every system on the bundled base, one after another, by the shipped recipes, in some minutes.

    style     a voice from novels                                    recipes/two-stage.yaml
    align     the same adapter held to the base by KL                its second stage
    unified   labels from conversations, on a quarter of the rows    recipes/unified.yaml
    parallel  four questions about one card, answered at once        recipes/branches.yaml
    instruct  a new adapter on the voice, which is frozen            recipes/stack.yaml
    three-way base, base + style, base + style + instruct, and instruct without style
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from stylora.errors import UserError
from stylora.generate.settings import Sampling
from stylora.recipe.recipe import Recipe, parse_recipe, read_yaml
from stylora.train.logs import read_lines

from .demo import compared, shipped_folder
from .loaded import LoadedModel
from .measuring import TASK_METRICS, Outcome
from .show_three_way import show as show_three_way
from .stages import train_stages
from .task_data.writing import make
from .three_way import three_way
from .three_way_models import OlderFlags, find_subject

CARD = "【人物】老周。身份：船夫；年纪：五十六岁；住处：江边的草屋；最怕：涨水。"
QUESTIONS = ["问：老周多大年纪？答：", "问：老周是做什么的？答：", "问：老周最怕什么？答：", "问：老周住在哪里？答："]
FRACTION = 0.25  # of the label rows: a minute instead of four


def demo_all(out: Path | None, overrides: list[str], *, console: Console, force: bool = False) -> dict[str, Any]:
    """Train every system and show the three-way table last.

    Returns {"style", "align", "parallel": {part: figures before and after}, "answers": question -> answer, "unified": metrics, "three_way",
    "folder", "seconds"}.
    overrides: of the recipe with the stages style, align and instruct, and `unified.KEY=VALUE`, `parallel.KEY=VALUE` of the others
    Raises UserError for a folder that holds a finished demo.
    """
    started = time.perf_counter()
    folder = out or Path(tempfile.mkdtemp(prefix="stylora-demo-"))
    own = {name: [each for each in overrides if each.startswith(f"{name}.")] for name in ("unified", "parallel")}
    rest = [each for each in overrides if each not in own["unified"] + own["parallel"]]
    recipes = stacked(folder, rest), labels(folder, own["unified"]), branches(folder, own["parallel"])
    outcomes = train_stages(recipes[0], name="demo", console=console, force=force)
    make("unified", folder / "rows", force=True)
    for recipe in recipes[1:]:
        name = recipe.stages[0].name
        console.print(f"task       {name}", highlight=False)
        outcomes |= train_stages(recipe, name=name, console=console, force=force)
    if all(outcome is None for outcome in outcomes.values()):
        raise UserError(str(folder), got="a finished demo", expected="a folder without one", do="choose another --out, or give --force")
    result: dict[str, Any] = {name: held_out(folder / "run" / name) for name in ("style", "align")}
    result["parallel"], result["answers"] = held_out(folder / "branches" / "parallel"), answers(folder / "branches" / "parallel")
    result["unified"] = [row["metrics"] for row in read_lines(folder / "unified" / "unified" / TASK_METRICS)][-1]
    subject = find_subject([str(folder / "run" / "instruct")], OlderFlags())
    result["three_way"] = three_way(subject, sampling=Sampling(), console=console)
    result |= {"folder": str(folder), "seconds": round(time.perf_counter() - started, 1)}
    show(result, console)
    return result


def stacked(folder: Path, overrides: list[str]) -> Recipe:
    """style, align and instruct, on the files that come with the program."""
    shipped = shipped_folder()
    values = read_yaml(shipped / "recipes/two-stage.yaml")
    values["stages"].append(read_yaml(shipped / "recipes/stack.yaml")["stages"][1])
    for stage in values["stages"]:
        data = stage.get("data", {})
        data |= {key: str(shipped / data[key]) for key in ("train", "general") if key in data}
    return parse_recipe({**values, "output_dir": str(folder / "run")}, overrides, name="demo")


def labels(folder: Path, overrides: list[str]) -> Recipe:
    """The shipped task on a share of its rows, at the bundled base's learning rate."""
    values = read_yaml(shipped_folder() / "recipes/unified.yaml")
    (stage,) = values["stages"]
    rows = folder / "rows"
    stage["data"] |= {"train": str(rows / "train.jsonl"), "validation": [str(rows / "validation.jsonl")], "fraction": FRACTION}
    stage["train"] |= {"learning_rate": 2e-3, "gradient_checkpointing": False, "save_steps": 500, "eval_steps": 500}
    return parse_recipe({**values, "base": "tiny", "output_dir": str(folder / "unified")}, overrides, name="demo")


def branches(folder: Path, overrides: list[str]) -> Recipe:
    """The shipped questions about cards."""
    shipped = shipped_folder()
    values = read_yaml(shipped / "recipes/branches.yaml")
    data = values["stages"][0]["data"]
    data["train"] = str(shipped / data["train"])
    return parse_recipe({**values, "output_dir": str(folder / "branches")}, overrides, name="demo")


def answers(stage: Path) -> dict[str, str]:
    """Question -> answer, about one card that stands in no row, all of them decoded at once."""
    said = [""] * len(QUESTIONS)
    loaded = LoadedModel(str(stage))
    for branch, text in loaded.branches(CARD, QUESTIONS, Sampling(max_new_tokens=24, temperature=0)):
        said[branch] += text
    return dict(zip(QUESTIONS, said, strict=True))


def held_out(stage: Path) -> dict[str, Any]:
    """First against last evaluation of a stage of text."""
    outcome = Outcome(folder=stage)
    outcome.read()
    before, after = outcome.held_out[0], outcome.held_out[-1]
    return {part: compared(found, after[part]) for part, found in before.items()}


def show(result: dict[str, Any], console: Console) -> None:
    """A line for each system, then the three-way table."""
    for name in ("style", "align", "parallel"):
        told = ", ".join(
            f"{part} {row['perplexity_before']:.0f} -> {row['perplexity_after']:.0f}" for part, row in result[name].items()
        )
        console.print(f"{name:<10} held-out perplexity: {told}", highlight=False)
    console.print(f"{'answers':<10} {CARD}", markup=False, highlight=False)
    for question, answer in result["answers"].items():
        console.print(f"{'':<10} {question}{answer}", markup=False, highlight=False)
    accuracy = result["unified"]["accuracy"]
    console.print(f"{'unified':<10} {accuracy:.1%} of the held-out names right, half of which stand in no training row", highlight=False)
    show_three_way(result["three_way"], console)
    console.print(f"{result['seconds']:.0f} s in all; everything lies in {result['folder']}", highlight=False)
