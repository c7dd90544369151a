"""The points of a sweep: `train.learning_rate=1e-4,1e-3 align.objective.kl.beta=0,0.1` is four recipes, each with a folder of its own.

A value is YAML, and a comma inside brackets or quotes belongs to it; a key with one value is an override of every point. All points are
read before anything else happens. Knows how points are named; knows nothing of training them. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from stylora.errors import UserError
from stylora.recipe.recipe import Recipe, load_recipe_told

from .folder import NEUTRAL

CUSTOMARY = {"learning_rate": "lr", "num_train_epochs": "epochs"}
LONGEST = 60  # characters of a point's name: Windows allows 260 for a whole path, and a checkpoint's files lie three folders deeper
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One recipe of the grid.

    name: of its folder and in tables; values: key -> value as it was written, of the keys that vary; recipe: with the point's folder as
    output_dir; lineages: what each of its stages comes from, see `lineage`
    """

    name: str
    values: Mapping[str, str]
    recipe: Recipe
    lineages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where its stages lie."""
        return Path(str(self.recipe.output_dir))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A sweep as it was asked for.

    source: the recipe's file; told: what was translated in it; fixed: overrides of all points; varied: key -> values as they were written
    folder: of the sweep; points: in the order of the product, the last key fastest
    """

    source: Path
    told: Sequence[str]
    fixed: Sequence[str]
    varied: Mapping[str, Sequence[str]]
    folder: Path
    points: Sequence[Point]


def read_grid(source: Path, arguments: Sequence[str]) -> Grid:
    """Every point, parsed and validated. arguments: `KEY=A,B`, in the order in which keys vary.

    Raises UserError for what `load_recipe` refuses in any point, a key given twice, an empty or repeated value, two points that would train
    the same, several values for output_dir, and a grid of one point.
    """
    given = _given(arguments)
    fixed = [f"{key}={texts[0]}" for key, texts in given.items() if len(texts) == 1]
    varied = {key: texts for key, texts in given.items() if len(texts) > 1}
    if not varied:
        raise UserError("KEY=A,B", got="no key with several values", expected="at least one", do="`stylora train` trains a single recipe")
    if "output_dir" in varied:
        raise UserError("output_dir", got=f"{len(varied['output_dir'])} values", expected="one folder, in which each point has its own")
    every = [dict(zip(varied, texts, strict=True)) for texts in product(*varied.values())]
    read = [load_recipe_told(source, [*fixed, *(f"{key}={text}" for key, text in values.items())]) for values in every]
    names = point_names(every)
    folder = Path(read[0][0].output_dir or Path("runs") / f"{source.stem}-sweep")
    points = []
    for name, values, (recipe, _) in zip(names, every, read, strict=True):
        placed = recipe.model_copy(update={"output_dir": (folder / name).as_posix()})
        lineages = tuple(lineage(recipe, number) for number in range(len(recipe.stages)))
        points.append(Point(name=name, values=values, recipe=placed, lineages=lineages))
    _refuse_equal(points)
    return Grid(source=source, told=read[0][1], fixed=fixed, varied=varied, folder=folder, points=points)


def _given(arguments: Sequence[str]) -> dict[str, list[str]]:
    """key -> its values as they were written."""
    given: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise UserError(argument, got="no `=`", expected="KEY=A,B, as in train.learning_rate=1e-4,1e-3")
        if key in given:
            raise UserError(key, got="the key twice", expected="all its values behind one `=`", do="separate them by commas")
        given[key] = texts = split_values(key, text)
        if len(set(texts)) < len(texts):
            twice = next(each for each, times in Counter(texts).items() if times > 1)
            raise UserError(key, got=f"{twice} twice", expected="every value once")
    return given


def split_values(key: str, text: str) -> list[str]:
    """The values in `A,[B,C],"D,E"`, each as it was written; one empty value in no text. key: for messages

    They are read as the items of a YAML list, so it is YAML that says where a bracket or a quote ends. Raises UserError for broken YAML.
    """
    if not text.strip():
        return [""]
    if text.rstrip().endswith(","):  # which YAML would allow
        raise UserError(key, got=f"{text!r} with an empty value", expected="values between commas; `null` is none")
    try:
        listed = yaml.compose(f"[{text}]", Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(key, got=text, expected="values in YAML, separated by commas", do="quote those with brackets or commas") from error
    assert isinstance(listed, yaml.SequenceNode)
    return [text[item.start_mark.index - 1 : item.end_mark.index - 1].strip() for item in listed.value]


def plain(text: str) -> Any:
    """A value as JSON has it. YAML 1.1 takes 1e-4 for a word and 2024-01-01 for a day, which JSON does not have."""
    value = float(text) if EXPONENT.fullmatch(text) else yaml.safe_load(text)
    return text if isinstance(value, date) else value


# -------------------------------------------------------------------------------------------------------------------- names


def point_names(every: Sequence[Mapping[str, str]]) -> list[str]:
    """A name for each point: readable, a folder's name also on Windows, and unique also where capitals do not count.

    >>> point_names([{"train.learning_rate": "1e-4", "data.window": "[3,5]"}])
    ['lr=1e-4,window=3-5']
    """
    keys = _key_names(list(every[0]))
    whole = [",".join(f"{keys[key]}={_clean(text)}" for key, text in values.items()) for values in every]
    count = Counter(name.casefold() for name in whole)
    return [
        name if len(name) <= LONGEST and count[name.casefold()] == 1 else f"{name[: LONGEST - 9].rstrip('.')}-{_hash(values)}"
        for name, values in zip(whole, every, strict=True)
    ]  # fmt: skip


def _key_names(keys: Sequence[str]) -> dict[str, str]:
    """key -> the last part of it; with the first where two end alike, and whole where that is not enough."""
    forms = {key: _forms(key) for key in keys}
    chosen = dict.fromkeys(keys, 0)
    for form in (1, 2):
        count = Counter(forms[key][place] for key, place in chosen.items())
        chosen |= {key: form for key, place in chosen.items() if count[forms[key][place]] > 1}
    return {key: forms[key][place] for key, place in chosen.items()}


def _forms(key: str) -> tuple[str, str, str]:
    first, last = key.split(".")[0], key.split(".")[-1]
    last = CUSTOMARY.get(last, last)
    return _clean(last), _clean(last if first == key else f"{first}-{last}"), _clean(key.replace(".", "-"))


def _clean(text: str) -> str:
    """Words and numbers with hyphens between them: nothing that a file system or a shell takes for something else."""
    return "-".join(re.findall(r"[\w+%-]+(?:\.[\w+%-]+)*", text)) or "none"


def _hash(values: Mapping[str, str]) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=4).hexdigest()


# ------------------------------------------------------------------------------------------------------------ what is equal


def lineage(recipe: Recipe, number: int) -> str:
    """Everything that decides what stage `number` learns: itself and the stages it comes from, as JSON.

    Two points whose lineages are equal there end that stage with the same adapter, if their text is the same.
    """
    values = recipe.model_dump(mode="json") | {"output_dir": None}
    names = {stage.name: place for place, stage in enumerate(recipe.stages)}
    chosen, todo = set(), [number]
    while todo:
        chosen.add(place := todo.pop())
        stage = recipe.stages[place]
        todo += [names[parent] for parent in (stage.continues, *stage.on) if parent is not None]
    stages = [values["stages"][place] for place in sorted(chosen)]
    for stage in stages:
        stage["train"] |= dict.fromkeys(NEUTRAL)
    return json.dumps(values | {"stages": stages}, sort_keys=True)


def _refuse_equal(points: Sequence[Point]) -> None:
    """Raises UserError where two points differ in nothing that is learned."""
    seen: dict[tuple[str, ...], Point] = {}
    for point in points:
        twin = seen.setdefault(point.lineages, point)
        if twin is not point:
            key = next(key for key in point.values if point.values[key] != twin.values[key])
            raise UserError(
                key, got=f"{twin.values[key]} and {point.values[key]}, with which {twin.name} and {point.name} learn the same",
                expected="points that differ", do="leave one of them out",
            )  # fmt: skip
