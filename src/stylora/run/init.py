"""`stylora init`: look at a folder of text, write a recipe that fits it. Every key stands there, with its default and what it means.

The comments are the docstrings of the sections, so they cannot say anything else than the code. Imports no torch.
"""

from __future__ import annotations

import copy
import json
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import getdoc
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Console

from stylora.corpus.read import READERS
from stylora.errors import UserError
from stylora.model.tokenizer_file import context_length
from stylora.recipe.recipe import Recipe, Stage, parse_recipe
from stylora.samples.objective import Objective
from stylora.samples.settings import READ_BY, Data
from stylora.samples.text import TextData

from .data import Scan, account, progress_bar, scan, text_format, totals
from .plan import open_tokenizer, read_data

LARGE_BASE = "Qwen/Qwen3-8B"
GENERAL_RATIO = 0.1
OF_OTHERS = READ_BY["chat"] | READ_BY["branches"]
WINDOWS = 128  # in an epoch, so that it is more than a handful of steps
SHORTEST = 128  # tokens; shorter windows teach no context
STEPS = 200  # steps after which a style has settled on small corpora
WIDTH = 120
ENTRY = re.compile(r"([a-z_0-9]+(?:, [a-z_0-9]+)*): (.+)")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """train: files and folders of style text; general: ordinary text beside them, or None"""

    train: list[str]
    general: str | None


def init(folder: Path, out: Path, *, base: str = "tiny", console: Console, cache: Path | None = None) -> Recipe:
    """Write a commented recipe for the text in `folder` to `out`; returns it as it loads. console: for the progress bar.

    Raises UserError where `out` exists, and for a folder without usable text.
    """
    if out.exists():
        raise UserError(str(out), got="a file that is there already", expected="a new file", do="give another --out, or remove it")
    inputs = find_inputs(folder)
    first = parse_recipe(first_values(inputs, base, window_for(base)), [], name=str(folder))
    with progress_bar(console) as progress:
        data = read_data(first, open_tokenizer(base), cache=cache, progress=progress)
    assert isinstance(data, TextData)
    values = chosen(inputs, base, sum(side.tokens for side in data.summary.sides if side.part == "style" and not side.held))
    found = scan(parse_recipe(copy.deepcopy(values), [], name=str(folder)), console=console, cache=cache)
    assert isinstance(found, Scan)
    text = recipe_text(values, notes(found))
    recipe = parse_recipe(yaml.safe_load(text), [], name=str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8") as file:
        file.write(text)
    return recipe


def find_inputs(folder: Path) -> Inputs:
    """What of the folder is style and what is general: a `general.txt` (or .jsonl, ...) or a folder `general` in it.

    Raises UserError where nothing usable is left as style.
    """
    if not folder.is_dir():
        text_format([str(folder)])  # says what is wrong with it
        return Inputs(train=[folder.as_posix()], general=None)
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    general = [path for path in entries if path.stem.lower() == "general" and (path.is_dir() or path.suffix.lower() in READERS)]
    if not general:
        text_format([str(folder)])
        return Inputs(train=[folder.as_posix()], general=None)
    style = [path for path in entries if path not in general and (path.suffix.lower() in READERS or has_text(path))]
    if not style:
        raise UserError(str(folder), got=f"nothing but {general[0].name}", expected="novels beside it", do="put the books into this folder")
    return Inputs(train=[path.as_posix() for path in style], general=general[0].as_posix())


def has_text(path: Path) -> bool:
    """A folder with a file that can be read somewhere in it."""
    return path.is_dir() and any(file.suffix.lower() in READERS for file in path.rglob("*"))


def first_values(inputs: Inputs, base: str, window: int) -> dict[str, Any]:
    """The least a recipe for these inputs says."""
    train = inputs.train if len(inputs.train) > 1 else inputs.train[0]
    data: dict[str, Any] = {"format": text_format(inputs.train), "train": train, "window": window}
    if inputs.general is not None:
        data |= {"general": inputs.general, "general_ratio": GENERAL_RATIO}
    return {"base": base, "stages": [{"data": data}]}


def chosen(inputs: Inputs, base: str, tokens: int) -> dict[str, Any]:
    """The values that depend on the data: window, epochs, step, rate. Everything else keeps its default. tokens: of style, to train on"""
    small = base == "tiny"
    window = window_for(base, tokens)
    windows = max(1, tokens // window)
    samples_per_step = min(64, max(4, 2 ** int(math.log2(max(1, windows / 16)))))
    values = first_values(inputs, base, window)
    values["stages"][0] |= {
        "objective": {"kind": "clm"},
        "train": {
            "num_train_epochs": min(8, max(3, math.ceil(STEPS * samples_per_step / windows))), "samples_per_step": samples_per_step,
            "tokens_per_microbatch": 4096 if small else 8192, "learning_rate": 5e-4 if small else 2e-4,
            "gradient_checkpointing": not small,
        },
    }  # fmt: skip
    return values


def window_for(base: str, tokens: int | None = None) -> int:
    """1 024 tokens where the base's context allows, shorter where `tokens` give too few windows."""
    window = min(1024, context_length(base) or 1024)
    while tokens is not None and window > SHORTEST and tokens // window < WINDOWS:
        window //= 2
    return window


def notes(found: Scan) -> list[str]:
    """What was found, for the head of the recipe."""
    return [f"{name}: {told}" for name, told in [*totals(found), *account(found.summary, found.data.window)]]


# ------------------------------------------------------------------------------------------------------- the commented YAML


def recipe_text(values: dict[str, Any], found: list[str]) -> str:
    """The YAML of a recipe with one stage. values: as a recipe has them; keys that are not there get their defaults."""
    (stage,) = values["stages"]
    lines = ["# Written by `stylora init`. Look at the data with `stylora data FILE`, at the samples with `stylora inspect FILE`, then"]
    lines += ["# `stylora train FILE`. Every key is here with its meaning; what you delete keeps its default.", "#"]
    lines += [f"#   {line}" for note in found for line in textwrap.wrap(note, WIDTH - 6, subsequent_indent="  ")]
    lines += [""]
    if values["base"] == "tiny":
        lines += [f"# base: {LARGE_BASE}  # on a GPU, with gradient_checkpointing: true, learning_rate: 2.0e-4; window may be 1024"]
    top = {key: value for key, value in values.items() if key != "stages"}
    lines += section(Recipe, top, "", without="stages")
    lines += ["stages:"]
    inside = list(section(Stage, stage, "    "))
    first = next(i for i, line in enumerate(inside) if not line.strip().startswith("#"))
    inside[first] = "  - " + inside[first][4:]
    return "\n".join([*lines, *inside]) + "\n"


def section(
    model: type[BaseModel], values: dict[str, Any], indent: str, *, defaults: BaseModel | None = None, without: str = ""
) -> Iterator[str]:
    """The lines of one section, each key with its value (or default) and its comment.

    defaults: what stands for this section where it is left away, if that is not the section's own; without: a key to leave out
    """
    told = comments(model)
    # Keys of another kind or format would be refused.
    idle = set(Objective.model_fields) - {"kind"} if model is Objective else OF_OTHERS - READ_BY["text"] if model is Data else set()
    idle |= {"continue", "on"} if model is Stage else set()  # there is no other stage
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key == without:
            continue
        default = None if field.default is PydanticUndefined else getattr(defaults, name, field.default)
        value = values.get(key, default)
        if isinstance(default, BaseModel):
            inner = values.get(key, {})
            yield from commented(f"{indent}{key}:", told.get(key, ""), indent)
            yield from section(type(default), inner, indent + "  ", defaults=default)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from commented(f"{indent}{key}:", told.get(key, ""), indent)
            yield from section(field.annotation, values[key], indent + "  ")
        elif isinstance(value, list) and len(value) > 1 and isinstance(value[0], str):
            yield from commented(f"{indent}{key}:", told.get(key, ""), indent)
            yield from (f"{indent}  - {scalar(item)}" for item in value)
        else:
            yield from commented(f"{indent}{'# ' if key in idle else ''}{key}: {scalar(value)}", told.get(key, ""), indent)


def commented(line: str, comment: str, indent: str) -> list[str]:
    """A line with its comment beside it, or above where that would be too long."""
    beside = f"{line}  # {comment}"
    if not comment or len(beside) <= WIDTH:
        return [beside if comment else line]
    return [*(f"{indent}# {part}" for part in textwrap.wrap(comment, WIDTH - len(indent) - 2)), line]


def comments(model: type[BaseModel]) -> dict[str, str]:
    """Key -> what its section's docstring says of it; a text for several keys stands with the first."""
    found: dict[str, str] = {}
    known = {field.alias or name for name, field in model.model_fields.items()}
    key = ""
    for line in (getdoc(model) or "").splitlines():
        entry = ENTRY.fullmatch(line)
        if entry is not None and entry[1].split(", ")[0] in known:
            key = entry[1].split(", ")[0]
            found[key] = entry[2]
        elif key and line.startswith(" "):
            found[key] += " " + line.strip()
        else:
            key = ""
    return {key: re.sub(r"\bNone\b", "null", text) for key, text in found.items()}  # as YAML says it


def scalar(value: Any) -> str:
    """A value in one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, str) and "\n" in plain:
        return json.dumps(plain, ensure_ascii=False)  # YAML's own quotes would write the line break itself
    return yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10**9).removesuffix("\n...\n").rstrip("\n")
